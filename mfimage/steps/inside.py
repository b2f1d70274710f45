"""Process 1 of a step's container: ``inside.py [--path FOLDER]... -- COMMAND...``.

A script for Python without site-packages; nothing of `mfimage` is imported. It runs the command
and ends when the command does, or when its stdin is closed: then the launcher is gone, however it
ended, and no container may stay behind.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

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
    folders = [arguments[at + 1] for at in range(0, split, 2)]
    path = [each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]
    path += [each for each in folders if each not in path]
    if path:
        os.environ["PYTHONPATH"] = os.pathsep.join(path)
    # A group of its own, for signals that reach the command's own processes, as Ctrl-C does.
    command = subprocess.Popen(
        arguments[split + 1 :], stdin=subprocess.DEVNULL, start_new_session=True
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: _end(command.pid))
    threading.Thread(target=_watch, args=(command.pid,), daemon=True).start()
    returncode = _wait(command.pid)
    if returncode and (limit := _out_of_memory()):
        message = f"error: killed: out of memory, {limit}\n"
        message += (
            "hint: give the step more, @docker(memory=...) or @resources(memory=...), in MB\n"
        )
        os.write(2, message.encode())
    return returncode if returncode >= 0 else 128 - returncode


def _wait(child: int) -> int:
    # Orphans become children of process 1, which has to collect them.
    while True:
        pid, status = os.wait()
        if pid == child:
            return os.waitstatus_to_exitcode(status)


def _watch(child: int) -> None:
    while os.read(0, 4096):
        pass
    _end(child)
    time.sleep(GRACE)
    _signal(child, signal.SIGKILL)


def _end(child: int) -> None:
    _signal(child, signal.SIGINT)


def _signal(child: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        os.killpg(child, number)


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
