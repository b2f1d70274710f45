from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mfimage.capture.examples import Recorded, record_examples
from mfimage.errors import CaptureError, InputError
from mfimage.package.spec import Example
from mfimage.package.store import PackageStore
from tests.capture.projects import write
from tests.support.packages import LOCK, PREDICT, archive, make_spec, put_artifact

NOISY = PREDICT.replace("    return {", "    print('noise', data, params)\n    return {")


def record(root: Path, inputs: list[Any], source: str = NOISY) -> tuple[Example, ...]:
    store = PackageStore(root)
    code = store.put_bytes(archive({"predict.py": source}))
    artifacts = {"factor": put_artifact(store, 3)}
    spec = make_spec(code, store.put_bytes(LOCK), artifacts=artifacts)
    return record_examples(spec, inputs, store).examples


def test_examples_run_in_a_fresh_interpreter_from_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "predict.py").write_text("raise SystemExit('the source, not the package')")
    monkeypatch.chdir(tmp_path)
    found = record(tmp_path / "root", [{"x": 2}, {"x": "é\n"}, {"x": np.float64(0.5)}])
    assert found == (
        Example(input={"x": 2}, output={"y": 6}),
        Example(input={"x": "é\n"}, output={"y": "é\né\né\n"}),
        Example(input={"x": 0.5}, output={"y": 1.5}),
    )
    assert not list((tmp_path / "root").rglob("function.json"))


def test_without_examples_nothing_runs(tmp_path: Path) -> None:
    assert record(tmp_path, [], "1 / 0") == ()


@pytest.mark.parametrize(
    ("inputs", "source", "message"),
    [
        ([{"x": 1}, {}, {"x": 2}], PREDICT, "predict failed on the example {}: "),
        ([{"x": 1}], PREDICT.replace('data["x"]', "float('nan')"), 'on the example {"x":1}: '),
        ([{"x": 1}], "import nowhere\n", "needs the module 'nowhere'"),
        ([{"x": 1}], f"{PREDICT}import os\nos._exit(3)\n", "no output"),
    ],
)
def test_an_example_that_fails_is_named(
    inputs: list[Any], source: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(CaptureError) as caught:
        record(tmp_path, inputs, source)
    assert message in caught.value.message


def test_an_example_without_a_json_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"examples\[0\]\.x: set has no JSON form"):
        record(tmp_path, [{"x": {1}}])


LIBRARY = """
try:
    import wanted
except ImportError:
    wanted = None
try:
    import spare
except ImportError:
    spare = None
def value():
    import importlib.metadata
    names = {each.name for each in importlib.metadata.distributions()}
    assert ("Spare" in names) == (spare is not None)
    if wanted is None:
        raise RuntimeError("wanted is required")
    return {"y": wanted.VALUE, "spare": spare is not None}
"""
CALLS = """
from mfimage.function.decorator import json_function
@json_function
def predict(data):
    import library
    return library.value()
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Install a library that uses two others if they are there; return those."""
    site = tmp_path / "site"
    others = {"wanted.py": "import behind\nVALUE = 3\n", "behind.py": "", "spare.py": ""}
    write(site, {"library.py": LIBRARY, **others})
    info = site / "Spare-1.0.dist-info" / "METADATA"
    info.parent.mkdir()
    info.write_text("Metadata-Version: 2.1\nName: Spare\nVersion: 1.0\n")
    monkeypatch.setenv("PYTHONPATH", str(site))
    return {"wanted": "wanted", "behind": "behind", "spare": "spare"}


def recorded(root: Path, source: str, outside: dict[str, str]) -> Recorded:
    store = PackageStore(root)
    code = store.put_bytes(archive({"predict.py": source}))
    spec = make_spec(code, store.put_bytes(LOCK))
    return record_examples(spec, [{}], store, outside=outside)


def test_what_a_library_imports_during_an_example_is_needed(
    tmp_path: Path, installed: dict[str, str]
) -> None:
    """As LightGBM imports scikit-learn: by a try statement, and it fails later without it."""
    found = recorded(tmp_path / "root", CALLS, installed)
    assert found.examples[0].output == {"y": 3, "spare": True}
    assert found.needed == {"wanted": "imported by library:3 when an example ran"}


def test_what_a_library_can_do_without_is_not_there(
    tmp_path: Path, installed: dict[str, str]
) -> None:
    found = recorded(tmp_path / "root", CALLS, {"spare": "spare"})
    assert found.examples[0].output == {"y": 3, "spare": False}
    assert found.needed == {}


def test_an_example_that_fails_with_everything_there_is_the_functions_fault(
    tmp_path: Path, installed: dict[str, str]
) -> None:
    source = CALLS.replace("return library", "return 1 / 0 or library")
    with pytest.raises(CaptureError, match="division by zero"):
        recorded(tmp_path / "root", source, installed)


def test_a_module_of_the_code_is_not_hidden_by_its_name(tmp_path: Path) -> None:
    """A project that is installed for development is both."""
    found = recorded(
        tmp_path / "root",
        CALLS.replace("import library", "import predict as library").replace(
            "library.value()", "{}"
        ),
        {"predict": "project"},
    )
    assert found.needed == {}
