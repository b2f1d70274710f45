"""Functions as one function: the package, its parts, where they run, and whose error it is."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mfimage import pipeline
from mfimage.backends import pipeline as backend
from mfimage.cli import main
from mfimage.copy import copy_package
from mfimage.errors import (
    CaptureError,
    InputError,
    OptionError,
    OutputError,
    PackageError,
    SchemaError,
)
from mfimage.inspect import inspect
from mfimage.load import JsonFunction, function_from_json
from mfimage.package.spec import PipelineSpec, parse_any
from mfimage.package.store import open_package
from tests.backends.process_support import Packages
from tests.support.packages import make_package
from tests.support.projects import python
from tests.support.s3 import Bucket
from tests.test_entrypoint import foreign

pytest_plugins = ["tests.backends.process_fixtures"]

HEADER = """\
from typing_extensions import TypedDict
from mfimage.function.decorator import json_function
from mfimage.function.parameters import FunctionParameters
"""
CLEAN = """
class Raw(TypedDict):
    price: str

class Clean(TypedDict):
    price: float

@json_function
def clean(raw: Raw) -> Clean:
    return {"price": float(raw["price"].strip())}
"""
SCORE = """
class Priced(TypedDict):
    price: float

@json_function(batch=True)
async def score(rows: list[Priced], params: FunctionParameters) -> list[float]:
    if any(row["price"] < 0 for row in rows):
        raise LookupError("negative")
    return [row["price"] * params.factor for row in rows]
"""
LABEL = """
@json_function
def label(value: int) -> str:
    return f"{value} EUR"
