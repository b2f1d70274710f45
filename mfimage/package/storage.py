"""Bytes at a URL: where function packages live.

Writes are whole or absent: a reader never sees half a file, and a crash leaves only a temporary
file that nothing refers to.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import unquote, urlsplit

from mfimage.errors import StorageError


class Storage(Protocol):
    """Files under one root, by relative path with ``/``."""

    def url(self, path: str) -> str:
        """Return the whole address of ``path``."""

    def exists(self, path: str) -> bool:
        """Tell whether a file is there."""

    def read(self, path: str) -> bytes:
        """Return a file's bytes; ``FileNotFoundError`` or ``StorageError``."""

    def open(self, path: str) -> BinaryIO:
        """Open a file for reading; ``FileNotFoundError`` or ``StorageError``."""

    def write(self, path: str, source: BinaryIO) -> None:
        """Write a file, whole or not at all, over whatever is there; ``StorageError``."""


def open_storage(root: str | os.PathLike[str]) -> Storage:
    """Return the storage for a root.

    Parameters
    ----------
    root : str or path
        A local folder, or ``file://`` and its path.

    Raises
    ------
    StorageError
        When the URL's scheme is not known.
    """
    text = os.fspath(root)
    parts = urlsplit(text)
    if parts.scheme == "file":
        return LocalStorage(Path(unquote(parts.path)))
    if "://" in text:
        raise StorageError(
            f"no storage for {parts.scheme}:// (root {text!r})", hint="use a local folder"
        )
    return LocalStorage(Path(text))


class LocalStorage:
    """A folder on this machine."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.abspath(root))  # noqa: PTH100  (resolve() would follow links)

    def url(self, path: str) -> str:
        """Return the file's absolute path."""
        return str(self.root / path)

    def exists(self, path: str) -> bool:
        """Tell whether a file is there."""
        return (self.root / path).is_file()

    def read(self, path: str) -> bytes:
        """Return a file's bytes."""
        with self.open(path) as file:
            return file.read()

    def open(self, path: str) -> BinaryIO:
        """Open a file for reading."""
        try:
            return (self.root / path).open("rb")
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StorageError(f"cannot read {self.url(path)}: {error.strerror}") from None

    def write(self, path: str, source: BinaryIO) -> None:
        """Write a file beside its place, then move it there."""
        target = self.root / path
        with _told(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with _temporary(target) as (file, name):
                shutil.copyfileobj(source, file, 1 << 20)
                file.flush()
                os.fsync(file.fileno())
                name.chmod(0o666 & ~_umask())
                name.replace(target)


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[tuple[BinaryIO, Path]]:
    handle, text = tempfile.mkstemp(prefix=".tmp-", dir=target.parent)
    name = Path(text)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file, name
    finally:
        name.unlink(missing_ok=True)


@contextlib.contextmanager
def _told(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "free some space, or choose another root with MFIMAGE_FUNCTIONS_ROOT"
        else:
            hint = "choose a writable root with MFIMAGE_FUNCTIONS_ROOT"
        reason = error.strerror or str(error)
        raise StorageError(f"cannot write {target}: {reason}", hint=hint) from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
