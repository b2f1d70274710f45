"""The function in the caller's own process."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from mfimage.backends.code_cache import code_folder
from mfimage.package.store import Package
from mfimage.runtime.loading.loader import load_function


class LocalBackend:
    """Runs a package's function in this process; thread-safe. Artifacts are loaded when read."""

    def __init__(self, package: Package) -> None:
        self._live = load_function(
            package.spec, code=code_folder(package), read_blob=package.read, dedicated=False
        )
        self._pool: ThreadPoolExecutor | None = None
        self._pool_pid = 0
        self._lock = threading.Lock()

    def __call__(self, record: Any) -> Any:
        """Return the result for one record."""
        return self._live(record)

    async def acall(self, record: Any) -> Any:
        """Return the result for one record; a function that is not async runs in a thread."""
        if self._live.is_async:
            return await self._live.acall(record)
        return await asyncio.wrap_future(self.submit(record))

    def submit(self, record: Any) -> Future[Any]:
        """Start a call in a thread."""
        with self._lock:
            # A forked process inherits the pool but not its threads.
            if self._pool is None or self._pool_pid != os.getpid():
                self._pool = ThreadPoolExecutor(thread_name_prefix=f"mfimage-{self._live.name}")
                self._pool_pid = os.getpid()
            return self._pool.submit(self._live, record)

    def map(
        self, records: Iterable[Any], *, batch_size: int, on_error: str, max_in_flight: int = 0
    ) -> Iterator[Any]:
        """Yield results in order; ``max_in_flight`` has no effect here."""
        iterator = iter(records)
        size = batch_size if self._live.batch else 1
        while chunk := list(itertools.islice(iterator, size)):
            for result in self._live.results(chunk):
                if isinstance(result, Exception) and on_error == "raise":
                    raise result
                yield result

    def close(self) -> None:
        """End the threads."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()
        self._live.close()
