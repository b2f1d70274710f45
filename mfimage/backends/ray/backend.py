"""The Ray backend: calls and batches to a pool of actors."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from functools import partial
from typing import Any

from mfimage.backends.calls import RemoteBackend
from mfimage.backends.map import MapOptions, MapStream
from mfimage.backends.ray.actors import Launcher
from mfimage.backends.ray.cluster import import_ray, join, leave
from mfimage.backends.ray.options import RayOptions
from mfimage.backends.ray.pool import AHEAD, ActorPool
from mfimage.errors import BackendError, InputError
from mfimage.function import json as json_values
from mfimage.package.store import Package
from mfimage.terminal import is_terminal, text_bar

# A batch costs a round trip of about a millisecond.
_BATCH_SECONDS = 0.05
# How many short batches of a batch function may share a round trip.
_TOGETHER = 4
_MAX_THREADS = 64
# Shorter maps show no progress bar.
_BAR_AFTER_SECONDS = 1.0
_BAR_EVERY_SECONDS = 0.1
# One bar at a time: a second map may run inside the first one's loop.
_BAR_LOCK = threading.Lock()


class RayBackend(RemoteBackend):
    """Runs a package's function in actors of a Ray cluster; thread-safe."""

    def __init__(self, package: Package, options: RayOptions) -> None:
        self._batch = package.spec.batch
        self._progress = options.progress
        self._pid = os.getpid()
        join(options.address)
        try:
            self._pool = ActorPool(package.spec.name, Launcher(package, options), options)
        except BaseException:
            leave()
            raise
        super().__init__(
            package.spec.name,
            call=self._pool.call,
            close=partial(_close, self._pool, self._pid),
            max_threads=min(_MAX_THREADS, AHEAD * self._pool.actors.maximum),
        )

    def _root(self) -> str:
        if self._pid != os.getpid():
            raise BackendError(
                f"{self._name}: a forked process has no connection to the Ray cluster",
                hint="load the function there, or start processes with 'spawn'",
            )
        actors = self._pool.actors
        return actors.data or actors.when_ready(lambda: actors.data)

    def remote(self, record: Any) -> Any:
        """Start a call and return Ray's ``ObjectRef`` to its result.

        ``record`` is a JSON value, or an ``ObjectRef`` to one.
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

        By default each actor has four requests of one batch each, or of up to four short batches
        of a batch function.
        """
        actors = self._pool.actors.maximum
        in_flight = max_in_flight or AHEAD * actors * (_TOGETHER if self._batch else 1)
        together = max(1, min(_TOGETHER, in_flight // (2 * actors)))
        options = MapOptions(
            post=partial(
                self._pool.post,
                size=batch_size if self._batch else 0,
                ahead=max(AHEAD, -(-in_flight // (actors * together))),
            ),
            collect=self._pool.collect,
            root=self._root(),
            batch_size=batch_size,
            exact=self._batch,
            max_in_flight=in_flight,
            raises=on_error == "raise",
            seconds=_BATCH_SECONDS,
            together=together,
        )
        results = MapStream(self._name, records, options).results()
        if self._progress:
            total = len(records) if isinstance(records, Sized) else None
            results = with_progress(self._name, results, total)
        yield from results


def _close(pool: ActorPool, pid: int) -> None:
    if pid == os.getpid():
        pool.actors.close()
        leave()


def with_progress(name: str, results: Iterator[Any], total: int | None) -> Iterator[Any]:
    """Yield results, and show their number on stderr if that is a terminal.

    ``total`` is how many there will be, if known.
    """
    if not is_terminal() or not _BAR_LOCK.acquire(blocking=False):
        yield from results
        return
    bar = None
    began = time.monotonic()
    draw_at = began + _BAR_AFTER_SECONDS
    try:
        for count, result in enumerate(results, 1):
            yield result
            if (now := time.monotonic()) < draw_at:
                continue
            draw_at = now + _BAR_EVERY_SECONDS
            text = f"{name}: {count:,} done, {count / (now - began):,.0f}/s"
            if bar is None:
                # Without its own thread, which would draw while the process ends.
                bar = text_bar(refresh=False)
                task = bar.add_task(text, total=total)
                bar.start()
                bar.console.show_cursor()  # a killed process could not show it again
            bar.update(task, description=text, completed=count, refresh=True)
    finally:
        if bar is not None:
            bar.stop()
        _BAR_LOCK.release()
