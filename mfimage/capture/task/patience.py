"""Reading Metaflow's remote datastores with the patience of somebody who waits.

Metaflow itself tries again for hours, and does not say why. Here the client library tries again
what may go well another time, a few times; then, or when it never will, the error is told.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from mfimage.errors import StorageError
from mfimage.package.once import told
from mfimage.package.remote_faults import Fault, find_fault
from mfimage.package.remote_objects import require_libraries, s3_client
from mfimage.package.remote_storage import SCHEMES

_BROKEN_ANSWERS = 2


def require_datastore(kind: str) -> None:
    """Raise ``StorageError`` when a datastore's client library is not installed."""
    if kind in SCHEMES:
        require_libraries(kind)


def make_patient(storage: Any, kind: str, root: str) -> None:
    """Give Metaflow's storage a client that does not try for hours."""
    if kind == "s3":
        storage.s3_client = _Client(root.partition("://")[2].partition("/")[0])


@contextlib.contextmanager
def reading(kind: str, root: str) -> Iterator[None]:
    """Tell what goes wrong with a datastore as ``StorageError``, and who waits what for."""
    if kind not in SCHEMES:
        yield
        return
    with told(f"reading from the datastore {root}"):
        try:
            yield
        except Exception as error:
            fault = _fault_of(error, kind, root)
            if fault is None:
                raise
            message = f"cannot read from the datastore {root}: {fault.message}"
            raise StorageError(message, hint=fault.hint) from error


def _fault_of(error: Exception, kind: str, root: str) -> Fault | None:
    from metaflow.datastore.exceptions import DataException

    if isinstance(error, DataException):  # there is a store, and something else in it
        return None
    found: Fault | None = getattr(error, "mfimage_fault", None)
    bucket = root.partition("://")[2] or root
    return found or find_fault(error, scheme=kind, bucket=bucket.partition("/")[0])


class _Client:
    """Takes the place of Metaflow's ``S3Client``."""

    def __init__(self, bucket: str) -> None:
        self._bucket = bucket
        self._client = s3_client()
        self._broken = 0

    @property
    def client(self) -> Any:
        return self

    @property
    def error(self) -> Any:
        return self._client.exceptions.ClientError

    def reset_client(self) -> None:
        """Be told that something went wrong that no call raised: an answer that broke off."""
        self._broken += 1
        if self._broken > _BROKEN_ANSWERS:
            raise _end(Fault(kind="transient", message="the answers break off"))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return method(*args, **kwargs)
            except Exception as error:
                fault = find_fault(error, scheme="s3", bucket=self._bucket)
                if fault is None or fault.kind == "missing":
                    raise
                raise _end(fault) from error

        return call


def _end(fault: Fault) -> Exception:
    """Return what Metaflow takes for its own, and does not try again."""
    from metaflow.exception import MetaflowException

    error = MetaflowException(fault.message)
    # Not a class of our own: its base is Metaflow's, which is imported only where it is used.
    error.mfimage_fault = fault  # type: ignore[attr-defined]
    return error
