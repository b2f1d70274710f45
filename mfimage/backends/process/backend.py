"""The process backend: calls and batches to a pool of workers."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mfimage.backends.calls import RemoteBackend
from mfimage.backends.map import MapOptions, MapStream
from mfimage.backends.process.environments import worker_launch
from mfimage.backends.process.pool import WorkerPool
from mfimage.backends.process.worker import STARTING
from mfimage.errors import OptionError
from mfimage.package.store import Package
from mfimage.runtime.worker.frames import CALL

_BATCHES_PER_WORKER = 3


@dataclass(frozen=True, kw_only=True)
class ProcessOptions:
    """Options of the process backend."""

    workers: int = 1
    timeout: float | None = None  # seconds that one record may take; then its worker is replaced
    start_timeout: float = 300.0  # seconds until the function must be imported
    python: Path | None = None  # one that has mfimage and satisfies the lock; else it is made

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise OptionError(f"workers: expected at least 1, got {self.workers}")
        for name in ("timeout", "start_timeout"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise OptionError(f"{name}: expected more than 0 seconds, got {value}")


class ProcessBackend(RemoteBackend):
    """Runs a package's function in isolated interpreters; thread-safe."""

    def __init__(self, package: Package, options: ProcessOptions = ProcessOptions()) -> None:
        self._package = package  # keeps its blobs in the cache
        self._workers = options.workers
        self._data: str | None = None
        launch = worker_launch(
            package,
            python=options.python,
            timeout=options.timeout,
            start_timeout=options.start_timeout,
        )
        self._pool = WorkerPool(launch, options.workers)
        super().__init__(
            package.spec.name,
            call=partial(self._pool.call, CALL),
            close=self._pool.close,
            max_threads=options.workers,
        )
        _BACKENDS.add(self)

    def _root(self) -> str:
        if self._data is None:
            self._data = self._pool.data()
        return self._data

    def map(
        self, records: Iterable[Any], *, batch_size: int, on_error: str, max_in_flight: int = 0
    ) -> Iterator[Any]:
        """Yield results in order; batches go to all workers, three to each ahead by default."""
        # As a generator it starts when the first result is taken, and keeps the backend alive.
        options = MapOptions(
            post=self._pool.post,
            collect=self._pool.collect,
            root=self._root(),
            batch_size=batch_size,
            exact=self._package.spec.batch,
            max_in_flight=max_in_flight or _BATCHES_PER_WORKER * self._workers,
            raises=on_error == "raise",
        )
        yield from MapStream(self._name, records, options).results()

    def _after_fork(self) -> None:
        self._lock = threading.Lock()
        self._threads = None
        self._pool.forget()


_BACKENDS: weakref.WeakSet[ProcessBackend] = weakref.WeakSet()


def _after_fork() -> None:
    STARTING.release()
    for backend in list(_BACKENDS):
        backend._after_fork()


os.register_at_fork(
    before=STARTING.acquire, after_in_parent=STARTING.release, after_in_child=_after_fork
)
