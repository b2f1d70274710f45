from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mfimage.capture.code.locate import Definition, load_decorated, locate, require_decorated
from mfimage.errors import CaptureError
from mfimage.function.decorator import json_function
from tests.support.projects import write

DECORATED = (
    "from mfimage.function.decorator import json_function\n"
    "@json_function\n"
    "def predict(data: dict) -> dict: return data\n"
)


@pytest.fixture(autouse=True)
def modules() -> Iterator[None]:
    before, path = dict(sys.modules), list(sys.path)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - set(before):
        del sys.modules[name]


def place(text: str) -> tuple[str, str, Path | None]:
    source = locate(load_decorated(text))
    return source.module, source.name, source.root


def test_a_file_a_module_and_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"predict.py": DECORATED, "pkg/__init__.py": DECORATED, "pkg/sub/__init__.py": ""}
    files |= {
        "pkg/sub/mod.py": f"from .. import predict as other\n{DECORATED}",
        "ns/m.py": DECORATED,
    }
    write(tmp_path, files)
    monkeypatch.chdir(tmp_path)
    assert place("predict.py:predict") == ("predict", "predict", tmp_path)
    assert place("./predict.py:predict") == ("predict", "predict", tmp_path)
    assert place("pkg/sub/mod.py:predict") == ("pkg.sub.mod", "predict", tmp_path)
    assert place("pkg/__init__.py:predict") == ("pkg", "predict", tmp_path)
    assert place("pkg.sub.mod:predict") == ("pkg.sub.mod", "predict", tmp_path)
    assert place("ns.m:predict") == ("ns.m", "predict", tmp_path)
    monkeypatch.chdir("/")
    assert place(f"{tmp_path}/pkg/sub/mod.py:predict") == ("pkg.sub.mod", "predict", tmp_path)


def test_a_script_inside_a_package_that_imports_its_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``python flows/train.py`` has ``flows/`` on its path; with ``__init__.py`` or without."""
    files = {"flows/__init__.py": "", "flows/neighbour.py": "", "flows/gone.py": "import nowhere\n"}
    write(tmp_path, {**files, "flows/train.py": f"import neighbour\n{DECORATED}"})
    monkeypatch.chdir(tmp_path)
    assert place("flows/train.py:predict") == ("train", "predict", tmp_path / "flows")
    with pytest.raises(CaptureError, match="No module named 'nowhere'") as caught:
        load_decorated("flows/gone.py:predict")
    assert caught.value.hint == "install 'nowhere', or run from the project's folder"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("predict", "'predict' does not name a function", "write file.py:function"),
        ("predict.py", "'predict.py' does not name a function", "write file.py:function"),
        ("predict.py:", "'predict.py:' does not name a function", "write file.py:function"),
        ("predict.py:a-b", "'predict.py:a-b' does not name a function", "write file.py:function"),
        ("gone.py:predict", "no file 'gone.py'", "check the path"),
        ("gone.mod:predict", "importing gone.mod failed: ModuleNotFoundError", "install 'gone'"),
        ("predict.py:other", "predict.py has no function 'other'", "its decorated functions: pred"),
        ("plain.py:other", "plain.py has no function 'other'", "write @json_function above one"),
        ("plain.py:plain", "plain.py:plain is not a decorated function", "write @json_function"),
        ("broken.py:x", "importing broken.py failed: SyntaxError", "guard what should only run"),
        ("raises.py:x", "importing raises.py failed: ZeroDivisionError", "guard what should only"),
        ("exits.py:x", "importing exits.py failed: SystemExit: 2", "guard what should only run"),
        (
            "json.py:x",
            "json.py cannot be imported as json: that is /",
            "give the file another name",
        ),
        ("sys.py:x", "sys.py cannot be imported as sys: that is built in", "another name"),
        ("binds.py:predict", "a function is bound while its own module is imported", "__main__"),
    ],
)
def test_what_cannot_be_loaded_says_why(
    text: str, message: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"predict.py": DECORATED, "plain.py": "def plain(data): ...\n", "broken.py": "def :"}
    files |= {"raises.py": "1/0\n", "exits.py": "import sys; sys.exit(2)\n", "json.py": ""}
    files |= {"binds.py": f"{DECORATED}from mfimage.bind import bind\nbind(predict, 'F')\n"}
    write(tmp_path, {**files, "sys.py": ""})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CaptureError) as caught:
        load_decorated(text)
    assert message in caught.value.message
    assert hint in str(caught.value.hint)


def test_what_is_not_decorated() -> None:
    for value, message in ((len, "len is not"), (5, "5 is not"), (None, "None is not")):
        with pytest.raises(CaptureError, match=message):
            require_decorated(value)


def nested() -> Any:
    @json_function
    def inside(data: dict) -> dict: ...

    return inside


class Holder:
    @staticmethod
    @json_function
    def method(data: dict) -> dict: ...


@pytest.mark.parametrize(
    ("function", "message", "hint"),
    [
        (nested(), "nested.<locals>.inside is defined inside another function", "top level"),
        (Holder.method, "Holder.method is not at the top level of", "move it out of the class"),
    ],
)
def test_what_has_no_name_of_its_own(function: Any, message: str, hint: str) -> None:
    with pytest.raises(CaptureError) as caught:
        locate(function)
    assert message in caught.value.message
    assert hint in str(caught.value.hint)


def imported(path: Path, name: str) -> Any:
    """Import a file under any name, as plugins and notebooks' helpers do."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_a_module_under_a_name_of_its_own_is_called_by_its_file(tmp_path: Path) -> None:
    write(tmp_path, {"pkg/__init__.py": "", "pkg/mod.py": DECORATED})
    module = imported(tmp_path / "pkg" / "mod.py", "something_else")
    assert locate(module.predict) == Definition(module="pkg.mod", name="predict", root=tmp_path)


def test_an_installed_module_has_no_folder(tmp_path: Path) -> None:
    site = tmp_path / "venv" / "lib" / "site-packages"
    write(site, {"acme/__init__.py": "", "acme/model.py": DECORATED})
    sys.path.insert(0, str(site))
    function = importlib.import_module("acme.model").predict
    assert locate(function) == Definition(module="acme.model", name="predict", root=None)


def test_what_the_module_calls_it(tmp_path: Path) -> None:
    renamed = DECORATED.replace("@json_function\n", "") + "serve = json_function(predict)\n"
    lost = f"{renamed}kept = [serve]\ndel serve\n"
    write(tmp_path, {"renamed.py": renamed, "lost.py": lost})
    sys.path.insert(0, str(tmp_path))
    assert locate(importlib.import_module("renamed").serve).name == "serve"
    with pytest.raises(CaptureError, match="lost has no name for the decorated predict"):
        locate(importlib.import_module("lost").kept[0])


def test_without_a_file_there_is_nothing_to_take(tmp_path: Path) -> None:
    space: dict[str, Any] = {"__name__": "made_up"}
    exec(DECORATED, space)
    with pytest.raises(CaptureError, match=r"made_up\.predict has no source file"):
        locate(space["predict"])


def test_binding_while_the_module_is_imported_is_refused(tmp_path: Path) -> None:
    """Whoever imports it would bind again: in another process, in the image."""
    located = f"{DECORATED}from mfimage.capture.code.locate import locate\nlocate(predict)\n"
    write(tmp_path, {"eager.py": located})
    sys.path.insert(0, str(tmp_path))
    with pytest.raises(CaptureError, match="predict is bound while its own module, eager, is"):
        importlib.import_module("eager")
