"""Where records come from and results go: files, written whole or not at all, and streams."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mfimage.errors import OptionError, StorageError

STREAM = "-"
_BUFFER = 1 << 20

Place = str | os.PathLike[str]


class _Output(io.FileIO):
    """A file whose errors name it."""

    def __init__(self, descriptor: int, place: Place) -> None:
        super().__init__(descriptor, "wb")
        self._place = place

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _unwritable(self._place, error) from None


def is_stream(place: Place) -> bool:
    """Tell whether a place is ``-``: stdin or stdout."""
    return os.fspath(place) == STREAM


@contextlib.contextmanager
def input_file(place: Place) -> Iterator[BinaryIO]:
    """Open a file, or stdin for ``-``; ``OptionError`` when it cannot be read."""
    if is_stream(place):
        yield _stdin()
        return
    try:
        file = Path(place).open("rb", buffering=_BUFFER)  # noqa: SIM115  (errors in the block are not ours)
    except OSError as error:
        raise OptionError(f"input: cannot read {os.fspath(place)}: {error.strerror}") from None
    with file:
        yield file


def _stdin() -> BinaryIO:
    """Return stdin, but not Python's object: a reading thread may hold its lock forever."""
    if sys.stdin is not sys.__stdin__:
        return sys.stdin.buffer
    try:
        return open(0, "rb", buffering=_BUFFER, closefd=False)
    except OSError as error:
        raise OptionError(f"input: cannot read stdin: {error.strerror}") from None


@contextlib.contextmanager
def output_file(place: Place) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces the one at ``place`` if the block succeeds."""
    path = Path(os.path.realpath(place))  # keeps a symbolic link
    special = path.exists() and not path.is_file()  # as /dev/null or a pipe: written directly
    try:
        if special:
            descriptor = os.open(path, os.O_WRONLY)
        else:
            descriptor, name = tempfile.mkstemp(prefix=".mfimage-", suffix=".part", dir=path.parent)
    except OSError as error:
        raise _unwritable(place, error) from None
    if special:
        with _opened(descriptor, place) as file:
            yield file
        return
    part = Path(name)
    try:
        with _opened(descriptor, place) as file:
            yield file
            os.fchmod(descriptor, _mode(path))
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _opened(descriptor: int, place: Place) -> BinaryIO:
    return io.BufferedWriter(_Output(descriptor, place), _BUFFER)


def _mode(path: Path) -> int:
    """Return the permissions of the replaced file, or of a new one."""
    if path.exists():
        return stat.S_IMODE(path.stat().st_mode)
    umask = os.umask(0o077)  # it can only be read by setting it
    os.umask(umask)
    return 0o666 & ~umask


def _unwritable(place: Place, error: OSError) -> StorageError:
    return StorageError(f"cannot write {os.fspath(place)}: {error.strerror}")


@contextlib.contextmanager
def results(place: Place) -> Iterator[BinaryIO]:
    """Open the file for results, or stdout for ``-``; all other output goes to stderr meanwhile."""
    sys.stdout.flush()
    out = sys.stdout
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        file = out.buffer if out is not sys.__stdout__ else stack.enter_context(_stdout())
        if not is_stream(place):
            file = stack.enter_context(output_file(place))
        yield file


@contextlib.contextmanager
def _stdout() -> Iterator[BinaryIO]:
    # By descriptor: C code prints past ``sys.stdout``.
    with _opened(os.dup(1), "stdout") as file:
        os.dup2(2, 1)
        try:
            yield file
            file.flush()
        finally:
            os.dup2(file.fileno(), 1)


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Clean up on SIGTERM, as on Ctrl-C, and exit with 143; as PID 1, too."""

    def end(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def refuse_same(**places: Place | None) -> None:
    """Raise ``OptionError`` if two options name one file; ``-`` is stdout for ``output``."""
    seen: dict[object, str] = {}
    for option, place in places.items():
        if place is None:
            continue
        identity = _identity(option, place)
        if identity in seen:
            raise OptionError(
                f"{seen[identity]} and {option} are the same file: {os.fspath(place)}",
                hint="write to another file",
            )
        if identity is not None:
            seen[identity] = option


def _identity(option: str, place: Place) -> object:
    """Return what all names of a file share; None for anything but a regular file."""
    try:
        found = os.fstat(1 if option == "output" else 0) if is_stream(place) else Path(place).stat()
    except (OSError, ValueError):
        return None if is_stream(place) else os.path.realpath(place)
    return (found.st_dev, found.st_ino) if stat.S_ISREG(found.st_mode) else None
