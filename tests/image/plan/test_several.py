"""Several functions in one image: names, environment, lock, layers and what the image says."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mfimage.capture.lock.platform import Platform
from mfimage.capture.lock.pylock import LockedPackage, WheelFile, write_pylock
from mfimage.errors import LockError, MfimageError, OptionError
from mfimage.image.checks.config import check_labels
from mfimage.image.docker.render import render
from mfimage.image.find.contents import contents_of, diff
from mfimage.image.find.info import ImageInfo
from mfimage.image.plan.base import BaseImage, default_base
from mfimage.image.plan.labels import LOCK_DIGEST
from mfimage.image.plan.layers import code_files, layer_files, sbom_file
from mfimage.image.plan.names import check_names
from mfimage.image.plan.options import BuildOptions
from mfimage.image.plan.plan import MOST_ARTIFACT_LAYERS, ImagePlan, make_plan
from mfimage.image.plan.subject import BuildSource
from mfimage.image.registry.location import Location
from mfimage.inspect import compare, inspect
from mfimage.package.spec import EnvironmentSpec
from mfimage.package.store import PackageStore, open_package
from mfimage.runtime.serving.served import Served
from mfimage.steps.capture import open_source
from mfimage.verify import verify
from tests.image.tiny import open_oci, write_base
from tests.support.no_lock.no_lock import LOCK
from tests.support.packages import PREDICT, make_package, put_artifact

OPTIONS = BuildOptions()
LINUX = Platform(python="3.11", name="linux/amd64")


def planned(source: BuildSource) -> ImagePlan:
    base = BaseImage(reference=default_base("3.11"), python="3.11.2")
    return make_plan(source.subject, lock=source.read_lock(), base=base, options=OPTIONS)


def written(source: BuildSource) -> dict[str, bytes]:
    files = layer_files(planned(source), source.unverified_file)
    return {f.path: b"".join(f.chunks()) for layer in files.values() for f in layer}


@pytest.fixture
def three(tmp_path: Path) -> list[str]:
    """Two of a foreach, which share their code and one artifact, and one at another root."""
    shared = {"labels": ["a", "b"]}
    two = [
        make_package(
            tmp_path / "one",
            artifacts={"factor": number, **shared},
            name=f"forecast/{region}",
            description="Forecast.",
        )
        for number, region in enumerate(("emea", "apac"))
    ]
    other = {"predict.py": PREDICT.replace("*", "+")}
    return [*two, make_package(tmp_path / "two", other, name="classify")]


def test_each_function_has_a_folder_and_equal_parts_are_shared(three: list[str]) -> None:
    source = open_source(three, OPTIONS)
    files = written(source)
    names = ["classify", "forecast/apac", "forecast/emea"]
    assert json.loads(files["opt/function/functions.json"]) == {"functions": names}
    assert "opt/function/function.json" not in files
    for reference in three:
        spec = open_package(reference).spec
        timeless = replace(spec, lineage=replace(spec.lineage, created=None))
        assert files[f"opt/function/functions/{spec.name}/function.json"] == timeless.to_json()
        code = f"opt/function/code/{spec.code.digest[7:23]}/predict.py"
        assert (b"+" in files[code]) == (spec.name == "classify")
        for ref in spec.artifacts.values():
            assert f"opt/function/blobs/sha256/{ref.hex}" in files
    assert len([name for name in files if "/code/" in name]) == 2
    layers = {layer.names for layer in planned(source).artifacts}
    assert ("forecast/apac:labels", "forecast/emea:labels") in layers
    made = render(planned(source))
    assert "functions classify, forecast/apac and 1 more" in made.partition("\n")[0]
    # In any order: the same.
    assert written(open_source(three[::-1], OPTIONS)) == files


def test_labels_stay_small_and_agree_with_the_functions(three: list[str]) -> None:
    source = open_source(three, OPTIONS)
    labels = planned(source).labels
    ours = {name.removeprefix("io.mfimage.") for name in labels if name.startswith("io.mf")}
    assert {each for each in ours if each.startswith("function")} == {
        "functions.count", "functions.digest"
    }  # fmt: skip
    assert not {"task", "artifacts", "schema.input"} & ours
    served = Served.together(source.subject.functions.values())
    info = ImageInfo(id="x", labels=labels)
    assert "agree" in check_labels(info, served, source.read_lock())


def test_the_sbom_and_a_diff_name_the_function_that_changed(
    three: list[str], tmp_path: Path
) -> None:
    changed = make_package(tmp_path / "new", artifacts={"factor": 9}, name="forecast/emea")
    found = []
    for references in (three, [changed, *three[1:]]):
        source = open_source(references, OPTIONS)
        plan = planned(source)
        sbom = sbom_file(code_files(plan, source.unverified_file))
        found.append(contents_of(ImageInfo(id="x", labels=plan.labels), sbom))
        parts = {each["bom-ref"] for each in json.loads(sbom)["components"]}
        assert {"function:classify", "function:forecast/emea"} <= parts
        assert "artifact:forecast/emea:factor" in parts
    changes = diff(*found, names=("a", "b"))
    assert [c.name for c in changes.of("function")] == [
        "function:forecast/emea",
        "functions.digest",
    ]
    assert [str(c)[:23] for c in changes.of("artifacts")] == [
        "~ forecast/emea:factor ", "- forecast/emea:labels "
    ]  # fmt: skip


def test_one_function_of_many_that_changed_is_pushed_alone(tmp_path: Path) -> None:
    store = PackageStore(tmp_path)

    def packages(**changed: bytes) -> list[str]:
        return [
            make_package(
                tmp_path,
                artifacts={"model": put_artifact(store, changed.get(name, name.encode() * 1000))},
                name=f"forecast/{name}",
            )
            for name in (f"r{number:03}" for number in range(200))
        ]

    plans = [planned(open_source(each, OPTIONS)) for each in (packages(), packages(r100=b"n" * 9))]
    before, after = map(_layers, plans)
    assert len(before) <= MOST_ARTIFACT_LAYERS
    assert sum(map(len, before)) == 200
    (fresh,) = after.keys() - before.keys()
    assert "forecast/r100:model" in after[fresh]
    assert len(fresh) < 15
    # One more function changes one layer, too, whatever its name.
    more = make_package(tmp_path, artifacts={"model": put_artifact(store, b"m")}, name="a")
    grown = _layers(planned(open_source([*packages(), more], OPTIONS)))
    assert len(grown.keys() - before.keys()) == 1


def _layers(plan: ImagePlan) -> dict[tuple[str, ...], tuple[str, ...]]:
    """The names in each artifact layer, by its digests."""
    return {tuple(blob.digest for blob in layer.blobs): layer.names for layer in plan.artifacts}


# Names


def test_two_functions_of_one_name_are_refused_by_their_references(tmp_path: Path) -> None:
    two = [make_package(tmp_path, artifacts={"factor": n}) for n in (1, 2)]
    with pytest.raises(OptionError, match="two functions are named predict") as caught:
        open_source(two, OPTIONS)
    assert all(each in caught.value.message for each in two)


def test_paths_of_the_server_are_refused_as_names(tmp_path: Path) -> None:
    for name in ("docs", "metrics", "readyz", "predict/batch"):
        reference = make_package(tmp_path, name=name)
        with pytest.raises(OptionError, match=f"'{name}' is a path of") as caught:
            open_source(reference, OPTIONS)
        assert name.rpartition("/")[2] in caught.value.hint
    check_names(
        {"batch": open_package(reference).spec, "predict/docs": open_package(reference).spec}
    )


# Environments


def wheel(name: str, version: str, sha256: str = "0" * 64) -> LockedPackage:
    file = f"{name}-{version}-py3-none-any.whl"
    found = WheelFile(name=file, sha256=sha256, url=f"https://packages.example.com/{file}")
    return LockedPackage(name=name, version=version, files=(found,))


def bound(root: Path, name: str, *packages: LockedPackage, **environment: Any) -> str:
    lock = PackageStore(root).put_bytes(write_pylock(packages, LINUX))
    given = {
        "python": "3.11.7", "platform": "linux/amd64", "source": "imports", "lock": lock,
        **environment,
    }  # fmt: skip
    return make_package(root, name=name, environment=EnvironmentSpec(**given))


def test_the_lock_has_every_functions_own_versions(tmp_path: Path) -> None:
    one, other, both = wheel("alpha", "1.0"), wheel("beta", "2.0"), wheel("gamma", "3.0")
    apt = {"system_packages": ("libgomp1",)}
    two = [bound(tmp_path, "f", one, both, **apt), bound(tmp_path, "g", other, both)]
    source = open_source(two, OPTIONS)
    assert source.read_lock() == write_pylock([one, other, both], LINUX)
    assert planned(source).system_packages == ("libgomp1",)
    assert planned(source).labels[LOCK_DIGEST] == source.subject.environment.lock.digest
    # The locks of images do not depend on the functions, but on what they need together.
    again = [two[0], bound(tmp_path, "g", other, both, python="3.11.9")]
    assert open_source(again, OPTIONS).folder == source.folder


@pytest.mark.parametrize(
    ("packages", "environment", "said", "hint"),
    [
        ([wheel("alpha", "2.0")], {}, "alpha: f has 1.0, g has 2.0", "in the uv.lock of f"),
        ([wheel("alpha", "1.0", "1" * 64)], {}, "f and g have different files", "bind both again"),
        ([], {"python": "3.12.1"}, "python: f was bound for 3.11, g for 3.12", "one python"),
        ([], {"platform": "linux/arm64"}, "f was bound for linux/amd64, g for linux/arm64", "one"),
    ],
)  # fmt: skip
def test_what_cannot_be_installed_together_is_refused_by_both_names(
    packages: list[LockedPackage], environment: Any, said: str, hint: str, tmp_path: Path
) -> None:
    reasons = {"reasons": {"alpha": "imported by predict.py:3"}, "source": "uv.lock"}
    two = [bound(tmp_path, "f", wheel("alpha", "1.0"), **reasons)]
    two.append(bound(tmp_path, "g", *packages, **environment))
    with pytest.raises(MfimageError, match=said) as caught:
        open_source(two, OPTIONS)
    assert hint in (caught.value.hint or "")
    if "has 1.0" in said:
        assert isinstance(caught.value, LockError)
        assert "imported by predict.py:3" in (caught.value.hint or "")


# A whole image, without an engine


def test_an_image_of_several_is_built_compared_and_verified(
    three: list[str], tmp_path: Path
) -> None:
    base = write_base(tmp_path / "base")
    places = []
    for number, references in enumerate((three, three[1:])):
        source, place = open_source(references, OPTIONS), tmp_path / f"image{number}"
        with closing(open_oci()) as builder:
            options = BuildOptions(platform="linux/amd64")
            plan = make_plan(
                source.subject, lock=LOCK, base=builder.base(base, "linux/amd64"), options=options
            )
            built = builder.build(plan, source.unverified_file)
            builder.write([built], Location(kind="oci", path=place), ())
        places.append(f"oci:{place}")
    found = inspect(places[0], platform="linux/amd64")
    assert found["functions.count"] == "3"
    assert found["functions"] == {
        (spec := open_package(each).spec).name: spec.digest for each in three
    }
    lines = compare(*places, platform="linux/amd64").to_text()
    assert "- function:forecast/emea" in lines
    options = BuildOptions(platform="linux/amd64", base_image=base, compile=False)
    assert verify(places[0], three, options).same
    with pytest.raises(OptionError, match="holds the functions") as caught:
        verify(places[0], three[1:], options)
    assert "function packages" in caught.value.hint
