"""What a pipeline runs: build, plan, diff; what they print, write, and exit with."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result

from mfimage.cli import main
from mfimage.image.plan.lock import target_lock
from mfimage.image.plan.options import BuildOptions
from mfimage.image.plan.subject import function_source
from mfimage.image.registry.reference import parse_tag
from mfimage.package.storage.cache import read_only
from mfimage.package.store import PackageStore, open_package
from mfimage.push import push as push_image
from tests.image.sample import LOCK, Sample, make_sample
from tests.image.tiny import write_base
from tests.support.quirks import quirky


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without an engine, in an empty folder; nothing has to be locked."""
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    monkeypatch.setattr("mfimage.image.build.target_lock", lambda *_: LOCK)
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    write_base(folder / "base")
    return folder


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    return make_sample(tmp_path / "blobs")


def package(sample: Sample) -> str:
    """Write the sample as a function package."""
    store = PackageStore("root")
    spec = sample.spec()
    for ref in spec.blobs.values():
        store.put_file(sample.blobs.path(ref))
    return store.write(replace(spec))


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output
    return result


def build(reference: str, *more: str, command: str = "build", code: int = 0) -> Result:
    base = ("--base-image", "oci:base", "--platform", "linux/amd64", "--output", "oci:out")
    return run(command, reference, *base, *more, code=code)


def test_a_build_says_all_there_is_to_know(sample: Sample) -> None:
    arguments = ("-t", "team/predict:1", "--json", "--iidfile", "iid", "--metadata-file", "meta")
    found = json.loads(build(package(sample), *arguments).stdout)
    assert found["function"] == {"name": "predict", "digest": sample.spec().digest}
    assert found["builder"] == "oci"
    assert found["lock"].startswith("sha256:")
    assert found["base"].startswith("oci:base")
    assert found["tags"] == ["team/predict:1"]
    assert set(found["timings"]) >= {"plan", "build", "scan", "write"}
    (image,) = found["platforms"]
    assert image["digest"] == found["digest"]
    assert image["base"]["digest"].startswith("sha256:")
    names = ["base", "dependencies", "artifact:model", "artifact:feature_names", "runtime", "code"]
    assert [layer["name"] for layer in image["layers"]] == names
    for layer in image["layers"]:
        assert layer["digest"].startswith("sha256:")
        assert layer["size"] > 0
        assert layer["reason"]
    assert Path("iid").read_text() == found["id"]
    meta = json.loads(Path("meta").read_text())
    assert meta["containerimage.digest"] == found["digest"]
    assert meta["containerimage.config.digest"] == found["id"]
    assert meta["image.name"] == "team/predict:1"
    assert meta["mfimage"] == found
    again = json.loads(build(package(sample), "--json").stdout)
    assert all(layer["cached"] for layer in again["platforms"][0]["layers"])


def test_two_platforms_are_told_apart(sample: Sample) -> None:
    reference = package(sample)
    result = run("build", reference, "--base-image", "oci:base", "--output", "oci:out",
                 "--platform", "linux/amd64,linux/arm64", code=1)  # fmt: skip
    assert "linux/arm64" in result.stderr, "the base has none"


def test_a_build_keeps_to_its_budget(sample: Sample) -> None:
    sample.artifacts = {"model": bytes(range(256)) * 2000, "tiny": b"1"}
    reference = package(sample)
    build(reference, "--max-size", "100MB")
    result = build(reference, "--max-size", "1kB", "--iidfile", "iid", code=1)
    assert "max-size: the image for linux/amd64 has" in result.stderr
    assert "artifact model" in result.stderr
    assert not Path("iid").exists()


def test_a_dry_run_builds_nothing(sample: Sample, cache: Path) -> None:
    reference = package(sample)
    text = build(reference, "--dry-run").stdout
    assert "new      artifact:model" in text
    assert not Path("out").exists()
    assert not (cache / "layers" / "inputs").exists()
    (found,) = json.loads(build(reference, "--dry-run", "--json").stdout)
    assert found["changed"] is True


