"""The files of options that say where a step's commands run, and the prefix that reads them."""

from __future__ import annotations

import atexit
import fcntl
import functools
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Seconds in which a new folder may not be locked yet.
_NEW = 60.0


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What `launch` needs to know about a step.

    Attributes
    ----------
    executor : str
        A name in the table of executors.
    flow, step : str
        Their names.
    options : mapping
        The executor's keyword arguments, as JSON has them. No secrets.
    """

    executor: str
    flow: str
    step: str
    options: Mapping[str, Any]

    def write(self) -> str:
        """Write the step's file of options, in a folder only for this process; return its path."""
        path = run_folder() / f"{self.step}.json"
        path.write_text(json.dumps(asdict(self)))
        return str(path)

    @classmethod
    def read(cls, path: str) -> Launch:
        """Read what `write` wrote."""
        return cls(**json.loads(Path(path).read_text()))


@functools.cache
def run_folder() -> Path:
    """Return this process's private folder; it is removed when the process exits."""
    for left in Path(tempfile.gettempdir()).glob("mfimage-steps-*"):
        with suppress(OSError):
            _remove_if_left(left)
    owner = os.getpid()
    folder = Path(tempfile.mkdtemp(prefix=f"mfimage-steps-{owner}-"))
    fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_EX)  # until this process ends

    def remove() -> None:
        if os.getpid() == owner:  # not in a forked child
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


def _remove_if_left(folder: Path) -> None:
    """Remove a folder of this user's whose process was killed."""
    # Not by its process's number: another container that shares the folder has its own.
    about = folder.stat()
    if about.st_uid == os.getuid() and about.st_mtime < time.time() - _NEW:
        file = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(file)


def prefix(options: str) -> Sequence[str]:
    """Return what to put before a command line so that `launch` runs it elsewhere."""
    # Isolated: what the user's variables and site-packages hold cannot break the launcher.
    return [sys.executable, "-ISE", str(Path(__file__).with_name("launch.py")), options, "--"]
