"""Bytes at a URL: where function packages live.

Writes are whole or absent: a reader never sees half a file, and a crash leaves only a temporary
file that nothing refers to.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import unquote, urlsplit

from mfimage.errors import StorageError
from mfimage.package.remote_storage import SCHEMES, RemoteStorage


class Storage(Protocol):
    """Files under one root, by relative path with ``/``."""

    @property
    def is_local(self) -> bool:
        """Whether ``url`` is a path on this machine."""

    def url(self, path: str) -> str:
        """Return the whole address of ``path``."""

    def read(self, path: str) -> bytes:
        """Return a file's bytes; ``FileNotFoundError`` or ``StorageError``."""

    def open(self, path: str) -> BinaryIO:
        """Open a file for reading; ``FileNotFoundError`` or ``StorageError``."""

    def size(self, path: str) -> int | None:
        """Return a file's size in bytes, None when it is not there; ``StorageError``."""

    def write(self, path: str, source: BinaryIO) -> None:
        """Write a file, whole or not at all, over whatever is there; ``StorageError``."""


def open_storage(root: str | os.PathLike[str]) -> Storage:
    """Return the storage for a root.

    Parameters
    ----------
    root : str or path
        A local folder, ``file://`` and its path, or ``s3://``, ``gs://`` or ``azure://``, a bucket
        (for Azure: a container) and a prefix.

    Raises
    ------
    StorageError
        When the URL's scheme is not known, or it holds credentials.
    """
    text = os.fspath(root)
    refuse_credentials(text)
    if text.startswith("file://"):
        return LocalStorage(Path(unquote(urlsplit(text).path)))
    scheme, separator, rest = text.partition("://")
    if not separator:
        return LocalStorage(Path(text))
    if scheme in SCHEMES:
        return RemoteStorage(scheme, rest)
    raise StorageError(
        f"no storage for {scheme}:// (root {text!r})",
        hint="use a local folder, s3://, gs:// or azure://",
    )


def refuse_credentials(url: str) -> None:
    """Raise ``StorageError`` for a URL with a user or password in it, without saying them."""
    scheme, separator, rest = url.partition("://")
    if separator and "@" in rest.partition("/")[0]:
        raise StorageError(
            f"the {scheme}:// URL holds credentials",
            hint="leave them out of it; they come from the environment and configuration files",
        )


class LocalStorage:
    """A folder on this machine."""

    is_local = True

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
        fresh = target.with_name(f".tmp-{uuid.uuid4().hex}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with fresh.open("xb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(target)
            _sync_folder(target.parent)
        except OSError as error:
            raise _not_written(target, error) from None
        finally:
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a move outlive a loss of power: blobs must, before the file that names them."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _not_written(target: Path, error: OSError) -> StorageError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "free some space, or choose another root with MFIMAGE_FUNCTIONS_ROOT"
    else:
        hint = "choose a writable root with MFIMAGE_FUNCTIONS_ROOT"
    return StorageError(f"cannot write {target}: {error.strerror or error}", hint=hint)
