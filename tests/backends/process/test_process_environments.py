"""Interpreters and environments: found, made once, whole or absent."""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mfimage.backends.choice import open_backend
from mfimage.backends.process import environments
from mfimage.backends.process.environments import (
    environment_python,
    find_interpreter,
    runtime_folder,
)
from mfimage.capture.lock.platform import Platform
from mfimage.capture.lock.pylock import LockedPackage, WheelFile, write_pylock
from mfimage.capture.lock.solve import lock_requirements
from mfimage.copy import copy_package
from mfimage.errors import BackendError, LockError, StorageError
from mfimage.load import function_from_json
from mfimage.package.storage.blobs import BlobCache
from mfimage.package.storage.cache import cache_folder, make_once
from mfimage.package.store import Package
from tests.backends.process_support import NEEDED, PYTHON, Packages
from tests.support.s3 import Bucket

pytestmark = pytest.mark.slow

pytest_plugins = ["tests.backends.process_fixtures"]

MINOR = "{}.{}".format(*sys.version_info)
ECHO = """
@json_function
def predict(data: dict) -> dict:
    return data
"""
MAKE = """
import logging, sys
logging.basicConfig(level=logging.INFO)
from mfimage.backends.process.environments import environment_python
from mfimage.package.store import open_package
print(environment_python(open_package(sys.argv[1])))
"""


