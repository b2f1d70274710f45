"""Manifests of every form, written by hand as Metaflow's writer writes them."""

from __future__ import annotations

import hashlib
import json
import subprocess
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mfimage.capture.environment.sources.conda import CondaPackage, Resolution, read_manifest
from mfimage.capture.lock.indexes import OWN_CONFIGURATION
from mfimage.capture.lock.platform import Platform
from mfimage.capture.lock.wheel_urls import lock_urls
from mfimage.errors import LockError
from tests.capture.micromamba import PYTHON, conda_url
from tests.capture.projects import describe, versions
from tests.capture.wheelhouse import Index, Interpreter, serve_index, wheel, write_source

AMD64 = Platform(python="3.11", name="linux/amd64")
X86 = "cp311-cp311-manylinux_2_28_x86_64"
ARM = "cp311-cp311-manylinux2014_aarch64"


def conda(*paths: str) -> list[dict[str, str]]:
    return [{"url": conda_url(path)} for path in ("linux-64/python-3.11.9-h_0.conda", *paths)]


def pypi(*urls: str) -> list[dict[str, Any]]:
    return [{"url": url, "require_build": not url.endswith(".whl")} for url in urls]


def read(platforms: object, *, platform: str = "linux/amd64", **options: Any) -> Resolution | None:
    data = json.dumps({"id": platforms, "other": {}}).encode()
    return read_manifest(data, environment="id", ran_on="osx-arm64", platform=platform, **options)


def test_a_pypi_environment_has_its_wheels_and_nothing_of_conda_but_python() -> None:
    found = read({"linux-64": {"conda": conda(*PYTHON), "pypi": pypi("https://h/a-1.whl")}})
    assert found == Resolution(
        kind="pypi", platform="linux-64", python="3.11.9", urls=("https://h/a-1.whl",)
    )


@pytest.mark.parametrize(
    ("platform", "solved", "chosen"),
    [
        ("linux/amd64", ["linux-64", "osx-arm64"], "linux-64"),
        ("linux/arm64", ["linux-64", "linux-aarch64"], "linux-aarch64"),
        ("linux/arm64", ["linux-64", "osx-arm64"], "osx-arm64"),  # what the task ran on
        ("linux/arm64", ["linux-64"], "linux-64"),
    ],
)
def test_the_platform_that_is_wanted_comes_first(
    platform: str, solved: Sequence[str], chosen: str
) -> None:
    # Python alone is resolved for the machine that started the run, too.
    platforms = {each: {"conda": conda()} for each in ("linux-64", "linux-aarch64", "osx-arm64")}
    for each in solved:
        platforms[each]["pypi"] = []
    found = read(platforms, platform=platform)
    assert found is not None
    assert (found.kind, found.platform) == ("pypi", chosen)


def test_a_conda_environment_has_its_packages_without_what_comes_along() -> None:
    paths = [
        *PYTHON,
        "linux-64/numpy-1.26.4-py311h64a7726_0.conda",
        "linux-64/libblas-3.9.0-31_h59b9bed_openblas.conda",
        "linux-64/_openmp_mutex-4.5-2_gnu.tar.bz2",
        "noarch/typing_extensions-4.13.2-pyh29332c3_0.conda",
        "linux-64/brotli-python-1.1.0-py311hfdbb021_2.conda",
        "linux-64/pytorch-2.6.0-cpu_mkl_py311_h_0.conda",
        "linux-64/ffmpeg-7.1.1-gpl_h127656b_906.conda",
        "linux-64/zstd-1.5.7-hb8e6e7a_2.conda",
    ]
    found = read({"linux-64": {"conda": conda(*paths)}})
    assert found is not None
    assert [(str(each), each.requirement) for each in found.packages] == [
        ("numpy 1.26.4", "numpy==1.26.4"),
        ("typing_extensions 4.13.2", "typing-extensions==4.13.2"),
        ("brotli-python 1.1.0", "brotli==1.1.0"),
        ("pytorch 2.6.0", "torch==2.6.0"),
        ("ffmpeg 7.1.1", None),
    ]
    named = read({"linux-64": {"conda": conda(*paths)}}, requested=["libblas"])
    assert named is not None
    assert {str(each) for each in set(named.packages) - set(found.packages)} == {"libblas 3.9.0"}


def test_an_environment_that_is_not_there() -> None:
    assert read({}) is None
    assert read_manifest(b"{}", environment="x", ran_on="linux-64", platform="linux/amd64") is None


@pytest.mark.parametrize(
    "platforms",
    [
        {"linux-64": {}},
        {"linux-64": {"conda": [{"url": conda_url("linux-64/pip-25-py_0.conda")}]}},
        {"linux-64": {"conda": conda("linux-64/odd.zip")}},
        {"linux-64": {"conda": conda(), "pypi": ["https://h/a.whl"]}},
        {"linux-64": "conda"},
        ["linux-64"],
    ],
)
def test_a_manifest_that_is_not_as_metaflow_writes_it(platforms: object) -> None:
    with pytest.raises(LockError, match=r"conda\.manifest is not as Metaflow writes it") as caught:
        read(platforms)
    assert caught.value.hint


def package(name: str, version: str = "1.0", build: str = "py311h_0") -> CondaPackage:
    return CondaPackage(name=name, version=version, build=build)


def resolve(kind: str = "pypi", at: str = "linux-64", **more: Any) -> Resolution:
    return Resolution(kind=kind, platform=at, python="3.11.9", **more)


