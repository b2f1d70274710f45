"""Calling a function in a process of its own, so that a record that ends it fails alone."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import mfimage
from mfimage.errors import FunctionError, MfimageError
from mfimage.runtime.calls.queue import Outcome
from mfimage.runtime.layout import BLOBS, CODE
from mfimage.runtime.loading.loader import LiveFunction
from mfimage.runtime.serving.body import split_list
from mfimage.runtime.worker.exceptions import rebuild
from mfimage.runtime.worker.frames import (
    ARRAY,
    BATCH,
    FAILURE,
    MIXED,
    READY,
    START,
    Frame,
    receive_frame,
    send_frame,
)

_BOOT = (
    "import sys; sys.path.insert(0, sys.argv[3])\n"
    "from mfimage.runtime.worker.lifeline import die_with\n"
    "die_with(int(sys.argv[2]))\n"
    "from mfimage.runtime.worker.process import main\n"
    "main(int(sys.argv[1]))"
)


class Poison(MfimageError):
    """A record that ended the process that ran it."""

    def __init__(self) -> None:
        super().__init__("the process that ran this record died")


class Guard:
    """Runs records in a process that may die; then, one by one, in others.

    Parameters
    ----------
    fn : LiveFunction
        The function; it is not called here, so its artifacts are not loaded here.
    folder : Path
        Where its package was unpacked.
    """

    def __init__(self, fn: LiveFunction, folder: Path) -> None:
        self._fn = fn
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._sock: socket.socket | None = None
        self._lifeline = -1

    def __enter__(self) -> Guard:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        frames: TracebackType | None,
    ) -> None:
        self._end()

    def __call__(self, payloads: Sequence[bytes]) -> list[Outcome]:
        """Return the outcomes of records; see ``dispatch.call_many``."""
        outcomes: list[Outcome] = []
        good: list[bytes] = []
        for payload in payloads:
            try:
                self._fn.parse(payload)
                good.append(payload.strip())
                outcomes.append(b"")
            except Exception as error:  # noqa: BLE001  (it takes the result's place)
                outcomes.append(error)
        results = iter(self._run(good))
        return [next(results) if isinstance(each, bytes) else each for each in outcomes]

    def _run(self, payloads: list[bytes]) -> list[Outcome]:
        if not payloads:
            return []
        sock = self._sock or self._start()
        try:
            send_frame(sock, BATCH, b"\n".join(payloads))
            return _outcomes(receive_frame(sock))
        except (EOFError, OSError):
            self._end()
        if len(payloads) == 1:
            return [Poison()]
        return [outcome for payload in payloads for outcome in self._run([payload])]

    def _start(self) -> socket.socket:
        """Start a process, and have it load the function."""
        mine, theirs = socket.socketpair()
        lifeline, self._lifeline = os.pipe()
        passed = (theirs.fileno(), lifeline)
        source = str(Path(mfimage.__file__).parents[1])
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, *map(str, passed), source],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what the function prints
                pass_fds=passed,
                start_new_session=True,
            )
        finally:
            theirs.close()
            os.close(lifeline)
        self._sock = mine
        send_frame(mine, START, json.dumps(self._config()).encode())
        frame = receive_frame(mine)
        if frame.kind != READY:
            raise rebuild(frame.payload)
        return mine

    def _config(self) -> dict[str, object]:
        return {
            "spec": self._fn.spec.to_json().decode(),
            "reference": str(self._folder),
            "blobs": str(self._folder / BLOBS),
            "code": str(self._folder / CODE),
            "log_level": logging.getLogger().level,
        }

    def _end(self) -> None:
        if self._sock is not None:
            self._sock.close()
            os.close(self._lifeline)
            self._sock = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _outcomes(frame: Frame) -> list[Outcome]:
    if frame.kind == ARRAY:
        return [*split_list(frame.payload)]
    lines = frame.payload.split(b"\n")
    if frame.kind == MIXED:
        return [_told(line[1:]) if line[:1] == b"-" else line[1:] for line in lines]
    if frame.kind == FAILURE:
        return [_told(frame.payload)]
    return [*lines]


def _told(described: bytes) -> Exception:
    try:
        return rebuild(described)
    except ValueError as error:
        return FunctionError(str(error))
