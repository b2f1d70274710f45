"""Objects of ``s3://``, ``gs://`` and ``azure://`` as a storage, with patience and clear errors."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO, TypeVar

from mfimage.errors import StorageError
from mfimage.package.once import told
from mfimage.package.remote_faults import Fault, find_fault
from mfimage.package.remote_objects import Objects, open_objects

logger = logging.getLogger(__name__)
T = TypeVar("T")
SCHEMES = ("s3", "gs", "azure")
# Not the state that the user's code may have seeded.
_JITTER = random.SystemRandom()
# How often what failed is tried again, unless METAFLOW_S3_RETRY_COUNT says so.
_RETRIES = 3


class RemoteStorage:
    """Objects below a prefix of a bucket, found as Metaflow's configuration says.

    What may go well another time is tried again a few times, and each time is logged.

    Parameters
    ----------
    scheme : {"s3", "gs", "azure"}
        The kind of store.
    root : str
        Bucket (for Azure: container) and prefix, as ``bucket/some/folder``.

    Raises
    ------
    StorageError
        When it is no usable root.
    """

    is_local = False

    def __init__(self, scheme: str, root: str) -> None:
        self._scheme = scheme
        self._root = _checked(scheme, root.rstrip("/"))
        self._connection: tuple[int, Objects | None] = (0, None)

    def url(self, path: str) -> str:
        """Return an object's URL."""
        return f"{self._scheme}://{self._root}/{path}"

    def read(self, path: str) -> bytes:
        """Return an object's bytes."""
        sink = io.BytesIO()
        self.fetch(path, sink)
        return sink.getvalue()

    def open(self, path: str) -> BinaryIO:
        """Return an object's content as a file, which goes when it is closed."""
        file = tempfile.TemporaryFile(prefix="mfimage-")  # noqa: SIM115
        try:
            self.fetch(path, file)
            file.seek(0)
        except BaseException:
            file.close()
            raise
        return file

    def fetch(self, path: str, sink: BinaryIO) -> None:
        """Write an object's content to a file on this machine, in place of what it holds.

        Raises
        ------
        FileNotFoundError
            When there is no such object.
        StorageError
            When it cannot be had, or the file not written.
        """

        def download(objects: Objects) -> None:
            sink.seek(0)
            sink.truncate()
            objects.download(path, sink)

        self._try("read", path, download)

    def size(self, path: str) -> int | None:
        """Return an object's size in bytes."""
        try:
            return self._try("read", path, lambda objects: objects.size(path))
        except FileNotFoundError:
            return None

    def write(self, path: str, source: BinaryIO) -> None:
        """Make an object of what ``source`` holds from here on."""
        with _rewindable(source) as file:

            def upload(objects: Objects) -> None:
                file.seek(0)
                objects.upload(path, file)

            self._try("write", path, upload)

    def _try(self, verb: str, path: str, operation: Callable[[Objects], T]) -> T:
        url = self.url(path)
        left = _retries()
        wait = 1.0
        with told(f"trying to {verb} {url}"):
            while True:
                try:
                    return operation(self._connected())
                except Exception as error:
                    fault = self._fault(error)
                    if fault is None:
                        raise
                    if fault.kind == "missing" and verb == "read":
                        raise FileNotFoundError(url) from None
                    if fault.kind != "transient" or not left:
                        message = f"cannot {verb} {url}: {fault.message}"
                        raise StorageError(message, hint=fault.hint) from error
                left -= 1
                logger.warning("cannot %s %s: %s; trying again", verb, url, fault.message)
                time.sleep(wait * _JITTER.uniform(0.5, 1.0))
                wait *= 2

    def _fault(self, error: Exception) -> Fault | None:
        return find_fault(error, scheme=self._scheme, bucket=self._root.partition("/")[0])

    def _connected(self) -> Objects:
        """Return what this process talks to; connections of the one that forked it are not ours."""
        process, objects = self._connection
        if objects is None or process != os.getpid():
            # No lock, which a fork could leave locked: at worst two threads make one each.
            objects = open_objects(self._scheme, self._root)
            self._connection = (os.getpid(), objects)
        return objects


def _checked(scheme: str, root: str) -> str:
    bucket, *prefix = root.split("/")
    if not bucket:
        kind = "container" if scheme == "azure" else "bucket"
        raise StorageError(f"{scheme}:// names no {kind}", hint=f"write {scheme}://{kind.upper()}")
    if any(part in ("", ".", "..") for part in prefix) or set(root) & set("?#\\\0\n\r"):
        raise StorageError(
            f"{f'{scheme}://{root}'!r} is not a usable root",
            hint="use letters, digits, -, _, . and single slashes",
        )
    return root


def _retries() -> int:
    from metaflow.metaflow_config_funcs import from_conf

    return max(0, int(from_conf("S3_RETRY_COUNT", _RETRIES)))


@contextlib.contextmanager
def _rewindable(source: BinaryIO) -> Iterator[BinaryIO]:
    """Yield a file that a second try can read from its start."""
    if source.seekable() and source.tell() == 0:
        yield source
        return
    with tempfile.TemporaryFile(prefix="mfimage-") as file:
        shutil.copyfileobj(source, file, 1 << 20)
        yield file
