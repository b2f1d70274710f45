"""Finding a Python of some minor version on this machine."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mfimage
from mfimage.capture.lock.indexes import OWN_CONFIGURATION
from mfimage.capture.lock.uv import UvFailure, run_uv
from mfimage.errors import BackendError, LockError
from mfimage.package.storage.cache import cache_folder, make_once
from mfimage.package.store import Package
from mfimage.runtime.layout import RUNTIME_FILES
from mfimage.runtime.worker import lifeline

# What a lock's wheels are for; a Python without the GIL wants others.
_ASK = (
    "import sys; print(sys.implementation.name, '%d.%d' % sys.version_info[:2],"
    " sys.maxsize > 2**32 and 't' not in getattr(sys, 'abiflags', ''))"
)
_SECONDS = 20


def find_interpreter(minor: str) -> Path:
    """Return a CPython of a minor version: this one, or one on PATH, of pyenv, or of uv.

    Parameters
    ----------
    minor : str
        As ``3.12``.

    Raises
    ------
    BackendError
        When there is none; it says how to get one.
    """
    tried: set[Path] = set()
    for path in _candidates(minor):
        real = path.resolve()
        if real not in tried and _fits(path, minor):
            return path
        tried.add(real)
    raise BackendError(
        f"there is no Python {minor} on this machine, and the function needs one",
        hint=f"get it with `uv python install {minor}` or `pyenv install {minor}`, or put a "
        f"python{minor} on PATH",
    )


def _candidates(minor: str) -> Iterator[Path]:
    name = f"python{minor}"
    if sys.executable and minor == "{}.{}".format(*sys.version_info):
        yield Path(sys.executable)
    for folder in os.get_exec_path():
        yield from _present(Path(folder) / name)
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    yield from _newest(pyenv / "versions", f"{minor}.*", name)
    yield from _newest(_uv_folder(), f"cpython-{minor}.*", name)
    for folder in os.get_exec_path():
        yield from _present(Path(folder) / "python3")


def _uv_folder() -> Path:
    chosen = os.environ.get("UV_PYTHON_INSTALL_DIR")
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(chosen) if chosen else Path(data) / "uv" / "python"


def _newest(folder: Path, pattern: str, name: str) -> Iterator[Path]:
    found = sorted(folder.glob(pattern), key=_version, reverse=True)
    for version in found:
        yield from _present(version / "bin" / name)


def _version(folder: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", folder.name)]


def _present(path: Path) -> Iterator[Path]:
    if os.access(path, os.X_OK) and path.is_file():
        yield path


def _fits(path: Path, minor: str) -> bool:
    # pyenv's shims are there for versions that are switched off, and fail.
    try:
        done = subprocess.run(
            [path, "-I", "-S", "-c", _ASK], capture_output=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.stdout.split() == [b"cpython", minor.encode(), b"True"]


# A function's locked environment, and mfimage's runtime, as folders that an interpreter sees.

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
        message = f"the environment cannot be made: {failure.message}"
        raise LockError(message, hint=failure.hint) from None
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
