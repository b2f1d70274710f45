"""Real builds: what a change costs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mfimage.image.docker.render import write_context
from mfimage.image.find.info import ImageInfo
from tests.image.builds import Builds, builder, fresh, layer_names, unique
from tests.image.sample import Sample

# In order: base, dependencies, working directory, model, feature_names, runtime, code.
DEPENDENCIES, _, MODEL, NAMES, RUNTIME, CODE = range(1, 7)

pytestmark = [pytest.mark.docker, pytest.mark.index]


@pytest.fixture(scope="module")
def build() -> Iterator[Builds]:
    with builder() as builds:
        yield builds


@pytest.fixture
def sample(tmp_path) -> Sample:
    return fresh(tmp_path / "blobs")


def changed(before: ImageInfo, after: ImageInfo) -> list[int]:
    pairs = zip(before.layers, after.layers, strict=True)
    return [number for number, (a, b) in enumerate(pairs) if a != b]


def test_a_new_model_leaves_the_dependencies(build, sample):
    before = build(sample)
    sample.artifacts["model"] = unique(3000)
    found = changed(before, build(sample))
    assert MODEL in found
    assert CODE in found  # function.json names the artifacts by digest
    assert DEPENDENCIES not in found


def test_a_code_edit_changes_the_code_layer_only(build, sample):
    before = build(sample)
    sample.code["predict.py"] += b"# edited\n"
    assert changed(before, build(sample)) == [CODE]


def test_a_small_artifact_leaves_the_large_one(build, sample):
    before = build(sample)
    sample.artifacts["feature_names"] = unique(30)
    found = changed(before, build(sample))
    assert {NAMES, CODE} <= set(found)
    assert not {DEPENDENCIES, MODEL} & set(found)


def test_variables_and_labels_change_no_layer(build, sample):
    before = build(sample)
    after = build(sample, env={"A": "1"}, labels={"b": "2"})
    assert changed(before, after) == []
    assert after.env["A"] == "1"
    assert after.labels["b"] == "2"


def held(image: str, number: int) -> dict[str, tuple]:
    """Return what a layer holds; Docker 20.10 gives folders the time at which it saw them."""
    return {
        name: (member.mode, member.uid, member.gid, member.size, member.mtime * member.isfile())
        for name, member in layer_names(image, number).items()
    }


def test_building_anew_gives_the_same_layers(build, sample):
    before, after = build(sample), build(sample, no_cache=True)
    for number in range(DEPENDENCIES, CODE + 1):
        assert held(before.id, number) == held(after.id, number)
    assert DEPENDENCIES not in changed(before, after)


def test_a_rendered_folder_gives_the_same_image(build, sample, tmp_path):
    out = tmp_path / "out"
    write_context(sample.plan(secrets=build.secrets), out, sample.blobs.path)
    assert changed(build.folder(out), build(sample)) == []
