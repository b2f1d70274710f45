"""What is shown of a function: the data, its HTML, and what must not become HTML."""

from __future__ import annotations

import importlib.metadata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mfimage.capture.lock.platform import Platform
from mfimage.capture.lock.pylock import LockedPackage, WheelFile, write_pylock
from mfimage.compose import compose
from mfimage.package.spec import EnvironmentSpec, Example
from mfimage.package.store import Package, PackageStore, open_any, open_package
from mfimage.views.function import FunctionView, type_of, view, view_of_spec
from tests.support.packages import make_package

HASH = "ab" * 32


def with_environment(root: Path) -> EnvironmentSpec:
    """Lock what is installed here, what is not, and a wheel in the package."""
    store = PackageStore(root)
    wheel = store.put_bytes(b"x" * 5_000_000)
    installed = {name: importlib.metadata.version(name) for name in ("numpy", "orjson")}
    files = {"absent": "absent-1-py3-none-any.whl", "own": "own-2-py3-none-any.whl"}
    locked = [
        *(
            LockedPackage(
                name=name,
                version=version,
                files=(
                    WheelFile(name=f"{name}.whl", sha256=HASH, url=f"https://x.org/{name}.whl"),
                ),
            )
            for name, version in {**installed, "absent": "1"}.items()
        ),
        LockedPackage(name="own", version="2", files=(WheelFile(name=files["own"], sha256=HASH),)),
    ]
    lock = write_pylock(locked, Platform(name="linux/amd64", python="3.11.7"))
    return EnvironmentSpec(
        python="3.11.7",
        platform="linux/amd64",
        source="imports",
        lock=store.put_bytes(lock),
        wheels={files["own"]: wheel},
        reasons={"numpy": "imported by predict.py:3", "orjson": "required by mfimage"},
    )


@pytest.fixture
def package(tmp_path: Path) -> Package:
    reference = make_package(
        tmp_path,
        artifacts={"factor": 3, "table": list(range(9000))},
        environment=with_environment(tmp_path),
        description="Multiply.\n\nBy the factor.",
        input_schema={"type": "object", "properties": {"x": {"type": "integer"}}},
        output_schema={"type": "integer"},
        examples=(Example(input={"x": 1}, output=3),),
    )
    return open_package(reference)


def test_what_is_known_of_a_function(package: Package) -> None:
    found = view(package)
    assert found.signature == "predict(record: dict) -> int"
    assert found.description == "Multiply.\n\nBy the factor."
    assert (found.task, found.created) == ("IrisFlow/1/train/2", "2026-11-20 12:00 UTC")
    assert found.reference == package.reference
    assert [(each.name, each.type) for each in found.artifacts] == [
        ("table", "list"),
        ("factor", "int"),
    ]
    assert found.artifacts[0].size_text.endswith("kB")
    assert found.examples[0].output == 3


def test_large_distributions_come_first_with_why_they_are_there(package: Package) -> None:
    environment = view(package).environment
    assert environment is not None
    numpy, *others = environment.distributions
    assert (numpy.name, numpy.why) == ("numpy", "imported by predict.py:3")
    assert numpy.size is not None
    assert numpy.size > 5_000_000
    assert (others[0].name, others[0].size_text) == ("own", "5.0 MB")
    assert (others[-1].name, others[-1].size, others[-1].why) == ("absent", None, "not recorded")
    assert environment.size_text == "", "one is not known"


def test_a_lock_that_is_elsewhere_is_not_fetched(package: Package) -> None:
    environment = view_of_spec(package.spec).environment
    assert environment is not None
    assert {each.name: each.why for each in environment.distributions} == {
        "numpy": "imported by predict.py:3",
        "orjson": "required by mfimage",
    }


def test_a_missing_or_damaged_lock_is_no_error(package: Package) -> None:
    ref = package.spec.environment.lock
    path = package.store.blob_file(ref)
    path.write_bytes(b"damaged")
    assert len(_distributions(view(package))) == 2
    path.unlink()
    assert len(_distributions(view(package))) == 2
    assert view_of_spec(package.spec, lock=b"\xff[[").environment == view(package).environment


def _distributions(shown: FunctionView) -> tuple[Any, ...]:
    assert shown.environment is not None
    return shown.environment.distributions


def test_a_pipeline_shows_its_parts(tmp_path: Path) -> None:
    references = [make_package(tmp_path), make_package(tmp_path, description="another")]
    made = compose("both", references)
    found = view(open_any(made.store.write(made.spec)))
    assert found.name == "both"
    assert [part.description for part in found.parts] == ["", "another"]
    assert found.environment is None


@pytest.mark.parametrize(
    ("schema", "hint"),
    [
        ({}, "Any"),
        (True, "Any"),
        ({"type": "object", "additionalProperties": True}, "dict"),
        ({"type": "object", "additionalProperties": {"type": "number"}}, "dict[str, float]"),
        ({"type": "object", "title": "Iris", "properties": {"x": {}}}, "Iris"),
        ({"$ref": "#/$defs/Node"}, "Node"),
        ({"type": "array", "items": {"type": "string"}}, "list[str]"),
        ({"type": "array", "prefixItems": [{"type": "null"}, {}]}, "tuple[None, Any]"),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "int | None"),
        ({"type": ["boolean", "null"]}, "bool | None"),
        ({"enum": ["a", "b"]}, "Literal['a', 'b']"),
        ({"enum": [1, 2, 3, 4, 5]}, "Literal[1, 2, 3, 4, ...]"),
        ({"const": None}, "Literal[None]"),
    ],
)
def test_schemas_as_hints(schema: Any, hint: str) -> None:
    assert type_of(schema) == hint


def test_a_batch_function_takes_a_list(package: Package) -> None:
    found = view_of_spec(replace(package.spec, batch=True))
    assert found.signature == "predict(records: list[dict]) -> list[int]"
