"""Servers of benchmarks: on free ports, pinned to a core, and never longer than the benchmark."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO

from mfimage.runtime.worker import lifeline

SERVER_CORE, CLIENT_CORE = 0, 1
SERVE = (sys.executable, "-m", "mfimage.runtime", "serve")


@contextlib.contextmanager
def running(
    command: Sequence[str],
    *,
    port: int,
    folder: Path,
    core: int | None = SERVER_CORE,
    environ: Mapping[str, str] | None = None,
    log: IO[bytes] | int = subprocess.DEVNULL,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server; it ends with the block, and if the benchmark is killed.

    A port that something has already is refused: that would be measured instead.
    """
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise SystemExit(f"port {port} is in use: end what listens there")
    signal.signal(signal.SIGTERM, _leave)
    pin = [str(shutil.which("taskset")), "-c", str(core)] if core is not None else []
    reading, writing = os.pipe()
    tied = [sys.executable, lifeline.__file__, str(reading), *pin, *command]
    process = subprocess.Popen(
        tied, cwd=folder, env={**os.environ, "PORT": str(port), **(environ or {})}, stdout=log,
        stderr=None if log == subprocess.DEVNULL else log, pass_fds=[reading],
        start_new_session=True,
    )  # fmt: skip
    os.close(reading)
    try:
        yield process
    finally:
        for number, seconds in ((signal.SIGTERM, 30), (signal.SIGKILL, 5)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
        os.close(writing)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # through every ``finally``


def cpu(pid: int) -> float:
    """Return the processor time that a process has used, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cpu_of_all(pid: int) -> float:
    """Return the processor time of a server and of its children, in seconds."""
    found = [pid]
    for each in found:
        for task in Path(f"/proc/{each}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return sum(map(cpu, found))


def memory(pid: int) -> float:
    """Return the MiB that a process occupies."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def wait_until(ready: Callable[[], bool], what: str, *, seconds: float = 60.0) -> None:
    """Wait until ``ready()`` is true."""
    until = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > until:
            raise SystemExit(f"{what} did not start")
        time.sleep(0.02)


def answers(port: int, path: str, body: bytes | None = None) -> bool:
    """Return whether a request gets a 200."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", body, {"Content-Type": "application/json"}
    )
    with contextlib.suppress(OSError):
        return bool(urllib.request.urlopen(request).status == 200)
    return False