@pytest.fixture
def fresh_cache(
    process_packages: Packages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    monkeypatch.setenv("MFIMAGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _make(package: Package) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", MAKE, package.reference],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _folders(cache: Path) -> list[Path]:
    return [path for path in (cache / "environments").iterdir() if path.is_dir()]


def test_environment_is_what_is_locked(process_packages: Packages, fresh_cache: Path) -> None:
    package = process_packages.write(ECHO)
    python = environment_python(package)
    listed = subprocess.check_output(
        [
            *(python, "-I", "-c"),
            "import importlib.metadata as m\nfor d in m.distributions(): print(d.name, d.version)",
        ],
        text=True,
    )
    names = {line.split()[0].lower().replace("_", "-") for line in listed.splitlines()}
    assert names == set(NEEDED)
    (folder,) = _folders(fresh_cache)
    assert folder.name == f"{package.spec.environment.lock.hex[:32]}-py{MINOR}-linux-amd64"
    assert environment_python(package) == python


def test_many_processes_make_one_environment(process_packages: Packages, fresh_cache: Path) -> None:
    package = process_packages.write(ECHO)
    makers = [_make(package) for _ in range(8)]
    ends = [maker.communicate(timeout=60) for maker in makers]
    assert {maker.returncode for maker in makers} == {0}
    assert len({out for out, _ in ends}) == 1
    assert sum("making the environment" in err for _, err in ends) == 1
    assert len(_folders(fresh_cache)) == 1


def test_killed_while_making_an_environment(process_packages: Packages, fresh_cache: Path) -> None:
    package = process_packages.write(ECHO)
    for moment in (0, 0.05, 0.15):
        maker = _make(package)
        limit = time.monotonic() + 20
        while not list((fresh_cache / "environments").glob(".*.partial-*")):
            assert time.monotonic() < limit
            time.sleep(0.001)
        time.sleep(moment)
        maker.kill()
        maker.communicate()
        whole = [path for path in _folders(fresh_cache) if not path.name.startswith(".")]
        assert all((path / "bin" / "python").exists() for path in whole)
        for path in whole:
            shutil.rmtree(path)
    python = environment_python(package)
    assert subprocess.call([python, "-I", "-c", "import pydantic, orjson"]) == 0
    assert len(_folders(fresh_cache)) == 1


def test_interpreter_that_is_gone(process_packages: Packages, fresh_cache: Path) -> None:
    package = process_packages.write(ECHO)
    python = environment_python(package)
    python.unlink()
    python.symlink_to("/nowhere/python")
    assert environment_python(package) == python
    assert subprocess.call([python, "-I", "-c", "import pydantic"]) == 0


def test_wheel_that_is_not_what_the_lock_says(
    process_packages: Packages, fresh_cache: Path
) -> None:
    good = process_packages.environment()
    locked = process_packages.store.read_blob(good.lock).decode()
    ref = next(iter(good.wheels.values()))
    bad = locked.replace(ref.hex, "0" * 64).encode()
    package = process_packages.write(
        ECHO, environment=process_packages.environment(lock=process_packages.store.put_bytes(bad))
    )
    with pytest.raises(LockError, match="environment cannot be made") as caught:
        environment_python(package)
    assert "0000" in str(caught.value)
    assert _folders(fresh_cache) == []


def test_distribution_that_cannot_be_fetched(process_packages: Packages, fresh_cache: Path) -> None:
    target = Platform(python=PYTHON, name="linux/amd64")
    url = "https://user:secret@127.0.0.1:9/a-1-py3-none-any.whl"
    file = WheelFile(name="a-1-py3-none-any.whl", sha256="0" * 64, url=url)
    lock = write_pylock([LockedPackage(name="a", version="1", files=(file,))], target)
    environment = process_packages.environment(lock=process_packages.store.put_bytes(lock))
    package = process_packages.write(ECHO, environment=environment)
    with pytest.raises(LockError, match="environment cannot be made") as caught:
        environment_python(package)
    assert "secret" not in f"{caught.value} {caught.value.hint}"


def test_lock_for_another_platform(process_packages: Packages) -> None:
    environment = process_packages.environment(platform="linux/arm64")
    package = process_packages.write(ECHO, environment=environment)
    with pytest.raises(BackendError, match="locked for linux/arm64, and this is linux/amd64"):
        environment_python(package)


def test_cache_that_cannot_be_written(
    process_packages: Packages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MFIMAGE_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="cannot write") as caught:
        environment_python(process_packages.write(ECHO))
    assert "MFIMAGE_CACHE" in str(caught.value.hint)


def test_make_once_leaves_nothing_when_it_fails(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        make_once(tmp_path / "x" / "y", fail)
    assert [path.name for path in (tmp_path / "x").iterdir()] == [".y.lock"]


def test_runtime_folder_is_mended(process_packages: Packages, fresh_cache: Path) -> None:
    folder = runtime_folder()
    (folder / "mfimage" / "errors.py").unlink()
    (folder / "mfimage" / "runtime" / "settings.py").write_text("changed")
    assert runtime_folder() == folder
    assert "changed" not in (folder / "mfimage" / "runtime" / "settings.py").read_text()[:20]
    assert (folder / "mfimage" / "errors.py").exists()


SUM = """
@json_function
def predict(data: dict, params: FunctionParameters) -> dict:
    return {"y": data["x"] + params.a, "size": len(params.b)}
"""


def test_a_function_of_a_root_that_is_not_local(
    process_packages: Packages, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Environment and artifacts come from the bucket; what workers read stays in the cache."""
    local = process_packages.write(SUM, artifacts={"a": 1, "b": b"x" * 3_000_000})
    reference = copy_package(local.reference, f"{bucket.url}/root")
    monkeypatch.setenv("MFIMAGE_CACHE_SIZE", "0")
    with function_from_json(reference, backend="process") as function:
        blobs = cache_folder() / "blobs" / "sha256"
        used = {path.name for path in blobs.iterdir()}
        assert {ref.hex for ref in local.spec.artifacts.values()} <= used
        BlobCache().trim()
        assert function({"x": 2}) == {"y": 3, "size": 3_000_000}
    del function
    gc.collect()
    assert list(blobs.iterdir()) == []


@pytest.mark.index
@pytest.mark.parametrize("minor", ["3.10", "3.12", "3.13"])
def test_function_of_another_python(
    process_packages: Packages, minor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        find_interpreter(minor)
    except BackendError as error:
        pytest.skip(str(error))
    monkeypatch.delenv("UV_OFFLINE")
    monkeypatch.delenv("UV_CACHE_DIR")
    lock = lock_requirements(
        ["pydantic", "orjson"],
        platform=Platform(python=minor, name=environments.this_platform()),
    )
    environment = process_packages.environment(
        python=f"{minor}.0", lock=process_packages.store.put_bytes(lock.data), wheels={}
    )
    package = process_packages.write(
        """
        @json_function
        def predict(data: dict) -> list:
            return list(sys.version_info[:2])
        """,
        environment=environment,
    )
    backend = open_backend(package)
    assert backend({}) == [int(part) for part in minor.split(".")]
    backend.close()
