"""What runs a step's command elsewhere: the Protocols, their errors, and a fake."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from mfimage.errors import MfimageError

# Metaflow tries a task again unless its exit status is 202.
FAILED, REFUSED = 1, 202


class Refused(MfimageError):
    """The executor cannot run what is asked for; another attempt would fail as well."""


class Unavailable(MfimageError):
    """The executor cannot run anything now; another attempt may succeed."""


@dataclass(frozen=True, kw_only=True)
class StepCommand:
    """One attempt of a task: Metaflow's own command line, and what is around it.

    Attributes
    ----------
    argv : tuple of str
        ``python flow.py [options] step NAME [options]``, unchanged.
    env : mapping
        The attempt's whole environment.
    cwd : str
        The folder it runs in.
    pathspec : str
        ``Flow/run/step/task``.
    attempt : int
        0 for the first.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    pathspec: str
    attempt: int


class Job(Protocol):
    """A started command."""

    def output(self) -> Iterator[tuple[int, bytes]]:
        """Yield ``(1, chunk)`` of its stdout and ``(2, chunk)`` of its stderr until it ends.

        Only of what does not reach this process's own stdout and stderr by itself.
        """
        ...

    def wait(self) -> int:
        """Return its exit status; 128 + n after signal n."""
        ...

    def kill(self) -> None:
        """End it soon. Called from a signal handler: returns at once, and may be called again."""
        ...


class Executor(Protocol):
    """Where a step's commands run."""

    def start(self, command: StepCommand) -> Job:
        """Start a command.

        Raises
        ------
        Refused
            If it can never run.
        Unavailable
            If it cannot run now.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class FakeExecutor:
    """Runs commands on this machine, as Metaflow itself does, and records them.

    Attributes
    ----------
    record : str, optional
        A file that gains a line of JSON with each command.
    """

    record: str | None = None
    started: list[StepCommand] = field(default_factory=list)

    def start(self, command: StepCommand) -> Job:
        """Start a command here."""
        self.started.append(command)
        if self.record:
            line = json.dumps(
                {"argv": command.argv, "pathspec": command.pathspec, "attempt": command.attempt}
            )
            with Path(self.record).open("a") as file:
                file.write(f"{line}\n")
        return LocalJob(subprocess.Popen(command.argv, env=dict(command.env), cwd=command.cwd))


class LocalJob:
    """A process that writes to this one's stdout and stderr."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def output(self) -> Iterator[tuple[int, bytes]]:
        """Yield nothing."""
        return iter(())

    def wait(self) -> int:
        """Return its exit status."""
        return exit_status(self._process.wait())

    def kill(self) -> None:
        """End it."""
        self._process.kill()


def exit_status(returncode: int) -> int:
    """Return a shell's exit status for a subprocess's return code: 128 + n for signal n."""
    return returncode if returncode >= 0 else 128 - returncode