"""
SOURCES = {"clean": CLEAN, "score": SCORE, "label": LABEL}


def schemas(name: str) -> dict[str, Any]:
    space: dict[str, Any] = {"__name__": name}
    exec(compile(HEADER + SOURCES[name], name, "exec"), space)
    schema = space[name].signature.schema
    return {
        "batch": space[name].signature.batch,
        "input_schema": schema.input_schema(),
        "output_schema": schema.output_schema(),
    }


def bound(root: Path, name: str, **changes: Any) -> str:
    return make_package(
        root, {f"{name}_code.py": HEADER + SOURCES[name]}, name=name,
        entrypoint=f"{name}_code:{name}", **{**schemas(name), **changes},
    )  # fmt: skip


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[JsonFunction]:
    clean, score = bound(tmp_path, "clean"), bound(tmp_path, "score")
    with function_from_json(clean) as first, pipeline("shop", first, score) as made:
        yield made


def once(reference: str, record: Any, **options: Any) -> Any:
    with function_from_json(reference, **options) as function:
        return function(record)


def test_the_output_of_one_is_the_input_of_the_next(shop: JsonFunction, tmp_path: Path) -> None:
    assert shop({"price": " 2 "}) == 6.0
    assert asyncio.run(shop.acall({"price": "3"})) == 9.0
    assert shop.submit({"price": "4"}).result(10) == 12.0
    records = [{"price": str(number)} for number in range(700)]
    assert list(shop.map(records, batch_size=64)) == [3.0 * number for number in range(700)]
    assert once(shop.reference, {"price": "2"}, backend="local") == 6.0
    with pickle.loads(pickle.dumps(shop)) as again:
        assert again({"price": "2"}) == 6.0
    assert repr(shop) == "<JsonFunction shop of clean -> score>"
    assert (shop.name, shop.spec.batch) == ("shop", True)
    assert shop.spec.input_schema == schemas("clean")["input_schema"]
    assert shop.spec.output_schema == schemas("score")["output_schema"]
    parts = [bound(tmp_path, "clean"), bound(tmp_path, "score")]
    assert pipeline("shop", *parts).reference == shop.reference, "the same parts: the same package"


def test_a_pipeline_in_a_pipeline_stands_for_its_parts(shop: JsonFunction, tmp_path: Path) -> None:
    longer = pipeline("longer", shop, bound(tmp_path, "label", **{"input_schema": {}}))
    assert isinstance(longer.spec, PipelineSpec)
    assert [part.name for part in longer.spec.parts] == ["clean", "score", "label"]


def test_what_never_fits_is_refused_with_the_place_and_both_types(tmp_path: Path) -> None:
    clean, score, label = (bound(tmp_path, name) for name in SOURCES)
    with pytest.raises(SchemaError) as caught:
        pipeline("shop", clean, label)
    assert str(caught.value) == (
        "pipeline shop: clean -> label: never fits: result: clean returns object, "
        "label takes integer"
    )
    assert "bind it again, or put a function between" in str(caught.value.hint)
    loose = {"type": "object", "properties": {"cost": {"type": "number"}}}
    other = bound(tmp_path, "clean", output_schema=loose)
    with pytest.raises(SchemaError, match=r"result\.price: clean returns nothing, score takes num"):
        pipeline("shop", other, score)
    assert not (tmp_path / "functions" / "shop").exists(), "nothing is written"
    for name, functions in {
        "shop": [clean],
        "bad name": [clean, score],
        "a/b": [clean, score],
    }.items():
        with pytest.raises(OptionError):
            pipeline(name, *functions)


def test_what_may_fit_is_accepted_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mfimage")
    shop = pipeline("shop", *(bound(tmp_path, name) for name in SOURCES))
    said = {record.levelname: record.getMessage() for record in caplog.records}
    assert said["INFO"] == "shop: clean -> score: fits"
    may = "score -> label: may fit: result: score returns number, label takes integer"
    assert said["WARNING"] == f"shop: {may}"
    assert inspect(shop.reference)["junctions"] == ["clean -> score: fits", may]
    parts = inspect(shop.reference)["parts"]
    assert [open_package(part["reference"]).spec.name for part in parts] == [*SOURCES]
    with shop, pytest.raises(OutputError) as caught:
        shop({"price": "2.5"})
    assert str(caught.value).startswith("score -> label: value: ")
    assert "label does not accept what score returned" in str(caught.value.hint)


def notes(error: BaseException) -> list[str]:
    return list(getattr(error, "__notes__", ()))


def test_exceptions_keep_their_class_and_name_the_part(shop: JsonFunction) -> None:
    def submitted(record: Any) -> Any:
        return shop.submit(record).result(10)

    for call in (shop, lambda record: asyncio.run(shop.acall(record)), submitted):
        with pytest.raises(LookupError) as caught:
            call({"price": "-1"})
        assert notes(caught.value) == ["in score, part 2 of 2 of the pipeline shop"]
        with pytest.raises(ValueError, match="could not convert") as caught:
            call({"price": "x"})
        assert notes(caught.value) == ["in clean, part 1 of 2 of the pipeline shop"]
        with pytest.raises(InputError, match=r"raw\.price") as refused:
            call({})
        assert "in clean, part 1 of 2 of the pipeline shop" in notes(refused.value)
    results = shop.map([{"price": "1"}, {"price": "x"}, {"price": "2"}])
    assert next(results) == 3.0
    with pytest.raises(ValueError, match="could not convert"):
        next(results)


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.999])
def test_failures_stay_in_their_places(
    shop: JsonFunction, monkeypatch: pytest.MonkeyPatch, rate: float
) -> None:
    """Of either part, and with more in a row than are kept."""
    monkeypatch.setattr(backend, "_MAX_FAILURES", 7)
    dice = random.Random(1)
    prices = [
        dice.choice(["x", "-1"]) if dice.random() < rate else str(number) for number in range(900)
    ]
    results = list(shop.map([{"price": p} for p in prices], batch_size=8, on_error="return"))
    kinds = {"x": ValueError, "-1": LookupError}
    assert len(results) == len(prices)
    for price, result in zip(prices, results, strict=True):
        if price in kinds:
            assert type(result) is kinds[price]
        else:
            assert result == float(price) * 3


def test_a_copy_has_the_parts(shop: JsonFunction, tmp_path: Path) -> None:
    root = tmp_path / "other"
    copied = copy_package(shop.reference, root)
    shutil.move(root, tmp_path / "moved")
    moved = copied.replace(str(root), str(tmp_path / "moved"))
    names = [each.parent.parent.name for each in (tmp_path / "moved").rglob("function.json")]
    assert sorted(names) == ["clean", "score", "shop"]
    assert once(moved, {"price": "2"}) == 6.0
    for part in ("clean", "score"):
        (file,) = (tmp_path / "moved" / "functions" / part).rglob("function.json")
        data = file.read_bytes()
        file.write_bytes(data.replace(b'"kind": "json"', b'"kind": "avro"'))
        with pytest.raises(PackageError, match="not as it was written"):
            function_from_json(moved)
        file.unlink()
        with pytest.raises(PackageError, match=f"part {part}: no function package"):
            function_from_json(moved)
        file.write_bytes(data)


def test_parts_of_other_roots_are_copied(tmp_path: Path) -> None:
    clean, score = bound(tmp_path / "a", "clean"), bound(tmp_path / "b", "score")
    shop = pipeline("shop", clean, score, root=tmp_path / "c")
    shutil.rmtree(tmp_path / "a")
    shutil.rmtree(tmp_path / "b")
    assert shop.reference.startswith(str(tmp_path / "c"))
    assert once(shop.reference, {"price": "2"}) == 6.0


def test_what_needs_one_function_refuses_a_pipeline_by_name(shop: JsonFunction) -> None:
    data = Path(shop.reference).read_bytes()
    assert parse_any(data, where="x") == shop.spec
    assert parse_any(data, where="x").to_json() == data
    assert json.loads(data)["schema_version"] == "2.0", "a reader of functions refuses it"
    with pytest.raises(PackageError, match="shop is a pipeline of clean, score, and a function is"):
        open_package(shop.reference)
    with pytest.raises(OptionError, match="'ray' runs one function, and shop is a pipeline"):
        function_from_json(shop.reference, backend="ray")
    with pytest.raises(OptionError, match="remote: needs backend='ray'"):
        shop.remote({"price": "1"})


def test_one_part_is_no_pipeline(shop: JsonFunction) -> None:
    data = Path(shop.reference).read_bytes()
    plain = json.loads(data)
    plain["parts"] = plain["parts"][:1]
    with pytest.raises(PackageError, match="parts: expected at least 2, got 1"):
        parse_any(json.dumps(plain).encode(), where="x")


def test_commands_call_and_map_a_pipeline(shop: JsonFunction, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"price": "2"}\n{"price": "x"}\n')
    run: Callable[..., Any] = CliRunner().invoke
    done = run(main, ["call", shop.reference], input='{"price": "2"}\n')
    assert (done.exit_code, done.stdout) == (0, "6.0\n")
    errors = tmp_path / "errors.jsonl"
    done = run(
        main, ["map", shop.reference, "--input", f"{tmp_path}/in.jsonl", "--errors", f"{errors}"]
    )
    assert done.stdout == "6.0\n"
    assert json.loads(errors.read_text())["error"] == "ValueError"


@pytest.mark.slow
def test_parts_run_in_environments_apart(process_packages: Packages) -> None:
    """Each in its own process, with what it has locked; code of one name is not mixed up."""
    first = process_packages.write(
        """
        import sys
        @json_function
        def predict(data: dict) -> dict:
            return {"first": sys.prefix}
        """,
        name="first",
        output_schema={"type": "object"},
    )
    second = process_packages.write(
        """
        import sys
        from importlib.util import find_spec
        @json_function
        def predict(data: dict) -> dict:
            if data["first"] == "fail":
                raise LookupError("failed")
            return {**data, "second": sys.prefix, "has": find_spec("iniconfig") is not None}
        """,
        name="second",
        environment=process_packages.environment("iniconfig"),
        input_schema={"type": "object"},
    )
    both = pipeline("both", first.reference, second.reference)
    with function_from_json(both.reference, backend="process") as running:
        found = running({})
        assert found["has"]
        assert found["first"] != found["second"]
        assert list(running.map([{}, {}])) == [found, found]
        assert running.submit({}).result(60) == found
    twice = pipeline("twice", second.reference, second.reference)
    with function_from_json(twice.reference, backend="process") as running:
        with pytest.raises(LookupError, match="failed") as caught:
            running({"first": "fail"})
        assert notes(caught.value) == ["in second, part 1 of 2 of the pipeline twice"]
        # Both parts have one worker.
        results = list(running.map({"first": str(number)} for number in range(3000)))
        assert [result["first"] for result in results] == [str(number) for number in range(3000)]


def test_examples_are_recorded(shop: JsonFunction) -> None:
    parts = [each.digest for each in shop.spec.parts]
    functions = Path(shop.reference).parents[2]
    references = [next(functions.glob(f"*/{digest[7:]}")) for digest in parts]
    with pipeline("shop", *references, examples=[{"price": "2"}]) as made:
        assert [(each.input, each.output) for each in made.spec.examples] == [({"price": "2"}, 6.0)]
    with pytest.raises(
        CaptureError, match=r'shop failed on the example \{"price":"x"\}: could not'
    ):
        pipeline("shop", *references, examples=[{"price": "x"}])


@pytest.mark.slow
def test_an_entrypoint_has_the_environment_of_all_parts(process_packages: Packages) -> None:
    """``mfimage serve`` becomes a process with one lock, as an image has it."""
    source = """
    import sys
    from importlib.util import find_spec
    @json_function
    def predict(data: list) -> list:
        return [*data, sys.prefix, find_spec("stranger") is not None]
    """
    environment = foreign(process_packages).spec.environment
    part = process_packages.write(source, environment=environment)
    twice = pipeline("twice", part.reference, part.reference).reference
    code = f"from mfimage.run import run_entrypoint; run_entrypoint({twice!r}, ['call'], print)"
    done = python(["-c", code], folder=Path(process_packages.store.storage.url("")), stdin="[]\n")
    said, line = done.stdout.splitlines()
    assert said.startswith("twice runs in its own environment: stranger 1.0 is locked, and not")
    prefix, found, *again = json.loads(line)
    assert [prefix, found] == again
    assert "/environments/" in prefix
    assert found is True


@pytest.mark.slow
def test_a_pipeline_of_a_bucket(tmp_path: Path, bucket: Bucket) -> None:
    """Parts of two roots are copied to the bucket of the first."""
    clean = copy_package(bound(tmp_path, "clean"), f"{bucket.url}/functions-of-all")
    reference = pipeline("shop", clean, bound(tmp_path, "score")).reference
    assert reference.startswith(f"{bucket.url}/functions-of-all/functions/shop/")
    shutil.rmtree(tmp_path / "functions")
    assert once(reference, {"price": "2"}) == 6.0
