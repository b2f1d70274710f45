"""A function's locked environment, and mfimage's runtime, as folders that an interpreter sees."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import sys
from pathlib import Path

import mfimage
from mfimage.backends.interpreters import find_interpreter
from mfimage.capture.indexes import OWN_CONFIGURATION
from mfimage.capture.uv import run_uv
from mfimage.capture.uv_errors import UvFailure, explain
from mfimage.errors import BackendError, LockError
from mfimage.package.storage.cache import cache_folder, make_once
from mfimage.package.store import Package
from mfimage.runtime import lifeline
from mfimage.runtime.layout import RUNTIME_FILES

logger = logging.getLogger(__name__)
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


def environment_python(package: Package) -> Path:
    """Return the interpreter of a function's own environment, made when it is not there yet.

    The environment is a virtual one, made by uv from the lock; every file is verified. It is kept
    under the user's cache folder, by the lock's digest, Python's minor and the platform.

    Raises
    ------
    BackendError
        When the lock is for another platform, or no Python of its minor is here.
    LockError
        When a distribution cannot be had, or is not what the lock says.
    StorageError
        When the cache cannot be written.
    """
    spec = package.spec.environment
    here = this_platform()
    if spec.platform != here:
        raise BackendError(
            f"{package.spec.name} is locked for {spec.platform}, and this is {here}",
            hint="bind it for this platform, or run its image",
        )
    name = f"{spec.lock.hex[:32]}-py{spec.python_minor}-{here.replace('/', '-')}"
    folder = cache_folder() / "environments" / name
    make_once(folder, lambda fresh: _install(package, fresh), is_whole=_runs)
    return folder / "bin" / "python"


def this_platform() -> str:
    """Return this machine's platform, as locks name it: ``linux/amd64``."""
    machine = platform.machine()
    return f"{sys.platform}/{_MACHINES.get(machine, machine)}"


def _runs(folder: Path) -> bool:
    # The interpreter that a virtual environment stands on may be gone.
    return (folder / "bin" / "python").exists()


def _install(package: Package, fresh: Path) -> None:
    spec = package.spec.environment
    base = find_interpreter(spec.python_minor)
    logger.info("making the environment of %s with %s", package.spec.name, base)
    lock, python = fresh / "lock", fresh / "bin" / "python"
    (lock / "wheels").mkdir(parents=True)
    (lock / "pylock.toml").write_bytes(package.read(spec.lock))
    for name, ref in spec.wheels.items():
        with (lock / "wheels" / name).open("wb") as file:
            file.writelines(package.store.stream_blob(ref))
    venv = ["venv", "--quiet", "--no-project", "--allow-existing", "--relocatable"]
    _run_uv([*venv, "--python", str(base), str(fresh)], fresh, base)
    install = ["pip", "install", "--quiet", "--require-hashes", "--no-build"]
    _run_uv([*install, "--python", str(python), "-r", str(lock / "pylock.toml")], lock, base)
    shutil.rmtree(lock)


def _run_uv(arguments: list[str], folder: Path, python: Path) -> None:
    """Run uv, which ends when this process does; any interpreter sees to that."""
    environment = OWN_CONFIGURATION.environment(os.environ, folder)
    environment |= {"UV_PREVIEW_FEATURES": "pylock", "UV_PYTHON_DOWNLOADS": "never"}
    for name in ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME"):
        environment.pop(name, None)
    reader, writer = os.pipe()
    tied = [str(python), "-I", "-S", lifeline.__file__, str(reader)]
    try:
        run_uv(arguments, folder, environment, prefix=tied, pass_fds=[reader])
    except UvFailure as failure:
        error = explain(failure)
        message = f"the environment cannot be made: {error.message}"
        raise LockError(message, hint=error.hint) from None
    finally:
        os.close(reader)
        os.close(writer)


def runtime_folder() -> Path:
    """Return a folder with the part of mfimage that runs beside a function, and nothing else."""
    root = Path(mfimage.__file__).parent.parent
    found = sorted({path for pattern in RUNTIME_FILES for path in root.glob(pattern)})
    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in found}
    hasher = hashlib.sha256()
    for name, content in files.items():
        hasher.update(f"{name}\0{len(content)}\0".encode() + content)

    def fill(fresh: Path) -> None:
        for name, content in files.items():
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            (fresh / name).write_bytes(content)

    def is_whole(folder: Path) -> bool:
        # Caches are cleaned by half, and changed.
        try:
            return all((folder / name).read_bytes() == files[name] for name in files)
        except OSError:
            return False

    return make_once(cache_folder() / "runtime" / hasher.hexdigest()[:32], fill, is_whole)
