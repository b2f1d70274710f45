"""Runs one attempt of a task elsewhere: ``launch.py OPTIONS.json -- python flow.py ... step ...``.

A script for Python without site-packages. Metaflow starts it in the place of the command line
that follows ``--``: output, exit status and signals pass through it, so that logs, retries and
Ctrl-C work as they do for a local process.
"""

from __future__ import annotations

import importlib
import os
import resource
import signal
import stat
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import NoReturn

if __name__ == "__main__":  # last: the standard library comes first
    sys.path.append(str(Path(__file__).parents[2]))

from mfimage.errors import MfimageError
from mfimage.steps.command import Launch
from mfimage.steps.executor import FAILED, REFUSED, Executor, Job, Refused, StepCommand

EXECUTORS = {
    "docker": "mfimage.steps.docker:DockerExecutor",
    "fake": "mfimage.steps.executor:FakeExecutor",
}


def find_executor(launch: Launch) -> Executor:
    """Return the executor that a file of options names."""
    module, _, name = EXECUTORS[launch.executor].partition(":")
    executor: Executor = getattr(importlib.import_module(module), name)(**launch.options)
    return executor


def step_command(launch: Launch, argv: list[str]) -> StepCommand:
    """Return the command that Metaflow's command line stands for."""

    def option(name: str) -> str:
        # From the end: what the user passes stands before Metaflow's own options.
        return argv[len(argv) - argv[::-1].index(f"--{name}")]

    return StepCommand(
        argv=tuple(argv),
        env=dict(os.environ),
        cwd=str(Path.cwd()),
        pathspec=f"{launch.flow}/{option('run-id')}/{launch.step}/{option('task-id')}",
        attempt=int(option("retry-count")),
    )


def run(executor: Executor, command: StepCommand) -> int:
    """Run a command; return its exit status, 128 + n after signal n."""
    job: Job | None = None
    received = 0

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = number
        if job:
            job.kill()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    if stat.S_ISFIFO(os.fstat(0).st_mode):
        threading.Thread(target=watch, daemon=True).start()
    job = executor.start(command)
    if received:
        job.kill()
    for stream, chunk in job.output():
        write(stream, chunk)
    status = job.wait()
    return 128 + received if received else status


def watch() -> None:
    """End this process when its stdin does: a pipe whose other end is the process of the run."""
    try:
        while os.read(0, 4096):
            pass
    finally:
        os.kill(os.getpid(), signal.SIGTERM)


def write(stream: int, chunk: bytes) -> None:
    """Write all of a chunk to a file descriptor."""
    while chunk:
        chunk = chunk[os.write(stream, chunk) :]


def leave(status: int) -> NoReturn:
    """Exit as the command did: Metaflow words a signal otherwise than an exit status."""
    sys.stdout.flush()
    sys.stderr.flush()
    if 128 < status < 128 + signal.NSIG:
        number = status - 128
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would be the launcher's
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(status)


def main(arguments: list[str]) -> int:
    """Run the command line after ``--``; return its exit status."""
    options, _, *argv = arguments
    launch = Launch.read(options)
    try:
        return run(find_executor(launch), step_command(launch, argv))
    except MfimageError as error:
        lines = [f"error: {error}", *([f"hint: {error.hint}"] if error.hint else [])]
        write(2, "".join(f"{line}\n" for line in lines).encode())
        return REFUSED if isinstance(error, Refused) else FAILED


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
