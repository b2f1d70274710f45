"""Many records through the workers: in batches, some ahead, in order, in bounded memory."""

from __future__ import annotations

import itertools
import json
import struct
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from mfimage.backends.process.workers import Resend, confused
from mfimage.errors import InputError
from mfimage.function import json as json_values
from mfimage.runtime.worker.exceptions import rebuild
from mfimage.runtime.worker.frames import ARRAY, BATCH, MIXED, PARTS, RESULTS, Frame, split_parts

# How long records may be waited for while there are results to give.
_READ_SECONDS = 0.005
_GROWTH = 4


class Posted(Protocol):
    """A batch that was sent, and its answer once it is there."""

    answer: Frame | Exception | None


class Pool(Protocol):
    """Where batches go: processes of this machine, or a cluster's actors."""

    def post(self, kind: int, payload: bytes, records: int, *, wait: bool) -> Posted | None:
        """Send a batch; return None when all are busy and ``wait`` is false."""

    def collect(self, ticket: Any) -> None:
        """Wait until what was posted has its answer."""


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
    seconds : float
        How long a batch may take, unless it is exact. Longer ones gain nothing; the shorter they
        are, the sooner the first result is there.
    together : int
        How many exact batches are sent at once, when they take less than ``seconds``.
    """

    root: str
    batch_size: int
    exact: bool
    max_in_flight: int
    raises: bool
    seconds: float = 0.005
    together: int = 1


@dataclass(eq=False)
class _Batch:
    """Records on their way.

    Attributes
    ----------
    count : int
        How many were read.
    lines : bytearray
        Those that have a JSON form, each with a line's end.
    good : int
        How many these are.
    is_good : bool
        Whether there are results for all of them.
    refused : dict of int to InputError
        The others, by their place.
    """

    count: int = 0
    lines: bytearray = field(default_factory=bytearray)
    good: int = 0
    is_good: bool = False
    refused: dict[int, Exception] = field(default_factory=dict)
    ticket: Posted | None = None

    def post(self, pool: Pool, *, wait: bool) -> bool:
        """Send it; return whether it is under way."""
        if self.good:
            self.ticket = pool.post(BATCH, bytes(self.lines[:-1]), self.good, wait=wait)
        return self.ticket is not None or not self.good


class MapStream:
    """The results of many records, as an iterator.

    Nothing is held between two results but what is under way: a caller may stop at any time, or
    call the same function in between.
    """

    def __init__(self, name: str, pool: Pool, records: Iterable[Any], options: MapOptions) -> None:
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
            batch = self._window.popleft()
            results = self._outcome(batch)
            if not raises or batch.is_good:
                yield from results
                continue
            for result in results:
                if isinstance(result, Exception):
                    raise result
                yield result

    def _fill(self) -> None:
        """Send batches ahead, unless records are slow to come: then results come first."""
        slow = False
        while not slow and len(self._window) < self._most():
            if self._unsent is None:
                self._unsent, slow = self._read()
            if not self._unsent.count:
                return
            if not self._unsent.post(self._pool, wait=not self._window):
                return
            self._window.append(self._unsent)
            self._unsent = None

    def _most(self) -> int:
        options = self._options
        at_once = self._size // options.batch_size if options.exact else 1
        return max(1, options.max_in_flight // at_once)

    def _read(self) -> tuple[_Batch, bool]:
        """Read the next batch; tell whether that took long."""
        batch, exact, size = _Batch(), self._options.exact, self._size
        lines, root, clock = batch.lines, self._options.root, time.perf_counter
        encode = json_values.line_encoder(root=root, error=InputError)
        limit = clock() + _READ_SECONDS
        slow = False
        count = 0
        for record in itertools.islice(self._source, size if not self._exhausted else 0):
            try:
                # At once: it may be changed before the next. Kept one by one, as many short
                # strings, they would take the allocator longer than all else.
                lines += encode(record)
            except InputError as error:
                batch.refused[count] = error
            count += 1
            if not exact and clock() > limit:
                slow = True
                break
        batch.count = count
        self._exhausted = not slow and batch.count < size
        batch.good = batch.count - len(batch.refused)
        return batch, slow or time.perf_counter() > limit

    def _outcome(self, batch: _Batch) -> list[Any]:
        answers = self._answers(batch) if batch.good else []
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
            return [answer] * batch.good
        assert answer is not None
        self._adapt(answer, batch.good)
        results = _decode(answer)
        if results is None or len(results) != batch.good:
            return [confused(self._name)] * batch.good
        batch.is_good = answer.kind in (ARRAY, RESULTS) and not batch.refused
        return results

    def _adapt(self, answer: Frame, count: int) -> None:
        """Make batches as long as is worth while, by what the last one took."""
        options = self._options
        fitting = int(count * options.seconds * 1e6 / max(answer.micros, 1))
        if options.exact:
            many = options.batch_size * options.together
            self._size = many if fitting >= many else options.batch_size
        else:
            self._size = max(1, min(fitting, options.batch_size, self._size * _GROWTH))


def _decode(answer: Frame) -> list[Any] | None:
    """Return results, and exceptions in their places; None when it is no such answer."""
    try:
        return _decode_kind(answer.kind, answer.payload)
    except (ValueError, struct.error):
        return None


def _decode_kind(kind: int, payload: bytes) -> list[Any] | None:
    if kind == ARRAY:
        return _decode_array(payload)
    if kind == RESULTS:
        return _decode_good(payload)
    if kind == MIXED:
        return [_decode_line(line) for line in payload.split(b"\n")]
    if kind == PARTS:
        parts = [_decode_kind(*part) or [] for part in split_parts(payload)]
        return list(itertools.chain.from_iterable(parts))
    return None


def _decode_array(payload: bytes) -> list[Any]:
    try:
        found: list[Any] = json_values.loads(payload)
    except ValueError:  # as below; this one goes deeper
        found = json.loads(payload)
    return found


def _decode_good(payload: bytes) -> list[Any]:
    try:
        # One list is parsed much faster than its members.
        found: list[Any] = json_values.loads(b"[%b]" % payload.replace(b"\n", b","))
    except ValueError:  # a member is as deep as can be
        found = [json_values.loads(line) for line in payload.split(b"\n")]
    return found


def _decode_line(line: bytes) -> Any:
    return json_values.loads(line[1:]) if line[:1] == b"+" else rebuild(line[1:])
