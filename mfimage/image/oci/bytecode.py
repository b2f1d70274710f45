"""Compiled Python files for an image, equal whichever machine made them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from mfimage.errors import BuildError, LockError
from mfimage.image.context_file import ContextFile
from mfimage.image.oci.tar import Member

_SCRIPT = Path(__file__).with_name("_compile.py")
_TESTS = ("test", "tests")


def find_python(minor: str) -> str:
    """Return an interpreter of this minor version on this machine.

    Raises
    ------
    BuildError
        When there is none: another one's compiled files would be of no use.
    """
    if minor == f"{sys.version_info.major}.{sys.version_info.minor}":
        return sys.executable
    from mfimage.capture.uv import run_uv
    from mfimage.capture.uv_errors import UvFailure

    environment = {**os.environ, "UV_PYTHON_DOWNLOADS": "never"}
    try:
        return run_uv(["python", "find", "--no-project", minor], Path.cwd(), environment).strip()
    except (UvFailure, LockError):
        raise BuildError(
            f"compile: there is no Python {minor} on this machine to compile for the image",
            hint=f"uv python install {minor}, or leave --compile out",
        ) from None


def compiled_files(members: Sequence[Member], minor: str, work: Path) -> list[Member]:
    """Compile the Python files among these, but for tests.

    Parameters
    ----------
    members : sequence of Member
        What is laid out.
    minor : str
        The image's Python.
    work : Path
        A private folder.
    """
    tag = f"cpython-{minor.replace('.', '')}"
    out = work / "compiled"
    jobs, files = [], []
    for member in members:
        path = PurePosixPath(member.path)
        wanted = isinstance(member, ContextFile) and path.suffix == ".py" and "lib" in path.parts
        if not wanted or not set(_TESTS).isdisjoint(path.parts[:-1]):
            continue
        name = str(path.parent / "__pycache__" / f"{path.stem}.{tag}.pyc")
        jobs.append(json.dumps([str(member.content), f"/{path}", str(out / name)]))  # type: ignore[union-attr]
        files.append((name, out / name))
    _run(find_python(minor), jobs)
    return [ContextFile(path=name, content=path) for name, path in files if path.exists()]


def _run(python: str, jobs: Sequence[str]) -> None:
    count = max(os.cpu_count() or 1, 1)
    # Each file is compiled by itself, so it does not matter by which process.
    running = []
    for number in range(count):
        process = subprocess.Popen(
            [python, "-I", "-S", str(_SCRIPT)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PYTHONHASHSEED": "0", "PATH": os.environ.get("PATH", "")},
        )
        running.append((process, "\n".join(jobs[number::count]).encode()))
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(count) as pool:
        errors = list(pool.map(lambda pair: pair[0].communicate(pair[1])[1], running))
    for (process, _), error in zip(running, errors, strict=True):
        if process.returncode:
            last = error.decode(errors="replace").strip().rpartition("\n")[2]
            raise BuildError(f"compile: {python} failed: {last}")
