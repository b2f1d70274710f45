"""A pipeline: each part runs on a backend of its own; what it returns goes to the next."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from functools import partial
from typing import Any

from mfimage.backends.base import Backend
from mfimage.package.spec import PipelineSpec
from mfimage.runtime.loading.parts import PartErrors

# Failures in a row that are kept while a part is ahead of its results.
_MAX_FAILURES = 1024


class PipelineBackend:
    """Runs the parts of a pipeline, one after the other; thread-safe."""

    def __init__(self, spec: PipelineSpec, parts: Sequence[Backend]) -> None:
        self._parts = parts
        self._errors = PartErrors(spec)

    def __call__(self, record: Any) -> Any:
        """Return the result for one record."""
        for index, part in enumerate(self._parts):
            with self._errors.naming(index):
                record = part(record)
        return record

    async def acall(self, record: Any) -> Any:
        """Return the result for one record without blocking the caller's event loop."""
        for index, part in enumerate(self._parts):
            with self._errors.naming(index):
                record = await part.acall(record)
        return record

    def submit(self, record: Any) -> Future[Any]:
        """Start a call; each part is started by the thread in which the one before it ended."""
        whole: Future[Any] = Future()
        self._start(whole, 0, record)
        return whole

    def _start(self, whole: Future[Any], index: int, record: Any) -> None:
        future = self._parts[index].submit(record)
        future.add_done_callback(partial(self._advance, whole, index))

    def _advance(self, whole: Future[Any], index: int, done: Future[Any]) -> None:
        try:
            with self._errors.naming(index):
                value = done.result()
            if index + 1 < len(self._parts) and not whole.cancelled():
                with self._errors.naming(index + 1):
                    self._start(whole, index + 1, value)
                return
        except BaseException as error:  # noqa: BLE001  (raised where the result is read)
            if whole.set_running_or_notify_cancel():
                whole.set_exception(error)
        else:
            if whole.set_running_or_notify_cancel():
                whole.set_result(value)

    def map(
        self, records: Iterable[Any], *, batch_size: int, on_error: str, max_in_flight: int = 0
    ) -> Iterator[Any]:
        """Yield results in order; all parts run at the same time where their backends can."""
        results: Iterator[Any] = map(_Record, records)
        for index, part in enumerate(self._parts):
            mapped = partial(
                part.map, batch_size=batch_size, on_error="return", max_in_flight=max_in_flight
            )
            results = self._stage(index, mapped, results)
        for result in results:
            if isinstance(result, _Record):
                yield result.value
            elif on_error == "raise":
                raise result
            else:
                yield result

    def _stage(self, index: int, mapped: Any, items: Iterator[Any]) -> Iterator[Any]:
        """Yield what a part makes of records; exceptions of parts before it keep their places."""
        failures: deque[Exception | None] = deque()  # None: a record that the part has
        exhausted = False

        def records() -> Iterator[Any]:
            nonlocal exhausted
            kept = 0
            for item in items:
                if isinstance(item, _Record):
                    kept = 0
                    failures.append(None)
                    yield item.value
                    continue
                failures.append(item)
                kept += 1
                if kept == _MAX_FAILURES:
                    return
            exhausted = True

        while not exhausted:
            with closing(mapped(records())) as results:
                for result in results:
                    while (failure := failures.popleft()) is not None:
                        yield failure
                    if isinstance(result, Exception):
                        yield self._errors.named(index, result)
                    else:
                        yield _Record(result)
            while failures:
                failure = failures.popleft()
                assert failure is not None
                yield failure

    def close(self) -> None:
        """Release what the parts hold."""
        for part in self._parts:
            part.close()


class _Record:
    """A value that is not a failure, whatever it is."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value
