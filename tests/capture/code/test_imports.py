"""What a function imports, asked of a real interpreter that has made-up distributions."""

from __future__ import annotations

import io
import os
import pickle
import sys
from pathlib import Path

import pytest

from mfimage.capture.code import interpreter as fresh
from mfimage.capture.code.imports import Code, search_imports
from mfimage.capture.code.interpreter import early_interpreter
from mfimage.capture.lock.platform import Platform
from mfimage.capture.task.pickles import StoredBytes
from mfimage.errors import LockError
from tests.capture.projects import find, write
from tests.capture.wheelhouse import Interpreter

AMD64 = Platform(python="3.11", name="linux/amd64")


def test_the_closure_of_what_is_imported(interpreter: Interpreter, root: Path) -> None:
    code = """
        import json, sys
        from typing import TYPE_CHECKING
        from learn import linear
        from google.cloud import beta
        if TYPE_CHECKING:
            import pytest
        try:
            import optkit
        except ImportError:
            optkit = None
        try:
            import not_installed_at_all
        except ImportError:
            pass

        def predict(data):
            import lazykit
            try:
                import also_not_installed
            except ImportError:
                pass

        if __name__ == "__main__":
            import click
    """
    pickled = b"\x80\x04\x8c\x0cpickled.deep\x8c\x05Thing\x93c__main__\nC\ncpredict\nD\n."
    found = find(interpreter, root, code, artifacts={"model": pickled})
    assert found.python == ".".join(map(str, sys.version_info[:3]))
    direct = found.distributions()
    assert direct == {
        "google-beta": "imported by predict.py:5",
        "lazykit": "imported by predict.py:18",
        "learn-kit": "imported by predict.py:4",
        "optkit": "imported by predict.py:9",
        "pickled": "named by the pickle of artifact 'model'",
    }
    closed = found.installed.close(direct, AMD64)
    assert {name: why for name, why in closed.items() if name not in direct} == {
        "cython-rt": "required by speed",
        "numeric": "required by learn-kit",
        "speed": "required by learn-kit",
    }
    elsewhere = found.installed.close(direct, Platform(python="3.11", name="linux/arm64"))
    assert set(closed) - set(elsewhere) == {"speed", "cython-rt"}


@pytest.mark.parametrize("run", [True, False])
def test_the_project_is_no_distribution(interpreter: Interpreter, root: Path, run: bool) -> None:
    (root / "space").mkdir()
    files = write(
        root,
        {
            "pkg/__init__.py": "",
            "pkg/predict.py": """
                from . import clean
                from .clean import x
                import pkg.other
                from space import inner
            """,
            "pkg/clean.py": "import learn\nx = 1\n",
            "pkg/other.py": "from . import *\n",
            "space/inner.py": "import numeric\n",
            "unrelated.py": "import speed\n",
        },
    )
    code = Code(
        root=root, files=files, module="pkg.predict", artifacts={}, python=interpreter.python
    )
    with search_imports(code, run=run) as search:
        found = search.result()
    assert found.distributions() == {
        "learn-kit": "imported by pkg/clean.py:1",
        "numeric": "imported by space/inner.py:1",
    }


def test_an_empty_namespace_needs_nothing(interpreter: Interpreter, root: Path) -> None:
    found = find(interpreter, root, "import google.cloud\nimport google.cloud.alpha\n")
    assert list(found.distributions()) == ["google-alpha"]


def test_a_part_of_a_name_space_that_nobody_has(interpreter: Interpreter, root: Path) -> None:
    with pytest.raises(LockError, match=r"google.cloud.gamma"):
        find(interpreter, root, artifacts={"a": b"cgoogle.cloud.gamma\nC\n."}).distributions()


def test_one_file_of_two_distributions_asks_for_both(interpreter: Interpreter, root: Path) -> None:
    assert list(find(interpreter, root, "import twin\n").distributions()) == ["twin-a", "twin-b"]


def test_imports_that_are_computed_are_traced(interpreter: Interpreter, root: Path) -> None:
    code = """
        import importlib
        importlib.import_module("".join(["learn", ".linear"]))
        __import__("lazy" + "kit")
    """
    assert set(find(interpreter, root, code).distributions()) == {"learn-kit", "lazykit"}


def test_mfimage_itself_is_never_asked_for(interpreter: Interpreter, root: Path) -> None:
    assert (
        find(interpreter, root, "import mfimage\nfrom mfimage import errors\n").distributions()
        == {}
    )


def test_an_editable_distribution_is_found_by_its_folder(
    interpreter: Interpreter, root: Path
) -> None:
    source = root.parent / "shared" / "src"
    write(source, {"helpers.py": "import learn\n"})
    interpreter.install_editable(source, "helper-lib")
    found = find(interpreter, root, "import helpers\n")
    assert list(found.distributions()) == ["helper-lib"]
    assert found.installed["helper-lib"].requirement() == f"helper-lib @ {source.as_uri()}"


