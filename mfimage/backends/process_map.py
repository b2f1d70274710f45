"""Many records through the workers: in batches, some ahead, in order, in bounded memory."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mfimage.backends.worker_pool import WorkerPool
from mfimage.backends.workers import Resend, Ticket, confused
from mfimage.errors import InputError
from mfimage.function import serializers
from mfimage.runtime.frames import BATCH, MIXED, RESULTS, Frame
from mfimage.runtime.remote_errors import rebuild

# Longer batches gain nothing; the shorter they are, the sooner the first result is there.
_BATCH_SECONDS = 0.005
_GROWTH = 4


@dataclass(frozen=True, kw_only=True)
class MapOptions:
    """How records go through.

    Attributes
    ----------
    root : str
        What paths in input errors start with.
    batch_size : int
        The most records in a batch.
    exact : bool
        Whether every batch but the last has that many, however long that takes.
    max_in_flight : int
        The most batches that wait for an answer.
    raises : bool
        Whether to raise the first exception, or to yield each in its record's place.
    """

    root: str
    batch_size: int
    exact: bool
    max_in_flight: int
    raises: bool


@dataclass(eq=False)
class _Batch:
    """Records on their way.

    Attributes
    ----------
    count : int
        How many were read.
    lines : list of bytes
        Those that have a JSON form.
    refused : dict of int to InputError
        The others, by their place.
    """

    count: int = 0
    lines: list[bytes] = field(default_factory=list)
    refused: dict[int, Exception] = field(default_factory=dict)
    ticket: Ticket | None = None

    def post(self, pool: WorkerPool, *, wait: bool) -> bool:
        """Send it; return whether it is under way."""
        if self.lines:
            self.ticket = pool.post(BATCH, b"\n".join(self.lines), len(self.lines), wait=wait)
        return self.ticket is not None or not self.lines


class MapStream:
    """The results of many records, as an iterator.

    Nothing is held between two results but what is under way: a caller may stop at any time, or
    call the same function in between.
    """

    def __init__(
        self, name: str, pool: WorkerPool, records: Iterable[Any], options: MapOptions
    ) -> None:
        self._name = name
        self._pool = pool
        self._options = options
        self._source = iter(records)
        self._window: deque[_Batch] = deque()
        self._unsent: _Batch | None = None
        self._size = options.batch_size if options.exact else 1
        self._exhausted = False

    def results(self) -> Iterator[Any]:
        """Yield results in order, or exceptions in their places."""
        raises = self._options.raises
        while True:
            self._fill()
            if not self._window:
                return
            for result in self._outcome(self._window.popleft()):
                if raises and isinstance(result, Exception):
                    raise result
                yield result

    def _fill(self) -> None:
        """Send batches ahead, unless records are slow to come: then results come first."""
        slow = False
        while not slow and len(self._window) < self._options.max_in_flight:
            if self._unsent is None:
                self._unsent, slow = self._read()
            if not self._unsent.count:
                return
            if not self._unsent.post(self._pool, wait=not self._window):
                return
            self._window.append(self._unsent)
            self._unsent = None

    def _read(self) -> tuple[_Batch, bool]:
        """Read the next batch; tell whether that took long."""
        batch, exact, size = _Batch(), self._options.exact, self._size
        lines, root, dumps = batch.lines, self._options.root, serializers.dumps
        limit = time.perf_counter() + _BATCH_SECONDS
        slow = False
        count = 0
        while count < size and not (slow and not exact) and not self._exhausted:
            try:
                record = next(self._source)
            except StopIteration:
                self._exhausted = True
                break
            try:
                lines.append(dumps(record, root=root, error=InputError))
            except InputError as error:
                batch.refused[count] = error
            count += 1
            slow = time.perf_counter() > limit
        batch.count = count
        return batch, slow

    def _outcome(self, batch: _Batch) -> list[Any]:
        answers = self._answers(batch) if batch.lines else []
        if not batch.refused:
            return answers
        rest = iter(answers)
        return [batch.refused.get(place) or next(rest) for place in range(batch.count)]

    def _answers(self, batch: _Batch) -> list[Any]:
        assert batch.ticket is not None
        self._pool.collect(batch.ticket)
        while isinstance(batch.ticket.answer, Resend):
            batch.post(self._pool, wait=True)
            self._pool.collect(batch.ticket)
        answer = batch.ticket.answer
        if isinstance(answer, Exception):
            return [answer] * len(batch.lines)
        assert answer is not None
        self._adapt(answer, len(batch.lines))
        results = _decode(answer)
        if results is None or len(results) != len(batch.lines):
            return [confused(self._name)] * len(batch.lines)
        return results

    def _adapt(self, answer: Frame, count: int) -> None:
        """Make batches as long as is worth while, by what the last one took."""
        if not self._options.exact:
            fitting = int(count * _BATCH_SECONDS * 1e6 / max(answer.micros, 1))
            most = min(self._options.batch_size, self._size * _GROWTH)
            self._size = max(1, min(fitting, most))


def _decode(answer: Frame) -> list[Any] | None:
    """Return results, and exceptions in their places; None when it is no such answer."""
    try:
        if answer.kind == RESULTS:
            return _decode_good(answer.payload)
        if answer.kind == MIXED:
            return [_decode_line(line) for line in answer.payload.split(b"\n")]
    except ValueError:
        pass
    return None


def _decode_good(payload: bytes) -> list[Any]:
    try:
        # One list is parsed much faster than its members.
        found: list[Any] = serializers.loads(b"[%b]" % payload.replace(b"\n", b","))
    except ValueError:  # a member is as deep as can be
        found = [serializers.loads(line) for line in payload.split(b"\n")]
    return found


def _decode_line(line: bytes) -> Any:
    return serializers.loads(line[1:]) if line[:1] == b"+" else rebuild(line[1:])
