"""An image of a pipeline: what is in it, what cannot be, and that a server runs it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from mfimage.errors import OptionError, OutputError
from mfimage.image.plan.options import BuildOptions
from mfimage.image.plan.pipeline import pipeline_source
from mfimage.image.plan.subject import BuildSource
from mfimage.load import pipeline
from mfimage.package.archive import extract
from mfimage.package.spec import FunctionRef, PipelineSpec
from mfimage.package.store import Pipeline, open_any, open_package
from mfimage.runtime.layout import BLOBS
from mfimage.runtime.loading.loader import LiveFunction, LivePipeline
from mfimage.steps.capture import open_source
from tests.runtime.packages import live
from tests.runtime.servers import running
from tests.support.packages import make_package
from tests.test_pipelines import bound, notes


def opened(root: Path, *references: str) -> Pipeline:
    made = open_any(pipeline("shop", *references, root=root).reference)
    assert isinstance(made, Pipeline)
    return made


def laid_out(source: BuildSource, folder: Path) -> Path:
    """Lay out what is in an image at /opt/function."""
    for name, data in source.subject.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    for name, ref in source.subject.code.items():
        extract(source.unverified_file(ref).read_bytes(), folder / name, where=name)
    (folder / BLOBS).mkdir(parents=True)
    for ref in source.subject.artifacts.values():
        (folder / BLOBS / ref.hex).write_bytes(source.unverified_file(ref).read_bytes())
    return folder


def test_an_image_of_a_pipeline_is_served(tmp_path: Path) -> None:
    root = tmp_path / "root"
    references = bound(root, "clean"), bound(root, "score")
    made = opened(root, *references)
    source = open_source(made.reference, BuildOptions())
    subject = source.subject
    assert (subject.kind, subject.name, subject.digest) == ("function", "shop", made.spec.digest)
    assert sorted(subject.files) == [
        "function.json", "functions/clean/function.json", "functions/score/function.json"
    ]  # fmt: skip
    assert [*subject.artifacts] == ["clean:factor", "score:factor"]
    assert json.loads(subject.labels["parts"]) == {p.name: p.digest for p in made.spec.parts}
    assert source.read_lock() == open_package(references[0]).read(
        made.parts[0].spec.environment.lock
    )
    with running(laid_out(source, tmp_path / "image")) as server:
        server.until_ready()
        assert server.post("/shop", {"price": "2"}).json() == 6.0
        assert server.post("/shop", {"price": 2}).json()["errors"][0]["path"] == "raw.price"
        prices = ["1", "x", "-1", "3"]
        rows = server.post("/shop/batch", [{"price": price} for price in prices]).json()
        assert [row.get("result") for row in rows] == [3.0, None, None, 9.0]
        assert server.get("/").json()["digest"] == made.spec.digest
        assert server.post("/shop", {"price": "-1"}).status_code == 500
    (failed, *_) = (entry for entry in server.log if "negative" in entry.get("exception", ""))
    assert "in score, part 2 of 2 of the pipeline shop" in failed["exception"]


def test_what_cannot_share_a_process_is_refused_by_name(tmp_path: Path) -> None:
    clean, score = bound(tmp_path, "clean"), bound(tmp_path, "score")
    anything: dict[str, Any] = {"input_schema": {}, "output_schema": {}}
    other = make_package(tmp_path, {"score_code/__init__.py": ""}, name="other", **anything)
    with pytest.raises(
        OptionError, match="score and other have different modules named score_code"
    ):
        pipeline_source(opened(tmp_path, clean, score, other), target="fastapi")
    changed = bound(tmp_path, "clean", description="another", **anything)
    with pytest.raises(OptionError, match="two parts are named clean"):
        pipeline_source(opened(tmp_path, changed, clean), target="fastapi")
    with pytest.raises(OptionError, match="target: 'ray' is for functions, and shop is a pipeline"):
        open_source(opened(tmp_path, clean, score).reference, BuildOptions(target="ray"))
    served = pipeline("metrics", clean, score).reference
    with pytest.raises(OptionError, match="'metrics' is a path of the server itself"):
        open_source(served, BuildOptions())


def live_pipeline(*parts: LiveFunction) -> LivePipeline:
    refs = tuple(FunctionRef(name=part.name, digest=part.digest) for part in parts)
    return LivePipeline(PipelineSpec(name="both", task="", parts=refs), parts)


def test_async_parts_run_on_the_loop_and_others_do_not_block_it() -> None:
    async def double(data: int) -> int:
        await asyncio.sleep(0)
        return data * 2

    async def text(value: int) -> str:
        if value > 6:
            raise LookupError("large")
        return str(value)

    def size(value: str) -> int:
        return len(value)

    whole = live_pipeline(live(double), live(text))
    assert whole.is_async
    assert asyncio.run(whole.acall(3)) == "6"
    mixed = live_pipeline(live(double), live(text), live(size))
    assert not mixed.is_async
    assert mixed(3) == 1
    found = mixed.results([1, "x", 4])
    assert found[0] == 1
    assert str(found[1]).startswith("data: ")
    assert notes(found[2]) == ["in text, part 2 of 3 of the pipeline both"]
    mixed.close()
    whole.close()


def test_a_result_that_the_next_part_does_not_accept_is_not_the_callers_error() -> None:
    def first(data: dict) -> dict:
        return data

    def second(row: dict[str, int]) -> int:
        return row["a"]

    both = live_pipeline(live(first), live(second))
    assert both({"a": 1}) == 1
    with pytest.raises(OutputError, match=r"first -> second: row\.a: expected int, got 'x'"):
        both({"a": "x"})
