"""Process 1 of a step's container: ``inside.py [OPTION VALUE]... -- COMMAND...``.

A script that imports nothing of `mfimage`. It runs the command
and ends when the command does, or when its stdin is closed: then the launcher is gone, however it
ended, and no container may stay behind.

Options are ``--path FOLDER``, to be found by ``import`` behind what the image has, and ``--before
JSON``: ``[folder, command]`` of a command to run first, a line for a shell or a list. Variables
named ``MFIMAGE_SET_X`` and ``MFIMAGE_REMOTE_X`` become ``X``; the latter may use
``${containerEnv:Y}``.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Where this file is below: mounted, or part of the image.
EXTENSION = str(Path(__file__).parents[2])
# After Ctrl-C, Metaflow gives its tasks 5 seconds.
GRACE = 4.0
# Where a control group, of version 2 or 1, counts what it killed, and where its limit stands.
MEMORY = (
    ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory.max"),
    (
        "/sys/fs/cgroup/memory/memory.oom_control",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ),
)


def main(arguments: Sequence[str]) -> int:
    """Run a command; return its exit status, 128 + n after signal n."""
    split = arguments.index("--")
    options = [(arguments[at], arguments[at + 1]) for at in range(0, split, 2)]
    if path := python_path([value for name, value in options if name == "--path"]):
        os.environ["PYTHONPATH"] = os.pathsep.join(path)
    _set_variables()
    job = ContainerCommand()
    for name, value in options:
        if name == "--before":
            folder, command = json.loads(value)
            argv = ["sh", "-c", command] if isinstance(command, str) else command
            if status := job.run(argv, cwd=folder, stdout=2):
                shown = command if isinstance(command, str) else " ".join(command)
                os.write(2, f"error: {shown}: exit status {status}\n".encode())
                return status
    status = job.run(arguments[split + 1 :])
    if status and (limit := _out_of_memory()):
        hint = "give the step more: @docker(memory=...) or @resources(memory=...), in MB"
        os.write(2, f"error: killed: out of memory, {limit}\nhint: {hint}\n".encode())
    return status


def python_path(folders: Sequence[str]) -> list[str]:
    """Return the image's ``PYTHONPATH`` with further folders, as far as they are needed."""
    path = [each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]
    path += [each for each in folders if each not in path]
    # Metaflow refuses to load an extension twice.
    return [each for each in path if each != EXTENSION] if _is_installed(path) else path


class ContainerCommand:
    """What runs now, and ends when it must."""

    def __init__(self) -> None:
        self._child = 0
        self._ended = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._end())
        threading.Thread(target=self._watch, daemon=True).start()

    def run(self, argv: Sequence[str], **options: Any) -> int:
        """Run a command; return its exit status, 128 + n after signal n."""
        if self._ended:
            return 128 + signal.SIGINT
        # A group of its own, for signals that reach the command's own processes, as Ctrl-C does.
        command = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, start_new_session=True, **options
        )
        self._child = command.pid
        while True:  # orphans become children of process 1, which has to collect them
            pid, status = os.wait()
            if pid == command.pid:
                command.returncode = os.waitstatus_to_exitcode(status)
                self._child = 0
                code = command.returncode
                return code if code >= 0 else 128 - code

    def _watch(self) -> None:
        while os.read(0, 4096):
            pass
        self._end()
        time.sleep(GRACE)
        self._signal(signal.SIGKILL)

    def _end(self) -> None:
        self._ended = True
        self._signal(signal.SIGINT)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            if self._child:
                os.killpg(self._child, number)


def _is_installed(path: Sequence[str]) -> bool:
    """Return whether the image has mfimage beside its Metaflow."""
    return any(
        found
        for folder in {*sys.path, *path}
        if Path(folder).is_dir()
        for found in Path(folder).glob("mfimage-*.dist-info")
    )


def _set_variables() -> None:
    _rename("MFIMAGE_SET_", lambda value: value)
    container = dict(os.environ)
    variable = re.compile(r"\$\{containerEnv:([^}:]*):?([^}]*)\}")
    _rename(
        "MFIMAGE_REMOTE_",
        lambda value: variable.sub(lambda found: container.get(found[1], found[2]), value),
    )


def _rename(prefix: str, convert: Callable[[str], str]) -> None:
    for name in [each for each in os.environ if each.startswith(prefix)]:
        os.environ[name.removeprefix(prefix)] = convert(os.environ.pop(name))


def _out_of_memory() -> str | None:
    """Return the memory limit if something was killed for it."""
    for events, limit in MEMORY:
        try:
            counts = dict(line.split() for line in Path(events).read_text().splitlines())
            if int(counts.get("oom_kill", 0)):
                return f"{int(Path(limit).read_text()) // 2**20} MB"
        except (OSError, ValueError):
            continue
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
