"""What a worker starts from: an interpreter, the locked environment, mfimage's runtime, code."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mfimage
from mfimage.backends.code_cache import code_folder, holds
from mfimage.backends.process.worker import WorkerLaunch
from mfimage.capture.lock.indexes import OWN_CONFIGURATION
from mfimage.capture.lock.uv import UvFailure, run_uv
from mfimage.errors import BackendError, LockError
from mfimage.files import sha256_hex
from mfimage.package.platforms import this_platform
from mfimage.package.spec import EnvironmentSpec
from mfimage.package.storage.blobs import blob_cache_folder
from mfimage.package.storage.cache import cache_folder, make_once
from mfimage.package.storage.local import LocalStorage
from mfimage.package.store import Blobs, Package
from mfimage.runtime.layout import RUNTIME_FILES
from mfimage.runtime.worker import lifeline

logger = logging.getLogger(__name__)
# Wheels of a lock are for CPython with the GIL, on 64 bits.
_ASK = (
    "import sys; print(sys.implementation.name, '%d.%d' % sys.version_info[:2],"
    " sys.maxsize > 2**32 and 't' not in getattr(sys, 'abiflags', ''))"
)
_ASK_SECONDS = 20


def worker_launch(
    package: Package, *, python: Path | None = None, timeout: float | None, start_timeout: float
) -> WorkerLaunch:
    """Return how to start a worker: with ``python``, which has mfimage, or in its environment."""
    # Artifacts by digest: a local root's own, verified where they are read; those of a remote one
    # are fetched into the cache, which keeps them as long as `package` exists.
    storage = package.store.storage
    blobs = blob_cache_folder()
    if isinstance(storage, LocalStorage):
        blobs = storage.root / "blobs" / "sha256"
    else:
        for ref in package.spec.artifacts.values():
            package.store.blob_file(ref)
    config = {
        "spec": package.spec.to_json().decode(),
        "reference": package.reference,
        "code": str(code_folder(package)),
        "blobs": str(blobs),
        "log_level": logging.getLogger().level,
    }
    return WorkerLaunch(
        name=package.spec.name,
        python=python or environment_python(package),
        runtime=None if python else runtime_folder(),
        start=json.dumps(config).encode(),
        timeout=timeout,
        start_timeout=start_timeout,
    )


def find_interpreter(minor: str) -> Path:
    """Return a CPython of a minor version (3.12): this one, or one on PATH, pyenv's or uv's."""
    tried: set[Path] = set()
    for path in _candidates(minor):
        real = path.resolve()
        if real not in tried and _fits(path, minor):
            return path
        tried.add(real)
    raise BackendError(
        f"no Python {minor} on this machine, and the function needs one",
        hint=f"get it with `uv python install {minor}` or `pyenv install {minor}`, or put a "
        f"python{minor} on PATH",
    )


def _candidates(minor: str) -> Iterator[Path]:
    name = f"python{minor}"
    if sys.executable and minor == "{}.{}".format(*sys.version_info):
        yield Path(sys.executable)
    on_path = [Path(folder) for folder in os.get_exec_path()]
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    by_uv = Path(os.environ.get("UV_PYTHON_INSTALL_DIR") or data / "uv" / "python")
    folders = [
        *on_path,
        *_newest_first(pyenv / "versions", f"{minor}.*"),
        *_newest_first(by_uv, f"cpython-{minor}.*"),
    ]
    for path in [*(folder / name for folder in folders), *(each / "python3" for each in on_path)]:
        if os.access(path, os.X_OK) and path.is_file():
            yield path


def _newest_first(folder: Path, pattern: str) -> list[Path]:
    found = [
        ([int(n) for n in re.findall(r"\d+", path.name)], path) for path in folder.glob(pattern)
    ]
    return [path / "bin" for _, path in sorted(found, reverse=True)]


def _fits(path: Path, minor: str) -> bool:
    # pyenv has shims for versions that are switched off; those fail.
    try:
        done = subprocess.run(
            [path, "-I", "-S", "-c", _ASK], capture_output=True, timeout=_ASK_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.stdout.split() == [b"cpython", minor.encode(), b"True"]


def environment_python(package: Package) -> Path:
    """Return the interpreter of a function's environment, which is made once."""
    return make_environment(package.spec.name, package.spec.environment, package.store)


def make_environment(
    name: str, spec: EnvironmentSpec, blobs: Blobs, lock: bytes | None = None
) -> Path:
    """Return the interpreter of an environment, or of a whole ``lock``'s; it is made once.

    ``name`` is what it is of, for errors.
    """
    # uv makes a virtual environment from the lock and verifies every file. It is kept in the
    # user's cache, by the lock's digest, Python's minor version and the platform.
    here = this_platform()
    if spec.platform != here:
        raise BackendError(
            f"{name} is locked for {spec.platform}, and this is {here}",
            hint="bind it for this platform, or run its image",
        )
    digest = spec.lock.hex if lock is None else sha256_hex([lock])
    key = f"{digest[:32]}-py{spec.python_minor}-{here.replace('/', '-')}"
    python = Path("bin", "python")

    def is_whole(folder: Path) -> bool:
        # The interpreter that a virtual environment links to may have been removed.
        return (folder / python).exists()

    def install(fresh: Path) -> None:
        base = find_interpreter(spec.python_minor)
        logger.info("making the environment of %s with %s", name, base)
        _install(spec, blobs, fresh, base, blobs.read_blob(spec.lock) if lock is None else lock)

    return make_once(cache_folder() / "environments" / key, install, is_whole) / python


def _install(spec: EnvironmentSpec, blobs: Blobs, fresh: Path, base: Path, whole: bytes) -> None:
    lock, python = fresh / "lock", fresh / "bin" / "python"
    (lock / "wheels").mkdir(parents=True)
    (lock / "pylock.toml").write_bytes(whole)
    for name, ref in spec.wheels.items():
        with (lock / "wheels" / name).open("wb") as file:
            file.writelines(blobs.stream_blob(ref))
    venv = ["venv", "--quiet", "--no-project", "--allow-existing", "--relocatable"]
    _run_uv([*venv, "--python", str(base), str(fresh)], fresh, base)
    install = ["pip", "install", "--quiet", "--require-hashes", "--no-build"]
    _run_uv([*install, "--python", str(python), "-r", str(lock / "pylock.toml")], lock, base)
    shutil.rmtree(lock)


def _run_uv(arguments: list[str], folder: Path, python: Path) -> None:
    """Run uv below ``lifeline``, so that it ends when this process does."""
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
    parts = (f"{name}\0{len(content)}\0".encode() + content for name, content in files.items())

    def fill(fresh: Path) -> None:
        for name, content in files.items():
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            (fresh / name).write_bytes(content)

    folder = cache_folder() / "runtime" / sha256_hex(parts)[:32]
    return make_once(folder, fill, lambda folder: holds(folder, files))
