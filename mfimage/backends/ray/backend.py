"""The function in actors of a Ray cluster."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import weakref
from collections.abc import Iterable, Iterator, Sized
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from mfimage.backends.call_threads import CallThreads
from mfimage.backends.process.map import MapOptions, MapStream
from mfimage.backends.process.workers import confused, told
from mfimage.backends.ray.actors import Launcher, Ticket
from mfimage.backends.ray.cluster import import_ray, join, leave
from mfimage.backends.ray.options import RayOptions
from mfimage.backends.ray.pool import AHEAD, RayPool
from mfimage.backends.ray.progress import watched
from mfimage.errors import BackendError, InputError
from mfimage.function import json as json_values
from mfimage.package.store import Package
from mfimage.runtime.worker.frames import FAILURE, RESULT

# A batch costs a round trip of about a millisecond.
_BATCH_SECONDS = 0.05
# Of a batch function, so many short batches share that.
_TOGETHER = 4
_MOST_THREADS = 64


class RayBackend:
    """Runs a package's function in actors of a Ray cluster; any thread may call it.

    Parameters
    ----------
    package : Package
        What to run.
    options : RayOptions
        Where, and with what.

    Raises
    ------
    BackendError
        When the cluster does not answer, or has not what is asked for.
    """

    def __init__(self, package: Package, options: RayOptions) -> None:
        self._name = package.spec.name
        self._batch = package.spec.batch
        self._progress = options.progress
        self._pid = os.getpid()
        self._threads: CallThreads | None = None
        self._lock = threading.Lock()
        join(options.address)
        try:
            self._pool = RayPool(self._name, Launcher(package, options), options)
        except BaseException:
            leave()
            raise
        self._finalizer = weakref.finalize(self, _close, self._pool, self._pid)

    def __call__(self, record: Any) -> Any:
        """Return the result for one record."""
        payload = json_values.dumps(record, root=self._root(), error=InputError)
        frame = self._pool.call(payload)
        if frame.kind == FAILURE:
            raise told(self._name, frame.payload)
        if frame.kind == RESULT:
            with contextlib.suppress(ValueError):
                return json_values.loads(frame.payload)
        raise confused(self._name)

    async def acall(self, record: Any) -> Any:
        """Return the result for one record; a thread waits for it."""
        return await asyncio.wrap_future(self.submit(record))

    def submit(self, record: Any) -> Future[Any]:
        """Start a call in a thread."""
        with self._lock:
            if self._threads is None:
                most = min(_MOST_THREADS, AHEAD * self._pool.fleet.most)
                self._threads = CallThreads(f"mfimage-{self._name}", most)
                weakref.finalize(self, self._threads.end)
            return self._threads.submit(self, record)

    def remote(self, record: Any) -> Any:
        """Start a call and return Ray's ``ObjectRef`` to its result.

        Parameters
        ----------
        record
            A JSON value, or an ``ObjectRef`` to one.
        """
        root = self._root()
        if isinstance(record, import_ray().ObjectRef):
            return self._pool.remote(record, is_json=False)
        payload = json_values.dumps(record, root=root, error=InputError)
        return self._pool.remote(payload, is_json=True)

    def map(
        self,
        records: Iterable[Any],
        *,
        batch_size: int,
        on_error: str,
        max_in_flight: int | None = None,
    ) -> Iterator[Any]:
        """Yield results in order; batches go to all actors, some ahead.

        Parameters
        ----------
        batch_size : int
            The most records that are sent together. A batch function gets exactly so many; for
            others it is fewer when they take long.
        max_in_flight : int, optional
            The most batches that are under way. By default each actor has four requests, of one
            batch each; of a batch function's short ones, up to four.
        """
        most = self._pool.fleet.most
        under_way = max_in_flight or AHEAD * most * (_TOGETHER if self._batch else 1)
        together = max(1, min(_TOGETHER, under_way // (2 * most)))
        options = MapOptions(
            root=self._root(),
            batch_size=batch_size,
            exact=self._batch,
            max_in_flight=under_way,
            raises=on_error == "raise",
            seconds=_BATCH_SECONDS,
            together=together,
        )
        ahead = max(AHEAD, -(-under_way // (most * together)))
        size = batch_size if self._batch else 0
        batches = _Batches(pool=self._pool, size=size, ahead=ahead)
        results = MapStream(self._name, batches, records, options).results()
        if self._progress:
            total = len(records) if isinstance(records, Sized) else None
            results = watched(self._name, results, total)
        yield from results

    def close(self) -> None:
        """End the actors; calls that still run fail."""
        self._finalizer()
        with self._lock:
            if self._threads is not None:
                self._threads.end()
                self._threads = None

    def _root(self) -> str:
        """Return the name of the function's first parameter, once it is loaded."""
        if self._pid != os.getpid():
            raise BackendError(
                f"{self._name}: a forked process has no connection to the Ray cluster",
                hint="load the function there, or start processes with 'spawn'",
            )
        return self._pool.fleet.data or self._pool.fleet.wait_ready()


@dataclass(frozen=True, kw_only=True)
class _Batches:
    """The actors as one ``map`` sees them."""

    pool: RayPool
    size: int
    ahead: int

    def post(self, kind: int, payload: bytes, records: int, *, wait: bool) -> Ticket | None:
        return self.pool.post(kind, payload, records, size=self.size, wait=wait, ahead=self.ahead)

    def collect(self, ticket: Any) -> None:
        self.pool.collect(ticket)


def _close(pool: RayPool, pid: int) -> None:
    if pid == os.getpid():
        pool.fleet.close()
        leave()