def test_folders_that_the_code_adds_to_the_path_are_the_projects(
    interpreter: Interpreter, root: Path
) -> None:
    files = write(
        root,
        {
            "lib/helpers2.py": "import learn\n",
            "predict.py": """
                import sys, os
                sys.path.insert(0, os.path.dirname(__file__) + "/lib")
                import helpers2
            """,
        },
    )
    code = Code(root=root, files=files, module="predict", artifacts={}, python=interpreter.python)
    with search_imports(code) as search:
        found = search.result()
    assert found.distributions() == {"learn-kit": "imported by lib/helpers2.py:1"}


def test_a_pickle_of_an_editable_module_is_looked_up(interpreter: Interpreter, root: Path) -> None:
    source = root.parent / "shared" / "src2"
    write(source, {"encoders/__init__.py": "", "encoders/text.py": ""})
    interpreter.install_editable(source, "encoder-lib")
    found = find(interpreter, root, artifacts={"model": b"cencoders.text\nEncoder\n."})
    assert list(found.distributions()) == ["encoder-lib"]


def test_what_project_modules_import_that_pickles_name(
    interpreter: Interpreter, root: Path
) -> None:
    """The module of an artifact's class was in the package, and what it imports was not."""
    models = "import learn\nclass Table:\n    def render(self): import one_more\n"
    models += "def unused(): import never_called\n"
    for run in (True, False):
        found = find(
            interpreter, root, models=models, run=run, artifacts={"t": b"cmodels\nTable\n."}
        )
        asked = {each.module: each for each in found.asked}
        assert asked["learn"].reason == "imported by models.py:1, which an artifact needs"
        assert {"learn", "one_more"} <= asked.keys()
        assert "never_called" not in asked


def test_what_the_flows_script_imports_when_pickles_call_it_main(
    interpreter: Interpreter, root: Path
) -> None:
    files = write(root, {"predict.py": "", "train.py": "import learn\nclass Scaler: pass\n"})
    stored = StoredBytes(encoding="pickle-v4", open=lambda: io.BytesIO(b"c__main__\nScaler\n."))
    code = Code(
        root=root, files=files, module="predict", artifacts={"s": stored},
        python=interpreter.python, script="train",
    )  # fmt: skip
    with search_imports(code) as search:
        assert list(search.result().distributions()) == ["learn-kit"]


def test_what_the_module_prints_is_kept_apart(
    interpreter: Interpreter, root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    find(interpreter, root, "print('x' * 100000)\nimport learn\n")
    assert capfd.readouterr() == ("", "")


def test_nothing_is_run_when_source_is_only_read(interpreter: Interpreter, root: Path) -> None:
    code = f"import learn\nopen({str(root / 'ran')!r}, 'w')\nimport nowhere\n"
    assert {each.module for each in find(interpreter, root, code, run=False).asked} == {
        "learn",
        "nowhere",
    }
    assert not (root / "ran").exists()


def test_a_function_of_an_installed_module_asks_for_its_distribution(
    interpreter: Interpreter, root: Path
) -> None:
    found = find(interpreter, root, module="learn.linear")
    assert found.distributions() == {"learn-kit": "the function's own module"}


def test_artifacts_are_read_and_not_run(interpreter: Interpreter, root: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(root / "ran"),)

    find(interpreter, root, artifacts={"model": pickle.dumps(Evil())})
    assert not (root / "ran").exists()


@pytest.mark.parametrize("hides", [False, True])
def test_what_is_imported_ahead_gives_way_to_the_project(
    interpreter: Interpreter, root: Path, monkeypatch: pytest.MonkeyPatch, hides: bool
) -> None:
    """A search that begins early finds what another one finds, also when a file hides a module."""
    monkeypatch.setattr(sys, "executable", interpreter.python)
    files = {"metaflow.py": "x = 1\n"} if hides else {}
    write(root.parent / "libs", {"metaflow.py": ""})
    monkeypatch.setenv("PYTHONPATH", str(root.parent / "libs"))
    code = "import learn\nfrom metaflow import x\n" if hides else "import learn\n"
    with early_interpreter():
        (early,) = fresh._waiting
        process = early.process
        found = find(interpreter, root, code, **{name[:-3]: text for name, text in files.items()})
    assert not fresh._waiting
    assert process.poll() == 0
    assert list(found.distributions()) == ["learn-kit"]


def test_an_early_interpreter_that_is_not_needed_is_stopped(interpreter: Interpreter) -> None:
    with early_interpreter():
        (early,) = fresh._waiting
    assert early.process.poll() is not None
    assert not fresh._waiting
