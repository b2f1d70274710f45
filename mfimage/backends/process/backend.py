"""The function in processes of its own, in the environment that it is locked to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import threading
import weakref
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from mfimage.backends.call_threads import CallThreads
from mfimage.backends.code_cache import code_folder
from mfimage.backends.process.environments import environment_python, runtime_folder
from mfimage.backends.process.map import MapOptions, MapStream
from mfimage.backends.process.pool import WorkerPool
from mfimage.backends.process.process import STARTING, Launch
from mfimage.backends.process.workers import confused, told
from mfimage.errors import InputError, OptionError
from mfimage.function import json as json_values
from mfimage.package.storage.blobs import blob_cache_folder
from mfimage.package.storage.local import LocalStorage
from mfimage.package.store import Package
from mfimage.runtime.worker.frames import CALL, FAILURE, RESULT

_BATCHES_PER_WORKER = 3


@dataclass(frozen=True, kw_only=True)
class ProcessOptions:
    """How a function runs in processes of its own.

    Attributes
    ----------
    workers : int
        How many processes.
    timeout : float or None
        Seconds that one record may take; then its worker is stopped and replaced.
    start_timeout : float
        Seconds until the function must be imported.
    """

    workers: int = 1
    timeout: float | None = None
    start_timeout: float = 300.0

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise OptionError(f"workers: expected at least 1, got {self.workers}")
        for name in ("timeout", "start_timeout"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise OptionError(f"{name}: expected seconds, more than 0, got {value}")


class ProcessBackend:
    """Runs a package's function in isolated interpreters; any thread may call it.

    The environment is made when it is not there yet. Workers start at once and import the function
    while the caller goes on; what goes wrong there is told by the first call.

    Parameters
    ----------
    package : Package
        What to run.
    options : ProcessOptions
        How.
    """

    def __init__(self, package: Package, options: ProcessOptions = ProcessOptions()) -> None:
        self._package = package  # while it is there, its blobs stay in the cache
        self._name = package.spec.name
        self._batch = package.spec.batch
        self._workers = options.workers
        self._data: str | None = None
        self._pool = WorkerPool(launch_of(package, options), options.workers)
        self._threads: CallThreads | None = None
        self._lock = threading.Lock()
        self._finalizer = weakref.finalize(self, self._pool.close)
        _BACKENDS.add(self)

    def __call__(self, record: Any) -> Any:
        """Return the result for one record."""
        payload = json_values.dumps(record, root=self._data or self._root(), error=InputError)
        frame = self._pool.call(CALL, payload)
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
                self._threads = CallThreads(f"mfimage-{self._name}", self._workers)
                weakref.finalize(self, self._threads.end)
            return self._threads.submit(self, record)

    def map(
        self,
        records: Iterable[Any],
        *,
        batch_size: int,
        on_error: str,
        max_in_flight: int | None = None,
    ) -> Iterator[Any]:
        """Yield results in order; batches go to all workers, some ahead.

        Parameters
        ----------
        batch_size : int
            The most records that are sent together. A batch function gets exactly so many; for
            others it is fewer when they take long.
        max_in_flight : int, optional
            The most batches that are under way; three for each worker by default.
        """
        # A generator: nothing happens until the first result is wanted, and the workers stay as
        # long as somebody may want more.
        options = MapOptions(
            root=self._data or self._root(),
            batch_size=batch_size,
            exact=self._batch,
            max_in_flight=max_in_flight or _BATCHES_PER_WORKER * self._workers,
            raises=on_error == "raise",
        )
        yield from MapStream(self._name, self._pool, records, options).results()

    def close(self) -> None:
        """End the workers; calls that still run fail."""
        self._finalizer()
        with self._lock:
            if self._threads is not None:
                self._threads.end()
                self._threads = None

    def _root(self) -> str:
        """Return the name of the function's first parameter, once it is imported."""
        if self._data is None:
            worker = self._pool.take()
            assert worker is not None
            self._data = worker.data
            self._pool.give_back(worker)
        assert self._data is not None
        return self._data

    def _after_fork(self) -> None:
        self._lock = threading.Lock()
        self._threads = None
        self._pool.forget()


def launch_of(package: Package, options: ProcessOptions) -> Launch:
    """Return how to start a worker; the environment is made when it is not there yet."""
    return Launch(
        name=package.spec.name,
        python=environment_python(package),
        runtime=runtime_folder(),
        start=_start(package),
        timeout=options.timeout,
        start_timeout=options.start_timeout,
    )


def _start(package: Package) -> bytes:
    """Return what a worker is told to load."""
    config = {
        "spec": package.spec.to_json().decode(),
        "reference": package.reference,
        "code": str(code_folder(package)),
        "blobs": str(blob_folder(package)),
        "log_level": logging.getLogger().level,
    }
    return json.dumps(config).encode()


def blob_folder(package: Package) -> str:
    """Return the folder that holds a package's artifacts by digest: its root's own, if local.

    Those of a remote root are in the cache afterwards, as long as there is the package. Nothing
    local is verified here: whoever reads a blob does.
    """
    storage = package.store.storage
    if isinstance(storage, LocalStorage):
        return str(storage.root / "blobs" / "sha256")
    for ref in package.spec.artifacts.values():
        package.store.blob_file(ref)
    return str(blob_cache_folder())


_BACKENDS: weakref.WeakSet[ProcessBackend] = weakref.WeakSet()


def _after_fork() -> None:
    STARTING.release()
    for backend in list(_BACKENDS):
        backend._after_fork()


os.register_at_fork(
    before=STARTING.acquire, after_in_parent=STARTING.release, after_in_child=_after_fork
)