@pytest.mark.parametrize(
    "command", [("plan",), ("build", "--dry-run"), ("build", "--dry-run", "--push")]
)
def test_a_plan_writes_nothing(
    sample: Sample, cache: Path, here: Path, command: tuple[str, ...]
) -> None:
    reference = package(sample)
    with quirky() as registry:
        tag = f"{registry.address}/team/base:1"
        push_image("oci:base", [parse_tag(tag)])
        before = {path: path.stat().st_mtime_ns for path in (*here.rglob("*"), *cache.rglob("*"))}
        name = ("-t", f"{registry.address}/team/fn:1")
        run(
            command[0],
            reference,
            "--base-image",
            tag,
            "--platform",
            "linux/amd64",
            *name,
            *command[1:],
        )
        after = {path: path.stat().st_mtime_ns for path in (*here.rglob("*"), *cache.rglob("*"))}
        assert after == before
        assert not [
            path for method, path, _ in registry.requests if "/fn/" in path and method != "GET"
        ]


def test_a_plan_for_the_docker_builder_pulls_no_base(
    sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker = SimpleNamespace(
        name="docker", close=lambda: None, find=lambda *_: None,
        base=lambda *_: pytest.fail("it would be pulled"),
    )  # fmt: skip
    monkeypatch.setattr("mfimage.image.builders._docker_builder", lambda *_: docker)
    with quirky() as registry:
        tag = f"{registry.address}/team/base:1"
        push_image("oci:base", [parse_tag(tag)])
        arguments = ("--base-image", tag, "--platform", "linux/amd64", "--builder", "docker")
        text = run("plan", package(sample), *arguments).stdout
    assert tag in next(line for line in text.splitlines() if line.startswith("new      base"))


def test_a_plan_keeps_no_lock(sample: Sample, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mfimage.image.plan.lock._solve", lambda *_: LOCK)
    opened = open_package(package(sample))
    options = BuildOptions()
    for reading in (True, False):
        with read_only() if reading else nullcontext():
            assert (
                target_lock(function_source(opened), options, "linux/amd64", lambda _: None) == LOCK
            )
        assert [*Path("root").rglob("locks"), *cache.rglob("locks")].__len__() == (
            0 if reading else 2
        )


def test_an_image_beside_a_folder_of_its_name(here: Path) -> None:
    (here / "iris").mkdir()
    assert "no image 'iris'" in run("inspect", "iris", code=1).stderr


def test_a_plan_says_why(sample: Sample) -> None:
    build(package(sample))
    sample.artifacts = {**sample.artifacts, "model": b"a new one"}
    reference = package(sample)
    text = build(reference, command="plan").stdout
    assert "compared with oci:out" in text
    lines = {line.split()[1]: line.split()[0] for line in text.splitlines()[1:] if line[0] != " "}
    assert lines["artifact:model"] == "changed"
    assert lines["artifact:feature_names"] == "same"
    assert lines["dependencies"] == "same"


def test_differences_by_exit_code(sample: Sample) -> None:
    build(package(sample))
    assert "no differences" in run("diff", "oci:out", "oci:out", "--exit-code").stdout
    sample.code = {"predict.py": b"changed = 1\n"}
    run("build", package(sample), "--base-image", "oci:base", "--output", "oci:other")
    assert "~ predict.py" in run("diff", "oci:out", "oci:other").stdout
    found = json.loads(run("diff", "oci:out", "oci:other", "--exit-code", "--json", code=3).stdout)
    assert [each["name"] for each in found["changes"]["code"]] == ["predict.py"]
    assert found["same"] is False
    assert "oci:absent" in run("diff", "oci:out", "oci:absent", code=1).stderr


@pytest.mark.parametrize("name", ["predict:1", "0" * 64, f"sha256:{'0' * 64}"])
def test_an_image_that_is_nowhere(name: str) -> None:
    result = run("inspect", name, code=1)
    assert f"no image {name!r}" in result.stderr
    assert "/nowhere/docker.sock" in result.stderr, "it says that there is no engine"
