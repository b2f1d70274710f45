"""Real builds: what a change costs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mfimage.image.docker.render import write_context
from mfimage.image.find.info import ImageInfo
from mfimage.image.plan.files import ContextFile
from tests.image.builds import Builds, builder, fresh, unique
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


# Old engines (20.10) give the folders of a context the time at which they first saw them, unless
# it comes as a tar: only then can it be told exactly which layers change.


def test_exactly_what_a_new_model_changes(build, sample):
    before = build(sample, as_tar=True)
    sample.artifacts["model"] = unique(3000)
    assert changed(before, build(sample, as_tar=True)) == [MODEL, CODE]


def test_exactly_what_a_small_artifact_changes(build, sample):
    before = build(sample, as_tar=True)
    sample.artifacts["feature_names"] = unique(30)
    assert changed(before, build(sample, as_tar=True)) == [NAMES, CODE]


def test_variables_and_labels_change_no_layer(build, sample):
    before = build(sample)
    after = build(sample, env={"A": "1"}, labels={"b": "2"})
    assert changed(before, after) == []
    assert after.env["A"] == "1"
    assert after.labels["b"] == "2"


def test_building_anew_gives_the_same_layers(build, sample):
    before = build(sample, as_tar=True, no_cache=True)
    assert changed(before, build(sample, as_tar=True, no_cache=True)) == []


def test_a_rendered_folder_gives_the_same_image(build, sample, tmp_path):
    out = tmp_path / "out"
    write_context(sample.plan(secrets=build.secrets), out, sample.blobs.path)
    files = [
        ContextFile(path=path.relative_to(out).as_posix(), content=path)
        for path in sorted(out.rglob("*"))
        if path.is_file()
    ]
    assert build.build(files).id == build(sample).id
