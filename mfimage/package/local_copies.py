"""A remote root's blobs as files on this machine."""

from __future__ import annotations

import hashlib
import shutil
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from mfimage.package.blob_cache import BlobCache, Held
from mfimage.package.spec import BlobRef

FetchBlob = Callable[[BlobRef, BinaryIO], None]


class LocalCopies:
    """Blobs in the user's cache; those in use stay there.

    Parameters
    ----------
    fetch : callable
        Writes a blob's content into a file, in place of what it holds.
    """

    def __init__(self, fetch: FetchBlob) -> None:
        self._fetch = fetch
        self._cache = BlobCache()
        self._held: dict[str, Held] = {}
        self._lock = threading.Lock()
        weakref.finalize(self, _release, self._held, self._cache)

    def file(self, ref: BlobRef) -> Path:
        """Return a file with a blob, verified, which stays as long as ``self``."""
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

    def add(self, ref: BlobRef, source: BinaryIO) -> None:
        """Keep what was just written to the root."""

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
