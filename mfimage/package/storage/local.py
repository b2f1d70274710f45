"""Files under a root: the ``Storage`` protocol, and local folders.

Writes are whole or absent: a reader never sees half a file, and a crash leaves only a temporary
file that nothing refers to.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from mfimage.errors import StorageError
from mfimage.files import CHUNK, whole_file


class Storage(Protocol):
    """Files under one root, by relative path with ``/``."""

    def url(self, path: str) -> str:
        """Return the address of ``path``."""

    def read(self, path: str) -> bytes:
        """Return a file's bytes; ``FileNotFoundError`` or ``StorageError``."""

    def open(self, path: str) -> BinaryIO:
        """Open a file for reading; ``FileNotFoundError`` or ``StorageError``."""

    def size(self, path: str) -> int | None:
        """Return a file's size in bytes, None when it is missing; ``StorageError``."""

    def write(self, path: str, source: BinaryIO) -> None:
        """Write a file, whole or not at all, replacing what is there; ``StorageError``."""


class LocalStorage:
    """A folder on this machine."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.abspath(root))  # noqa: PTH100  (resolve() would follow links)

    def url(self, path: str) -> str:
        """Return the file's absolute path."""
        return str(self.root / path)

    def read(self, path: str) -> bytes:
        """Return a file's bytes."""
        with self._reading(path), self.open(path) as file:
            return file.read()

    def open(self, path: str) -> BinaryIO:
        """Open a file for reading."""
        with self._reading(path):
            return (self.root / path).open("rb")

    def size(self, path: str) -> int | None:
        """Return a file's size in bytes."""
        try:
            with self._reading(path):
                return (self.root / path).stat().st_size
        except FileNotFoundError:
            return None

    @contextlib.contextmanager
    def _reading(self, path: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(self.url(path)) from None
        except OSError as error:
            raise StorageError(f"cannot read {self.url(path)}: {error.strerror}") from None

    def write(self, path: str, source: BinaryIO) -> None:
        """Write a file beside its place, then move it there."""
        target = self.root / path
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            # Durable: blobs must be there before the file that names them.
            with whole_file(target, durable=True) as file:
                shutil.copyfileobj(source, file, CHUNK)
        except OSError as error:
            is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            other = "free some space, or choose another" if is_full else "choose a writable"
            message = f"cannot write {target}: {error.strerror or error}"
            raise StorageError(message, hint=f"{other} root with MFIMAGE_FUNCTIONS_ROOT") from None
