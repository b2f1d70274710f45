"""Finding a Python of some minor version on this machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from mfimage.errors import BackendError

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
