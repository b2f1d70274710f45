"""Blobs of remote roots on this machine: each downloaded once, verified, in bounded space.

::

    blobs/sha256/<hex>                  a whole blob; its users hold a shared lock on it
    blobs/sha256/.<hex>.lock            locked by the process that downloads the blob
    blobs/sha256/.<hex>.partial-*       a download

A blob under a shared lock is not removed. The kernel releases the locks of a process that ends,
however it ends; its partial download is removed when the blob is next wanted, or room is made.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from mfimage.files import chunks_of, sha256_hex
from mfimage.package.spec import BlobRef
from mfimage.package.storage.cache import (
    SCRATCH,
    cache_folder,
    cache_size,
    is_at,
    locked,
    not_written,
    tag,
)

logger = logging.getLogger(__name__)

Fetch = Callable[[BlobRef, BinaryIO], None]
"""Writes a blob's content into a file, in place of what it holds."""


def blob_cache_folder() -> Path:
    """Return the folder that holds blobs by digest; it may not be there yet."""
    return cache_folder() / "blobs" / "sha256"


class DamagedBlob(Exception):
    """A download does not have the digest that its name says."""


class Held:
    """A whole blob in the cache, which is not removed while it is held."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    def matches(self, ref: BlobRef) -> bool:
        """Return whether the content has this digest."""
        with open(self._descriptor, "rb", closefd=False) as file:
            file.seek(0)
            return sha256_hex(chunks_of(file)) == ref.hex

    def size(self) -> int:
        """Return its size in bytes."""
        return os.fstat(self._descriptor).st_size

    def read(self) -> bytes:
        """Return the content, not verified."""
        with open(self._descriptor, "rb", closefd=False) as file:
            file.seek(0)
            return file.read()

    def is_there(self) -> bool:
        """Return whether it is still at its path: a user may delete the whole cache."""
        return is_at(self.path, self._descriptor)

    def release(self) -> None:
        """Release it."""
        # Closing, not unlocking: a forked process may hold it as well.
        with contextlib.suppress(OSError):
            os.close(self._descriptor)

    def discard(self) -> None:
        """Remove a damaged blob and release it."""
        with contextlib.suppress(FileNotFoundError):
            if self.is_there():
                self.path.unlink()
        self.release()


class BlobCache:
    """The blobs under the user's cache folder, or another ``folder`` below it."""

    def __init__(self, folder: Path | None = None) -> None:
        self._cache = cache_folder()
        self.folder = folder or blob_cache_folder()
        self._limit = cache_size()

    def hold(self, ref: BlobRef, fetch: Fetch, *, verify: bool = True) -> Held:
        """Return a blob; download it when it is missing or damaged."""
        # Without ``verify``, a cached blob is not verified; a download always is. ``DamagedBlob``
        # when it is damaged twice, ``StorageError`` when the cache cannot be written.
        scratch = SCRATCH.get()
        if scratch and self.folder != scratch and not self._path(ref).exists():
            return BlobCache(scratch).hold(ref, fetch)
        try:
            while True:
                if not self.folder.is_dir():
                    self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                    tag(self._cache)
                held = self._open(ref)
                if held is not None:
                    if not verify or held.matches(ref):
                        return held
                    logger.warning("%s was damaged; it is downloaded again", held.path)
                    held.discard()
                lock = self.folder / f".{ref.hex}.lock"
                with locked(lock), contextlib.ExitStack() as stack:
                    stack.callback(_remove, lock)
                    if not self._path(ref).exists():
                        return self._download(ref, fetch)
        except OSError as error:
            raise not_written(self.folder, error) from error

    def find(self, ref: BlobRef) -> Held | None:
        """Return a cached blob, not verified; None when there is none."""
        held = self._open(ref)
        if held is not None and held.size() != ref.size:
            held.discard()
            return None
        return held

    def adopt(self, ref: BlobRef, path: Path) -> Held:
        """Move a file that holds a blob into the cache; it was made in ``folder``."""
        path.replace(self._path(ref))
        held = self._open(ref)
        if held is None:  # the cache was deleted meanwhile
            raise not_written(self.folder, FileNotFoundError(2, "removed meanwhile"))
        self.trim()
        return held

    def trim(self, room: int = 0) -> None:
        """Remove the least recently used blobs, until the rest and ``room`` fit."""
        try:
            names = [path.name for path in self.folder.iterdir()]
        except OSError:
            return
        blobs = []
        for name in names:
            with contextlib.suppress(OSError):  # removed meanwhile
                if name[0] != ".":
                    found = (self.folder / name).stat()
                    blobs.append((found.st_mtime, found.st_size, self.folder / name))
        excess = sum(size for _, size, _ in blobs) + room - self._limit
        for _, size, path in sorted(blobs):
            if excess <= 0:
                break
            with _only_user(path) as alone:
                if alone:
                    _remove(path)
                    excess -= size
        for lock in (self.folder / name for name in names if name.endswith(".lock")):
            with _only_user(lock) as alone:
                if alone:  # what a killed download left
                    self._remove_partials(lock.name.split(".")[1])
                    _remove(lock)

    def _path(self, ref: BlobRef) -> Path:
        return self.folder / ref.hex

    def _open(self, ref: BlobRef) -> Held | None:
        """Return a cached blob, under a shared lock from now on."""
        path = self._path(ref)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        held = Held(path, descriptor)
        try:
            # A process that removes it holds it for a moment only.
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if held.is_there():
                if not SCRATCH.get():
                    with contextlib.suppress(OSError):  # the cache may be read-only
                        os.utime(descriptor)
                return held
        except BaseException:
            held.release()
            raise
        held.release()
        return None

    def _download(self, ref: BlobRef, fetch: Fetch) -> Held:
        self._remove_partials(ref.hex)
        self.trim(ref.size)
        descriptor, name = tempfile.mkstemp(prefix=f".{ref.hex}.partial-", dir=self.folder)
        held = Held(self._path(ref), descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            with open(descriptor, "r+b", closefd=False) as file:
                _fetch_verified(ref, fetch, file)
            Path(name).replace(held.path)
        except BaseException:
            held.release()
            _remove(Path(name))
            raise
        self.trim()  # other processes may have added blobs
        return held

    def _remove_partials(self, hexdigest: str) -> None:
        for partial in self.folder.glob(f".{hexdigest}.partial-*"):
            _remove(partial)


def _fetch_verified(ref: BlobRef, fetch: Fetch, file: BinaryIO) -> None:
    for again in (True, False):
        fetch(ref, file)
        file.flush()
        file.seek(0)
        if sha256_hex(chunks_of(file)) == ref.hex:
            return
        if again:
            logger.warning("a download of %s arrived damaged; trying again", ref.digest)
    raise DamagedBlob(ref.digest)


@contextlib.contextmanager
def _only_user(path: Path) -> Iterator[bool]:
    """Yield whether no other process uses a file; while the block lasts, none can start to."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield is_at(path, descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


class LocalCopies:
    """A remote root's blobs as files in the user's cache; those in use stay there."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._cache = BlobCache()
        self._held: dict[str, Held] = {}
        self._lock = threading.Lock()
        weakref.finalize(self, _release, self._held, self._cache)

    def file(self, ref: BlobRef) -> Path:
        """Return the path of a blob, verified, which stays as long as ``self``."""
        held = self._held.get(ref.hex)
        if held is None or not held.is_there():
            held = self._cache.hold(ref, self._fetch)
            self._keep(ref, held)
        return held.path

    def read(self, ref: BlobRef) -> bytes:
        """Return a blob's bytes, verified."""
        while True:
            held = self._cache.hold(ref, self._fetch, verify=False)
            data = held.read()
            if hashlib.sha256(data).hexdigest() == ref.hex:
                held.release()
                return data
            held.discard()

    def peek(self, ref: BlobRef) -> bytes | None:
        """Return a blob's bytes, verified, if that needs no download."""
        held = self._cache.find(ref)
        if held is None:
            return None
        try:
            data = held.read()
        finally:
            held.release()
        return data if hashlib.sha256(data).hexdigest() == ref.hex else None

    def add(self, ref: BlobRef, source: BinaryIO) -> None:
        """Cache what was just written to the root."""

        def copy(_: BlobRef, file: BinaryIO) -> None:
            source.seek(0)
            file.seek(0)
            file.truncate()
            shutil.copyfileobj(source, file, 1 << 20)

        if ref.hex not in self._held:
            self._keep(ref, self._cache.hold(ref, copy))

    def _keep(self, ref: BlobRef, held: Held) -> None:
        with self._lock:
            before = self._held.get(ref.hex)
            self._held[ref.hex] = held
        if before is not None:
            before.release()


def _release(held: dict[str, Held], cache: BlobCache) -> None:
    for blob in held.values():
        blob.release()
    cache.trim()
