from __future__ import annotations

import itertools
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mfimage.runtime.loading.modules import CodeSpace, NameTaken
from tests.support.projects import python, write

KEYS = (f"test{number}" for number in itertools.count())


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
    assert entry.__name__ == "entry"
    code.release()
    code.release()
    assert not {"entry", "helper", "pkg", "pkg.sub", "later"} & sys.modules.keys(), (
        "nothing is left"
    )
    assert str(tmp_path / "code") not in sys.path


BY_NAME = {
    "entry.py": (
        "import importlib, multiprocessing, pickle, pkgutil\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from importlib import resources\n"
        "import rules\n"
        "class Local: pass\n"
        "def work(x): return rules.REGISTRY['double'](x)\n"
        "def found():\n"
        "    spawn = multiprocessing.get_context('spawn')\n"
        "    with ProcessPoolExecutor(1, mp_context=spawn) as pool:\n"
        "        worked = pool.submit(work, 3).result()\n"
        "    text = resources.files('rules').joinpath('a.txt').read_text()\n"
        "    return (sorted(rules.REGISTRY), text,\n"
        "            pkgutil.get_data('rules', 'a.txt'), importlib.import_module('late').VALUE,\n"
        "            type(pickle.loads(pickle.dumps(Local()))) is Local, worked)\n"
    ),
    "late.py": "VALUE = 'late'\n",
    "rules/__init__.py": (
        "import importlib, pkgutil\n"
        "REGISTRY = {}\n"
        "for each in pkgutil.iter_modules(__path__):\n"
        "    importlib.import_module(f'rules.{each.name}')\n"
    ),
    "rules/double.py": "import rules\nrules.REGISTRY['double'] = lambda x: 2 * x\n",
    "rules/a.txt": "data",
}


def test_code_that_finds_itself_by_name_finds_itself(tmp_path: Path) -> None:
    """Under private names it got an empty registry, or ``No module named 'rules'``."""
    found = space(write(tmp_path, BY_NAME)).import_module("entry").found()
    assert found == (["double"], "data", b"data", "late", True, 6)


def test_a_name_that_is_taken_here_is_not_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The edited source, or any other module of the name, must not be what the code gets."""
    mine = write(tmp_path / "mine", {"helper.py": "VALUE = 'mine'\n", "pkg/__init__.py": ""})
    same = write(tmp_path / "same", {"helper.py": "VALUE = 'mine'\n"})
    other = write(tmp_path / "other", {"helper.py": "VALUE = 'other'\n"})
    more = write(tmp_path / "more", {"pkg/__init__.py": "", "pkg/new.py": ""})
    monkeypatch.syspath_prepend(str(mine))
    for folder, name in ((other, "helper"), (more, "pkg")):
        with pytest.raises(NameTaken, match=f"^{name} is another module here, from .*/mine/{name}"):
            space(folder)
    code = space(same)  # what a later import gives is as good
    assert code.import_module("helper").__file__ == str(same / "helper.py")
    code.release()
    import helper  # type: ignore[import-not-found]

    for folder in (same, other):
        with pytest.raises(NameTaken, match=r"helper is already imported here, .*/mine/helper"):
            space(folder)
    assert sys.modules.pop("helper") is helper
    assert not {str(same), str(other), str(more)} & set(sys.path)


def test_two_versions_of_one_module_never_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = space(write(tmp_path / "1", {"helper.py": "VALUE = 1\n", "tests/test_it.py": "1"}))
    assert one.import_module("helper").VALUE == 1
    files = {"helper.py": "VALUE = 2\n", "tests/test_it.py": "2", "data/x.py": ""}
    two = write(tmp_path / "2", files)
    with pytest.raises(NameTaken, match="helper is already imported here"):
        space(two)
    one.release()
    (tmp_path / "here" / "data").mkdir(parents=True)  # no module, though it could hold some
    monkeypatch.syspath_prepend(str(tmp_path / "here"))
    assert space(two).import_module("helper").VALUE == 2


def test_equal_modules_of_two_packages_are_one_until_neither_is_used(tmp_path: Path) -> None:
    files = {"helper.py": "VALUE = []\n", "pkg/__init__.py": ""}
    first = space(write(tmp_path / "1", files))
    helper = first.import_module("helper")
    second = space(write(tmp_path / "2", {**files, "entry.py": "import helper\n"}))
    assert second.import_module("entry").helper is helper
    again = space(tmp_path / "1")
    first.release()
    assert again.import_module("helper") is helper
    again.release()
    assert "helper" not in sys.modules
    assert second.import_module("helper").VALUE == []


def test_each_function_captured_by_value_has_its_stub(tmp_path: Path) -> None:
    stubs = [
        space(write(tmp_path / text, {"_bound_function.py": f"X = {text}\n"}))
        for text in ("1", "2")
    ]
    assert [each.import_module("_bound_function").X for each in stubs] == [1, 2]
    assert stubs[0].import_module("_bound_function") is stubs[0].import_module("_bound_function")


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
    assert caught.value.name == "pkg.gone"
    code.release()
    optional = "try:\n    import pkg.gone\nexcept ImportError:\n    FOUND = False\n"
    code = space(write(tmp_path, {"optional.py": optional}))
    assert code.import_module("optional").FOUND is False


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
    )
    write(tmp_path / "code", PROJECT)
    done = python(["-c", code], folder=tmp_path)
    assert (
        done.stdout == "entry ('helper', 'data', 'data', True, ('sub', 'helper')) ('later', True)\n"
    )


def test_modules_are_forgotten_while_collected_garbage_forgets_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking at modules may run the garbage collector, which releases other functions."""
    write(tmp_path / "a", {"forgotten_a.py": ""})
    write(tmp_path / "b", {"forgotten_b.py": "", "forgotten_c.py": ""})
    first, second = space(tmp_path / "a"), space(tmp_path / "b")
    first.import_module("forgotten_a")
    for name in ("forgotten_b", "forgotten_c"):
        second.import_module(name)

    class Collects:
        @property
        def __dict__(self) -> dict[str, object]:  # type: ignore[override]
            second.release()
            return {}

    monkeypatch.setitem(sys.modules, "collects", Collects())
    first.release()
    assert not {"forgotten_a", "forgotten_b", "forgotten_c"} & sys.modules.keys()


def test_a_stub_is_imported_while_another_thread_releases(tmp_path: Path) -> None:
    """Collected garbage may release a function in any thread, as one that a stub waits for."""
    write(tmp_path / "a", {"_bound_function.py": "import sys\nsys.modules['gate'].wait()\n"})
    write(tmp_path / "b", {"released_b.py": ""})
    stub, other = space(tmp_path / "a"), space(tmp_path / "b")

    class Gate:
        @staticmethod
        def wait() -> None:
            thread = threading.Thread(target=other.release, daemon=True)
            thread.start()
            thread.join(10)
            assert not thread.is_alive()

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "gate", Gate())
        stub.import_module("_bound_function")
    stub.release()
