"""Environments as they come to a function package, and as ``mfimage env`` shows them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mfimage.bind import BindOptions, bind
from mfimage.capture.code.locate import load_decorated
from mfimage.cli import main
from mfimage.environment import report_environment
from mfimage.errors import LockError, SchemaError
from mfimage.package.store import open_package
from tests.capture.environment.test_resolution import Own, asked, own
from tests.capture.wheelhouse import Index, wheel

pytestmark = pytest.mark.slow

__all__ = ["asked", "own"]  # fixtures

_PREDICT = """
from mfimage.function.decorator import json_function
from mfimage.function.parameters import FunctionParameters

def unused():
    import nobody_has_it

@json_function
def predict(data: dict, params: FunctionParameters) -> dict:
    import IMPORTED
    return data
"""


@pytest.fixture
def function(project: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A function's file of a name of its own; ``IMPORTED`` in it is to be replaced."""
    file = project / f"predict_{abs(hash(request.node.name))}.py"
    file.write_text(_PREDICT)
    yield file
    sys.modules.pop(file.stem, None)


def bound(function: Path, imported: str, task: Any, **options: Any) -> str:
    function.write_text(_PREDICT.replace("IMPORTED", imported))
    root = function.parent / "packages"
    given = BindOptions(artifacts=[], root=root, **options)
    return bind(load_decorated(f"{function}:predict"), task, given)


def test_a_function_of_a_task_with_an_environment_of_its_own(
    own: Own, asked: Index, function: Path
) -> None:
    asked.add(wheel("numeric", "2.0"))
    with own.client() as metaflow:
        task = next(iter(metaflow.Flow("OwnFlow")))["solve"].task
        spec = open_package(bound(function, "learn", task)).spec
        assert spec.environment.source == "pypi"
        assert spec.environment.reasons["numeric"] == "required by learn-kit"
        with pytest.raises(LockError, match=r"the step's @pypi lacks .*: nowhere \(imported by"):
            sys.modules.pop(function.stem)
            bound(function, "nowhere", task)


def test_what_is_declared_and_lacks_an_import(
    few: Any, task: Any, function: Path, index: Index, capsys: pytest.CaptureFixture[str]
) -> None:
    requirements = function.parent / "requirements.txt"
    requirements.write_text("numeric\n")
    with pytest.raises(LockError) as caught:
        bound(function, "learn", task, environment=requirements)
    assert caught.value.message == (
        f"requirements.txt lacks what the function imports: learn (imported by {function.name}:10)"
    )
    requirements.write_text("learn\n")
    index.add(wheel("learn", requires=["numeric<2"]))
    sys.modules.pop(function.stem)
    reference = bound(function, "learn", task, environment=requirements)
    rows = {each.name: each for each in report_environment(reference).distributions}
    assert rows["learn"].why == f"named in requirements.txt, imported by {function.name}:10"
    assert rows["numeric"].why == "required by learn"
    assert rows["numeric"].origin == "index simple"
    shown = CliRunner().invoke(main, ["env", reference])
    assert shown.exit_code == 0
    assert "numeric   1.0   index simple  required by learn" in shown.stdout
    assert index.url not in shown.stdout
    plain = json.loads(CliRunner().invoke(main, ["env", "--json", "--diff", reference]).stdout)
    assert "learn 1.0 is locked; it is not installed here" in plain["differences"]
    assert os.fspath(function.parent) not in shown.stdout


_AVRO = """
from mfimage.function.decorator import avro_function

@avro_function
def predict(data: HINT) -> int:
    return 1
"""


def bound_avro(file: Path, hint: str, task: Any, **options: Any) -> str:
    file.write_text(_AVRO.replace("HINT", hint))
    sys.modules.pop(file.stem, None)
    given = BindOptions(artifacts=[], root=file.parent / "packages", **options)
    return bind(load_decorated(f"{file}:predict"), task, given)


def test_an_avro_function_has_what_reads_and_writes_avro(
    few: Any, task: Any, function: Path, index: Index
) -> None:
    """It is no import of its code; a declared environment without it is refused."""
    requirements = function.parent / "requirements.txt"
    requirements.write_text("numeric\n")
    with pytest.raises(LockError) as caught:
        bound_avro(function, "int", task, environment=requirements)
    assert caught.value.message == (
        "requirements.txt lacks what the function imports: fastavro (reads and writes Avro)"
    )
    assert caught.value.hint == "add fastavro to it"
    requirements.write_text("fastavro\n")
    index.add(wheel("fastavro", "1.13.1"))
    reference = bound_avro(function, "int", task, environment=requirements)
    reasons = {each.name: each.why for each in report_environment(reference).distributions}
    assert reasons["fastavro"] == "named in requirements.txt, reads and writes Avro"
    spec = open_package(reference).spec
    assert (spec.kind, spec.schemas) == ("avro", {})


def test_an_avro_function_whose_hints_have_no_avro_schema(task: Any, function: Path) -> None:
    with pytest.raises(SchemaError) as caught:
        bound_avro(function, "dict", task)
    assert caught.value.message == (
        "predict: data: no Avro schema: it allows members of any name and type"
    )
    assert "schema=" in str(caught.value.hint)
    assert not (function.parent / "packages").exists()
