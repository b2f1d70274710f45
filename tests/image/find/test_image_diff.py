"""What two images differ in, and what a build would change: read from images as they lie there."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest

from mfimage.errors import PackageError
from mfimage.image.find.contents import ImageDiff, parse_sbom
from mfimage.image.find.places import find_image
from mfimage.image.plan.preview import PlannedImage, explain
from mfimage.image.registry.location import Location
from mfimage.inspect import compare, inspect
from tests.image.sample import Sample, make_sample
from tests.image.tiny import build_layout, open_oci, plan_on, write_base


@pytest.fixture
def base(tmp_path: Path) -> Location:
    return write_base(tmp_path / "base")


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    return make_sample(tmp_path / "blobs")


@pytest.fixture
def before(base: Location, sample: Sample, tmp_path: Path) -> str:
    return build_layout(base, sample, tmp_path / "before", env={"KEPT": "1", "GONE": "1"})[0]


def changed(diff: ImageDiff) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for change in diff.changes:
        found.setdefault(change.section, []).append(str(change))
    return found


def planned(base: Location, sample: Sample, before: str | None, **options) -> PlannedImage:
    with closing(open_oci()) as builder:
        plan = plan_on(builder, base, sample, **options)
    return explain(plan, sample.blobs.path, find_image(before) if before else None)


def parts(found: PlannedImage) -> dict[str, tuple[str, tuple[str, ...]]]:
    return {part.name: (part.change, part.reasons) for part in found.parts}


def test_an_image_does_not_differ_from_itself(before: str) -> None:
    found = compare(before, before)
    assert not found
    assert found.to_text() == "no differences"
    assert found.to_dict()["same"] is True


def test_every_kind_of_difference_is_told(
    base: Location, sample: Sample, before: str, tmp_path: Path
) -> None:
    sample.code = {
        "predict.py": b"def predict(data, params):\n    return {'x': 1}\n",
        "new.py": b"",
    }
    sample.artifacts = {"model": b"other", "labels": b"names"}
    other = write_base(tmp_path / "other", python="3.11.9")
    after = build_layout(other, sample, tmp_path / "after", env={"KEPT": "2", "MORE": "1"},
                         labels={"team": "ml"})[0]  # fmt: skip
    found = changed(compare(before, after))
    assert found["python"] == ["~ python 3.11.7 -> 3.11.9"]
    assert [text.split(" sha256")[0] for text in found["artifacts"]] == [
        "- feature_names", "+ labels", "~ model"
    ]  # fmt: skip
    assert [text.split(" sha256")[0] for text in found["code"]] == ["+ new.py", "~ predict.py"]
    assert found["env"] == [
        "- GONE 1",
        "~ KEPT 1 -> 2",
        "+ MORE 1",
        "~ PYTHON_VERSION 3.11.7 -> 3.11.9",
    ]
    assert found["labels"] == ["+ team ml"]
    assert found["function"][0].startswith("~ function.digest sha256:")
    assert "base" in found
    assert found.keys().isdisjoint({"distributions", "runtime", "config", "system"})


def test_an_image_of_others_is_compared_as_far_as_it_goes(base: Location, before: str) -> None:
    found = compare(str(base), before)
    assert {"distributions", "code", "artifacts"} <= set(found.unknown)
    assert "not compared" in found.to_text()
    assert "+ KEPT 1" in changed(found)["env"]
    assert found.to_dict()["changes"]["code"] is None


def test_nothing_before_is_all_new(base: Location, sample: Sample) -> None:
    found = planned(base, sample, None)
    assert {change for change, _ in parts(found).values()} == {"new"}
    names = ["base", "dependencies", "artifact:model", "artifact:feature_names"]
    assert list(parts(found)) == [*names, "runtime", "code", "configuration"]
    assert found.to_dict()["compared_with"] is None
    sizes = {part.name: part.size for part in found.parts}
    assert sizes["artifact:model"] == 3000


def test_the_same_again_changes_nothing(base: Location, sample: Sample, before: str) -> None:
    found = planned(base, sample, before, env={"KEPT": "1", "GONE": "1"})
    assert {change for change, _ in parts(found).values()} == {"same"}
    assert found.to_dict()["changed"] is False


def test_an_edit_changes_one_layer(base: Location, sample: Sample, before: str) -> None:
    sample.code = {"predict.py": b"def predict(data, params):\n    return {'y': 2}\n"}
    found = parts(planned(base, sample, before, env={"KEPT": "1", "GONE": "1"}))
    assert found.pop("code")[0] == "changed"
    assert {change for change, _ in found.values()} == {"same"}


def test_a_new_model_and_a_variable_that_is_gone(
    base: Location, sample: Sample, before: str
) -> None:
    """A variable of the base's own is not missed."""
    sample.artifacts = {"model": b"other", "extra": b"more"}
    found = planned(base, sample, before, env={"KEPT": "1"})
    assert parts(found)["artifact:model"][0] == "changed"
    assert parts(found)["artifact:extra"][0] == "new"
    assert parts(found)["artifact:feature_names"][0] == "removed"
    assert parts(found)["configuration"] == ("changed", ("- GONE 1",))
    assert "changed  artifact:model" in found.to_text()


def test_new_distributions_are_why(base: Location, sample: Sample, before: str) -> None:
    numpy = b"{name = 'numpy', version = '2.1.0', wheels = [{url = 'https://x.example/n.whl'}]}"
    sample.lock = sample.lock.replace(b"[]", b"[%s]" % numpy)
    found = parts(planned(base, sample, before, env={"KEPT": "1", "GONE": "1"}))
    assert found["dependencies"] == ("changed", ("+ numpy 2.1.0",))
    assert found["code"][0] == "changed", "the function's own lock is a part of it"


def test_another_base_is_why(sample: Sample, before: str, tmp_path: Path) -> None:
    other = write_base(tmp_path / "other", python="3.11.9")
    found = parts(planned(other, sample, before, env={"KEPT": "1", "GONE": "1"}))
    assert found["base"][0] == "changed"
    assert "~ python 3.11.7 -> 3.11.9" in found["base"][1]
    assert found["code"] == ("changed", ("its SBOM lists what changed in base",))


def test_an_image_in_a_folder_tells_all(before: str) -> None:
    found = inspect(before)
    assert found["from"] == "files"
    assert found["lineage"]["flow"] == "MyTrainFlow"
    assert found["lineage"]["git.commit"].startswith("01234567")
    assert found["sbom"]["code files"] == 1
    assert found["schema.input"] == {"type": "object"}
    assert set(found["artifacts"]) == {"model", "feature_names"}
    assert all(layer["size"] and layer["digest"] for layer in found["layers"])


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"bomFormat": "SPDX"}', b"\xff"])
def test_what_is_no_sbom_is_refused(data: bytes) -> None:
    with pytest.raises(PackageError, match="SBOM"):
        parse_sbom(data)


def test_the_json_can_be_read_back(base: Location, sample: Sample, before: str) -> None:
    found = json.loads(json.dumps(planned(base, sample, before).to_dict()))
    assert [layer["change"] for layer in found["layers"]].count("changed") == 1