def test_all_conda_packages_without_a_wheel_are_named(
    bare: Interpreter, project: Path, index: Index
) -> None:
    index.add(wheel("numeric"), wheel("old", tag=ARM))
    packages = (
        package("numeric"),
        package("old"),
        package("gone_kit"),
        package("numeric", "9.0"),
        package("ffmpeg", "7.1", "gpl_h_906"),
    )
    with pytest.raises(LockError) as caught:
        describe(bare, project, resolution=resolve("conda", packages=packages))
    assert caught.value.message == (
        "the step's @conda has packages that have no wheel: "
        "ffmpeg 7.1, gone_kit 1.0, numeric 9.0, old 1.0"
    )
    assert caught.value.hint


def place(index: Index, name: str, data: bytes) -> str:
    index.add((name, data))
    return f"{index.url.removesuffix('/simple')}/files/{name}"


def lock(*urls: str) -> list[dict[str, Any]]:
    plain = lock_urls(urls, AMD64, index=OWN_CONFIGURATION, directory=Path.cwd())
    return sorted(plain["packages"], key=lambda each: str(each["name"]))


def test_the_index_says_the_hash_and_what_it_does_not_list_is_fetched(index: Index) -> None:
    with serve_index() as elsewhere:
        listed = place(index, *wheel("listed", "1.0+cpu"))
        other = place(elsewhere, *wheel("other", requires=["absent"]))
        same_name = place(elsewhere, *wheel("twin", files={"twin.py": "mine"}))
        index.add(wheel("twin", files={"twin.py": "theirs"}), wheel("listed", "2.0"))
        found = lock(listed.replace("+", "%2B"), other, same_name)
        assert [each["name"] for each in found] == ["listed", "other", "twin"]
        assert not [each for each in index.requests if "/files/" in each]
        for each, url in zip(found[1:], (other, same_name), strict=True):
            data = elsewhere.files[url.rpartition("/")[2]]
            assert each["archive"]["hashes"]["sha256"] == hashlib.sha256(data).hexdigest()
        (table,) = found[0]["wheels"]
        data = index.files[listed.rpartition("/")[2]]
        assert table["hashes"]["sha256"] == hashlib.sha256(data).hexdigest()
        assert len([each for each in elsewhere.requests if "/files/" in each]) == 2


def test_a_wheel_that_is_gone_or_does_not_fit(index: Index) -> None:
    gone = f"{index.url.removesuffix('/simple')}/files/gone-1.0-py3-none-any.whl"
    with pytest.raises(LockError, match=r"(?s)gone-1\.0-py3-none-any\.whl.*404 Not Found"):
        lock(gone)
    with pytest.raises(LockError, match=r"^fast 1\.0 is fast-1\.0-.*aarch64\.whl, which does not"):
        lock(place(index, *wheel("fast", tag=ARM)))


def test_credentials_in_a_url_of_the_manifest_go_no_further(
    bare: Interpreter, project: Path, index: Index
) -> None:
    with serve_index(login=("robot", "s3cretW0rd")) as private:
        (project / "predict.py").write_text("import mine\n")
        url = place(private, *wheel("mine"))
        found = describe(bare, project, resolution=resolve(urls=(url,)))
        assert b"s3cretW0rd" not in found.lock.data
        assert url.partition("@")[2].encode() in found.lock.data
        del private.files["mine-1.0-py3-none-any.whl"]
        with pytest.raises(LockError) as caught:
            describe(bare, project, resolution=resolve(urls=(url.replace("mine-1", "mine-2"),)))
    assert "s3cretW0rd" not in f"{caught.value} {caught.value.hint}"


def test_what_a_step_took_from_git_is_built_at_that_commit(
    bare: Interpreter, project: Path, index: Index, tmp_path: Path
) -> None:
    (project / "predict.py").write_text("import mine\n")
    source = write_source(tmp_path / "mine", "mine")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-C", str(source)]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    (source / "mine.py").write_text("X = 2\n")
    subprocess.run([*git, "commit", "-qam", "two"], check=True)
    urls = (f"git+{source.as_uri()}@{head.stdout.strip()}",)
    found = describe(bare, project, resolution=resolve(urls=urls))
    (built,) = found.lock.wheels.values()
    assert built.name == "mine-1.0-py3-none-any.whl"
    assert zipfile.ZipFile(built).read("mine.py") == b"X = 1\n"


def test_for_another_platform_the_versions_are_kept(
    bare: Interpreter, project: Path, index: Index
) -> None:
    (project / "predict.py").write_text("import fast\n")
    url = place(index, *wheel("fast", tag="cp311-cp311-macosx_11_0_arm64"))
    index.add(wheel("fast", tag=X86), wheel("fast", tag=ARM), wheel("fast", "2.0"))
    resolution = resolve(at="osx-arm64", urls=(url,))
    found = describe(bare, project, resolution=resolution, platform="linux/arm64")
    assert versions(found)["fast"] == "1.0"
    assert ARM in found.lock.data.decode()
    del index.files[f"fast-1.0-{ARM}.whl"]
    with pytest.raises(LockError, match=r"(?s)fast==1\.0 has no wheel"):
        describe(bare, project, resolution=resolution, platform="linux/arm64")


def test_a_step_that_the_loader_rejects(bare: Interpreter, project: Path, index: Index) -> None:
    (project / "predict.py").write_text("import numeric\n")
    url = place(index, *wheel("pydantic", "1.10"))
    with pytest.raises(LockError, match=r"^the step's @pypi locks pydantic 1\.10, and mfimage's"):
        describe(bare, project, resolution=resolve(urls=(url,)))
    index.add(wheel("orjson", "4.0", requires=["numeric>=2"]), wheel("numeric", "2.0"))
    del index.files["orjson-3.10-py3-none-any.whl"]
    url = place(index, *wheel("numeric"))
    with pytest.raises(LockError, match=r"(?s)^what mfimage's loader needs .*numeric==1\.0"):
        describe(bare, project, resolution=resolve(urls=(url,)))
