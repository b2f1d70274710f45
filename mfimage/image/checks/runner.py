"""The seam between the checks and what runs containers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from mfimage.image.find.info import ImageInfo

Address = tuple[str, int]
_POLL = 0.05
# Enough for the end of a traceback.
LOG_LINES = 20


@dataclass(frozen=True, kw_only=True)
class ContainerOptions:
    """How to start a container.

    Attributes
    ----------
    entrypoint : tuple of str
        Replaces the image's entrypoint and command.
    user : str or None
        ``uid:gid``; None for the image's.
    read_only : bool
        Mount the root read-only, with an empty ``/tmp`` in memory.
    no_capabilities : bool
        Drop all capabilities.
    no_new_privileges : bool
        Set ``no-new-privileges``.
    env : mapping of str to str
        Variables.
    port : int or None
        The port to publish.
    """

    entrypoint: tuple[str, ...] = ()
    user: str | None = None
    read_only: bool = False
    no_capabilities: bool = False
    no_new_privileges: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    port: int | None = None


class Container(Protocol):
    """A container that was started."""

    def addresses(self) -> Sequence[Address]:
        """Return the addresses at which its port may be reached, the likeliest first."""

    def exit_code(self) -> int | None:
        """Return the exit code; None while it runs."""

    def log(self, lines: int | None = LOG_LINES) -> str:
        """Return the last lines of stdout and stderr, or all of them."""

    def execute(self, command: Sequence[str]) -> str:
        """Run a command in it; return its stdout and stderr."""

    def terminate(self) -> None:
        """Send SIGTERM to its first process."""


class ImageRunner(Protocol):
    """Runs one image.

    Attributes
    ----------
    name : str
        ``docker`` or ``runc``.
    info : ImageInfo
        The image.
    own_network : bool
        Whether containers have a network of their own, so that ports do not meet.
    """

    @property
    def name(self) -> str:
        """What runs it."""

    @property
    def info(self) -> ImageInfo:
        """The image."""

    @property
    def own_network(self) -> bool:
        """Whether containers have a network of their own."""

    def read(self, path: str) -> bytes | None:
        """Return a file of the image; None if there is none."""

    def start(self, launch: ContainerOptions) -> AbstractContextManager[Container]:
        """Run a container until the block ends.

        Raises
        ------
        Failed
            If the image cannot be started.
        """


def wait_for_end(container: Container, timeout: float) -> int | None:
    """Wait until a container ends; return its exit code, None if the time is up."""
    deadline = time.monotonic() + timeout
    while (code := container.exit_code()) is None:
        if time.monotonic() > deadline:
            return None
        time.sleep(_POLL)
    return code
