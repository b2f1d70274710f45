"""A function's lock for another platform than the one that it was bound for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mfimage.capture.lock.indexes import OWN_CONFIGURATION, IndexOptions
from mfimage.capture.lock.platform import Platform
from mfimage.capture.lock.solve import Lock, lock_for_target, lock_requirements
from mfimage.errors import LockError
from tests.capture.wheelhouse import Index, serve_index, wheel, write_source

X86 = "cp311-cp311-manylinux_2_28_x86_64"
ARM = "cp311-cp311-manylinux2014_aarch64"
TAGS = {"linux/amd64": X86, "linux/arm64": ARM}
AMD64, ARM64 = TAGS


def lock(
    *requirements: str, platform: str = AMD64, index: IndexOptions = OWN_CONFIGURATION
) -> Lock:
    """Lock as binding does: every package with the index that it came from."""
    return lock_requirements(
        requirements, platform=Platform(python="3.11.7", name=platform), index=index
    )


def target_lock(data: bytes, *extra: str, platform: str, python: str = "3.11.2") -> Lock:
    return Lock(data=lock_for_target(data, extra=extra, python=python, platform=platform))


def versions(locked: Lock) -> dict[str, str]:
    return {package.name: package.version for package in locked.packages}


@pytest.fixture
def both(index: Index) -> Index:
    """An index with a model for both platforms, and newer versions of everything."""
    x86_only, arm_only = "platform_machine == 'x86_64'", "platform_machine == 'aarch64'"
    for tag in TAGS.values():
        index.add(wheel("fast", tag=tag), wheel("fast", "2.0", tag=tag))
    index.add(wheel("mkl", tag=X86), wheel("neon", tag=ARM), wheel("pure"))
    index.add(wheel("model", requires=["fast", f"mkl; {x86_only}", f"neon; {arm_only}", "pure"]))
    index.add(wheel("model", "2.0"), wheel("pure", "2.0"), wheel("server", requires=["pure"]))
    return index


@pytest.mark.parametrize(("bound", "built"), [(AMD64, ARM64), (ARM64, AMD64)])
def test_the_same_versions_with_the_wheels_of_the_other_platform(
    both: Index, bound: str, built: str
) -> None:
    pins = ("model==1.0", "fast==1.0", "pure==1.0")
    function = lock(*pins, platform=bound)
    joined = target_lock(function.data, "server", platform=built)
    expected = lock(*pins, "server", platform=built)
    assert versions(joined) == versions(expected)
    assert ("mkl" in versions(joined)) == (built == AMD64)
    names = {package.name: [file.name for file in package.files] for package in joined.packages}
    assert names["fast"] == [f"fast-1.0-{TAGS[built]}.whl"]
    back = target_lock(joined.data, platform=bound)
    assert versions(back) == versions(target_lock(function.data, "server", platform=bound))
    assert target_lock(function.data, platform=bound).data == function.data


def test_what_has_no_wheel_there_is_named(both: Index) -> None:
    both.add(wheel("only", tag=X86))
    function = lock("model==1.0", "only")
    with pytest.raises(LockError) as caught:
        target_lock(function.data, platform=ARM64)
    message = caught.value.message
    assert message.startswith("the function is locked for linux/amd64, and its versions cannot be")
    assert "only==1.0 has no wheels with a matching platform tag" in message
    assert caught.value.hint == "build for linux/amd64, or bind with versions that both have"
    # Also when another package requires it.
    del both.files[f"fast-1.0-{ARM}.whl"]
    with pytest.raises(
        LockError, match=r"(?s)cannot be locked for linux/arm64.*fast==1\.0 has no wheels"
    ):
        target_lock(lock("model==1.0", "fast==1.0").data, platform=ARM64)


def test_wheels_in_the_package(both: Index, tmp_path: Path) -> None:
    source = write_source(tmp_path / "mine", "mine")
    function = lock(str(source), "fast==1.0")
    joined = target_lock(function.data, platform=ARM64)
    assert versions(joined) == {"fast": "1.0", "mine": "1.0"}
    assert b'path = "wheels/mine-1.0-py3-none-any.whl"' in joined.data
    name, data = wheel("compiled", tag=X86)
    (tmp_path / name).write_bytes(data)
    function = lock(f"compiled @ {(tmp_path / name).as_uri()}")
    with pytest.raises(LockError, match=rf"^{name} is in the function package, and does not fit"):
        target_lock(function.data, platform=ARM64)


def test_another_python_is_still_refused(both: Index) -> None:
    function = lock("fast==1.0")
    with pytest.raises(LockError, match=r"requires Python ==3\.11\.\*, and the function runs on"):
        target_lock(function.data, platform=ARM64, python="3.12")


@pytest.fixture
def pytorch(both: Index) -> Iterator[Index]:
    """A further index with builds for CPUs, and with old versions of what the default one has."""
    both.add(wheel("torch", "2.9", requires=["cuda"]), wheel("cuda"))
    with serve_index() as index:
        for tag in TAGS.values():
            index.add(wheel("torch", "2.5.1+cpu", requires=["fast"], tag=tag))
            index.add(wheel("fast", "0.9", tag=tag))
        yield index


@pytest.mark.parametrize("platform", [AMD64, ARM64])
def test_pytorch_for_cpus_keeps_its_index(pytorch: Index, both: Index, platform: str) -> None:
    options = IndexOptions(extra_index_urls=(pytorch.url,))
    pins = ("torch==2.5.1+cpu", "fast==1.0", "pure==1.0")
    function = lock(*pins, index=options)
    (torch,) = [package for package in function.packages if package.name == "torch"]
    assert torch.index == pytorch.url
    assert f'index = "{pytorch.url}"' in function.data.decode()
    # Whoever builds for another platform need not name the index again.
    joined = target_lock(function.data, "server", platform=platform)
    files = {package.name: package.files[0] for package in joined.packages}
    assert versions(joined) == {**versions(function), "server": "1.0"}
    assert "cuda" not in files
    assert TAGS[platform] in files["torch"].name
    assert str(files["torch"].url).startswith(pytorch.url.removesuffix("/simple"))
    assert str(files["fast"].url).startswith(both.url.removesuffix("/simple"))


def test_the_index_of_most_packages_is_asked_last(
    both: Index, pytorch: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the default index of who builds is not that of who bound."""
    options = IndexOptions(extra_index_urls=(pytorch.url,))
    function = lock("torch==2.5.1+cpu", "model==1.0", "fast==1.0", index=options)
    with serve_index() as empty:
        monkeypatch.setenv("UV_DEFAULT_INDEX", empty.url)
        joined = target_lock(function.data, platform=ARM64)
    assert versions(joined)["model"] == "1.0"
