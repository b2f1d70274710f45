"""Runs the entrypoint of an image on a package, without the image."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from mfimage.backends.satisfies import difference
from mfimage.errors import LockError
from mfimage.package.archive import unpack
from mfimage.package.store import Package, open_package
from mfimage.runtime.layout import FUNCTION_VARIABLE

# Waits until every process that has the pipe's other end has ended.
_REMOVE = "import os, shutil, sys; os.read(0, 1); shutil.rmtree(sys.argv[1], ignore_errors=True)"
_RUN = (
    "import sys; sys.path.insert(0, sys.argv.pop(1))\n"
    "from mfimage.runtime.__main__ import main; sys.exit(main())"
)
Note = Callable[[str], None]


def run_entrypoint(reference: str, command: Sequence[str], note: Note) -> int:
    """Run an image's command on a package; return the exit code.

    It runs in this process if this interpreter satisfies the function's lock. Else this process
    becomes one of the environment that the image would have; ``note`` gets the reason.
    """
    package = open_package(reference)
    with _folder() as (folder, pipe):
        unpack(package.spec, package.store, folder)
        os.environ[FUNCTION_VARIABLE] = str(folder)
        try:
            reason = difference(package)
        except LockError:
            reason = None  # as a function that is loaded
        if reason is not None:
            note(f"{package.spec.name} runs in its own environment: {reason}")
            os.set_inheritable(pipe, True)
            _become(package, command, note)
        from mfimage.runtime.__main__ import main

        return main(command)


@contextlib.contextmanager
def _folder() -> Iterator[tuple[Path, int]]:
    """Make a folder that is removed at the end of the block, or when this process ends.

    The process may end without Python's help, or become another program; what it yields beside the
    folder is the pipe that must then stay open.
    """
    folder = Path(tempfile.mkdtemp(prefix="mfimage-"))
    reader, writer = os.pipe()
    cleaner = None
    try:
        cleaner = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _REMOVE, folder], stdin=reader,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        os.close(reader)
        yield folder, writer
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(writer)
        if cleaner is not None:
            cleaner.kill()
            cleaner.wait()


def _become(package: Package, command: Sequence[str], note: Note) -> NoReturn:
    from mfimage.backends.process.environments import (
        environment_python,
        runtime_folder,
        this_platform,
    )

    lock = None
    if command[0] == "serve":
        from mfimage.image.plan.lock import target_lock
        from mfimage.image.plan.options import BuildOptions

        lock = target_lock(package, BuildOptions(), this_platform(), note)
    python, runtime = environment_python(package, lock), str(runtime_folder())
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONHOME"} | {
        "PYTHONPATH": runtime,
        "PYTHONNOUSERSITE": "1",
        "VIRTUAL_ENV": str(python.parent.parent),
        "PATH": os.pathsep.join([str(python.parent), os.environ.get("PATH", os.defpath)]),
    }
    arguments = [str(python), "-I", "-c", _RUN, runtime, *command]
    os.execve(python, arguments, environment)  # noqa: S606  (without a shell)
