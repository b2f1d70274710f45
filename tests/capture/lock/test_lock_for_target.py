"""A serving target joins a function's lock."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path

import pytest

from mfimage.capture.lock.platform import Platform
from mfimage.capture.lock.solve import Lock, lock_for_target, lock_requirements
from mfimage.errors import LockError
from tests.capture.wheelhouse import Index, sdist, wheel, write_source

AMD64 = Platform(python="3.11.7", name="linux/amd64")


def lock(*requirements: str) -> Lock:
    return lock_requirements(requirements, platform=AMD64)


def extend(data: bytes, *extra: str) -> bytes:
    return lock_for_target(data, extra=extra, python="3.11.2", platform="linux/amd64")


def versions(data: bytes) -> dict[str, str]:
    return {package.name: package.version for package in Lock(data=data).packages}


@pytest.fixture
def function_lock(index: Index) -> bytes:
    index.add(wheel("base"), wheel("model", requires=["base"]))
    data = lock("model").data
    index.add(wheel("base", "2.0"), wheel("server", requires=["base", "loop"]), wheel("loop"))
    return data


def test_a_target_joins_and_nothing_of_the_function_changes(function_lock: bytes) -> None:
    joined = extend(function_lock, "server")
    assert versions(joined) == {"base": "1.0", "loop": "1.0", "model": "1.0", "server": "1.0"}
    blocks = set(joined.decode().split("\n\n"))
    assert set(function_lock.decode().rstrip().split("\n\n")) <= {each.rstrip() for each in blocks}
    assert extend(joined, "server") == joined


def test_a_target_that_disagrees(function_lock: bytes, index: Index) -> None:
    index.add(wheel("server", "2.0", requires=["base>=2"]))
    with pytest.raises(LockError) as caught:
        extend(function_lock, "server>=2")
    assert caught.value.message.startswith("the target cannot be added to the function's lock: ")
    assert re.search(
        r"server[>=]=2\.0 depends on base>=2 and base==1\.0", " ".join(caught.value.message.split())
    )


def test_a_file_that_was_replaced_on_the_index(
    function_lock: bytes, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, data = wheel("base", files={"base.py": "evil = 1\n"})
    old, new = (hashlib.sha256(each).hexdigest() for each in (index.files[name], data))
    index.add((name, data))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "fresh"))
    with pytest.raises(LockError, match=r"base 1\.0") as caught:
        extend(function_lock, "server")
    assert old in caught.value.message
    assert new in caught.value.message


def test_wheels_that_travel_pass_through_a_target(index: Index, tmp_path: Path) -> None:
    source = write_source(tmp_path / "base", "base", version="1.5")
    data = lock(str(source)).data
    shutil.rmtree(source)
    index.add(wheel("base", "2.0"), wheel("server", requires=["base>=1"]))
    joined = extend(data, "server")
    assert versions(joined) == {"base": "1.5", "server": "1.0"}
    assert b'path = "wheels/base-1.5-py3-none-any.whl"' in joined
    assert str(tmp_path).encode() not in joined
    index.add(wheel("server", "3.0", requires=["base>=2"]))
    with pytest.raises(LockError, match=r"base"):
        extend(data, "server==3.0")


def test_a_target_for_another_python_is_refused(function_lock: bytes) -> None:
    with pytest.raises(LockError, match=r"runs on 3\.12"):
        lock_for_target(function_lock, extra=[], python="3.12", platform="linux/amd64")


def test_a_target_that_needs_building_is_refused(
    function_lock: bytes, index: Index, tmp_path: Path
) -> None:
    index.add(sdist(write_source(tmp_path / "old", "old"), "old"))
    with pytest.raises(LockError, match="the target needs old, which has no wheel"):
        extend(function_lock, "old")
