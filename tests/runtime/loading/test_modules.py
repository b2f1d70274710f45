from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mfimage.runtime.loading.modules import CodeSpace
from tests.support.projects import python, write

KEYS = (f"test{number}" for number in itertools.count())


@pytest.fixture(autouse=True)
def modules() -> Iterator[None]:
    before = dict(sys.modules)
    yield
    for name in set(sys.modules) - set(before):
        del sys.modules[name]


def space(folder: Path, main: str | None = None) -> CodeSpace:
    return CodeSpace(folder, key=next(KEYS), dedicated=False, main=main)


PROJECT = {
    "entry.py": (
        "import helper\n"
        "import pkg.sub.deep\n"
        "import pkg.sub.deep as renamed\n"
        "from pkg import sub, VALUE\n"
        "from pkg.sub import deep, relative\n"
        "from json import dumps\n"
        "def lazily():\n"
        "    import later, json\n"
        "    return later.VALUE, json.dumps is dumps\n"
        "def all_of():\n"
        "    return helper.VALUE, VALUE, pkg.sub.deep.VALUE, renamed is deep, relative()\n"
    ),
    "helper.py": "VALUE = 'helper'\n",
    "later.py": "VALUE = 'later'\n",
    "pkg/__init__.py": "from .sub.deep import VALUE\n",
    "pkg/sub/__init__.py": "from . import deep\nfrom .deep import relative\n",
    "pkg/sub/deep.py": (
        "from pathlib import Path\n"
        "from .. import sub\n"
        "import helper as own\n"
        "VALUE = Path(__file__).with_name('data.txt').read_text()\n"
        "def relative(): return sub.__name__.rpartition('.')[2], own.VALUE\n"
    ),
    "pkg/sub/data.txt": "data",
}


def test_a_whole_project_imports_its_own_modules(tmp_path: Path) -> None:
    code = space(write(tmp_path / "code", PROJECT))
    entry = code.import_module("entry")
    assert entry.all_of() == ("helper", "data", "data", True, ("sub", "helper"))
    assert entry.lazily() == ("later", True)
    assert not {"entry", "helper", "pkg", "later"} & sys.modules.keys(), "nothing is left behind"
    assert str(tmp_path / "code") not in sys.path


def test_two_versions_of_one_module_never_meet(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    sys.path.insert(0, str(write(tmp_path / "here", {"helper.py": "VALUE = 'mine'\n"})))
    try:
        import helper  # type: ignore[import-not-found]

        one = {
            "entry.py": "import helper\ndef get():\n    import helper as h\n    return h.VALUE\n"
        }
        found = []
        for version in (1, 2):
            files = {**one, "helper.py": f"VALUE = {version}\n"}
            entry = space(write(tmp_path / str(version), files)).import_module("entry")
            found.append((entry.helper.VALUE, entry.get()))
        assert found == [(1, 1), (2, 2)]
        assert helper.VALUE == sys.modules["helper"].VALUE == "mine"
    finally:
        sys.path.pop(0)


def test_an_installed_package_is_not_hidden_by_a_folder_of_its_name(tmp_path: Path) -> None:
    """``numpy/`` without ``__init__.py`` beside the code is no package of that name."""
    files = {
        "entry.py": "import numpy\nimport plain.part\nARRAY, PART = numpy.array, plain.part.X\n",
        "numpy/script.py": "",
        "plain/part.py": "X = 1\n",
    }
    entry = space(write(tmp_path, files)).import_module("entry")
    assert (entry.ARRAY([1]).sum(), entry.PART) == (1, 1)


def test_a_missing_module_is_called_by_its_own_name(tmp_path: Path) -> None:
    code = space(write(tmp_path, {"entry.py": "import pkg.gone\n", "pkg/__init__.py": ""}))
    with pytest.raises(ModuleNotFoundError) as caught:
        code.import_module("entry")
    assert code.public(caught.value.name) == "pkg.gone"
    optional = "try:\n    import pkg.gone\nexcept ImportError:\n    FOUND = False\n"
    code = space(write(tmp_path, {"optional.py": optional}))
    assert code.import_module("optional").FOUND is False


def test_main_is_the_script_that_it_was(tmp_path: Path) -> None:
    code = space(write(tmp_path, {"train.py": "class Scaler: pass\n"}), main="train")
    assert code.owns("__main__")
    assert code.owns("train.Scaler")
    assert not code.owns("json")
    assert code.import_module("__main__") is code.import_module("train")
    assert not space(tmp_path).owns("__main__")


def test_many_threads_import_one_module_once(tmp_path: Path) -> None:
    files = {"entry.py": "import helper\nimport time\ntime.sleep(.01)\n", "helper.py": "X = []\n"}
    write(tmp_path, files)
    barrier, key = threading.Barrier(16), next(KEYS)

    def load(_: int) -> int:
        barrier.wait()
        code = CodeSpace(tmp_path, key=key, dedicated=False, main=None)
        return id(code.import_module("entry").helper.X)

    with ThreadPoolExecutor(16) as pool:
        assert len(set(pool.map(load, range(16)))) == 1


def test_a_process_of_its_own_has_the_code_on_its_path(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from mfimage.runtime.loading.modules import CodeSpace\n"
        "space = CodeSpace(Path('code').resolve(), key='x', dedicated=True, main='helper')\n"
        "entry = space.import_module('entry')\n"
        "print(entry.__name__, entry.all_of(), entry.lazily())\n"
        "print(sys.modules['helper'] is space.import_module('__main__'))\n"
    )
    write(tmp_path / "code", PROJECT)
    done = python(["-c", code], folder=tmp_path)
    expected = "entry ('helper', 'data', 'data', True, ('sub', 'helper')) ('later', True)\nTrue\n"
    assert done.stdout == expected
