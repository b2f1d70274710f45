"""Many records through workers or actors: in batches, some ahead, in order, in bounded memory."""

from __future__ import annotations

import itertools
import json
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from mfimage.backends.calls import Resend, invalid_reply
from mfimage.errors import InputError
from mfimage.function import json as json_values
from mfimage.runtime.worker.exceptions import rebuild
from mfimage.runtime.worker.frames import ARRAY, BATCH, MIXED, PARTS, RESULTS, Frame, split_parts

# How long reading records may take while there are results to yield.
_READ_SECONDS = 0.005
_GROWTH = 4


class SentBatch(Protocol):
    """A batch that was sent, and its reply once it has arrived."""

    reply: Frame | Exception | None


@dataclass(frozen=True, kw_only=True)
class MapOptions:
    """How records are batched, and where batches go."""

    # Sends (kind, payload, records, wait=), or returns None when all are busy and not to wait.
    post: Callable[..., SentBatch | None]
    collect: Callable[[Any], None]  # waits for the reply to what was sent
    root: str  # what paths in input errors start with
    batch_size: int  # the maximum
    exact: bool  # every batch but the last has that many, however long that takes
    max_in_flight: int  # batches
    raises: bool  # raise the first exception, or yield each in its record's place
    # How long a batch that is not exact should take: longer ones gain no throughput, and delay the
    # first result.
    seconds: float = 0.005
    together: int = 1  # how many exact batches to send at once while they take less than that


@dataclass(eq=False)
class _Batch:
    """Records read together: those that encode, as lines, and the errors of the others."""

    count: int = 0
    lines: bytearray = field(default_factory=bytearray)
    valid: int = 0
    refused: dict[int, Exception] = field(default_factory=dict)  # by place
    sent: SentBatch | None = None
    all_succeeded: bool = False


class MapStream:
    """The results of many records.

    Between two results it holds nothing but batches in flight: the caller may stop at any time, or
    call the same function in between.
    """

    def __init__(self, name: str, records: Iterable[Any], options: MapOptions) -> None:
        self._name = name
        self._options = options
        self._source = iter(records)
        self._window: deque[_Batch] = deque()
        self._unsent: _Batch | None = None
        self._size = options.batch_size if options.exact else 1
        self._exhausted = False

    def results(self) -> Iterator[Any]:
        """Yield results in order, or exceptions in their places."""
        while True:
            self._fill()
            if not self._window:
                return
            batch = self._window.popleft()
            results = self._outcome(batch)
            if not self._options.raises or batch.all_succeeded:
                yield from results
                continue
            for result in results:
                if isinstance(result, Exception):
                    raise result
                yield result

    def _fill(self) -> None:
        """Send batches ahead, unless records are slow to come: then results come first."""
        options = self._options
        at_once = self._size // options.batch_size if options.exact else 1
        maximum = max(1, options.max_in_flight // at_once)
        slow = False
        while not slow and len(self._window) < maximum:
            if self._unsent is None:
                self._unsent, slow = self._read()
            if not self._unsent.count or not self._post(self._unsent, wait=not self._window):
                return
            self._window.append(self._unsent)
            self._unsent = None

    def _post(self, batch: _Batch, *, wait: bool) -> bool:
        if batch.valid:
            payload = bytes(batch.lines[:-1])
            batch.sent = self._options.post(BATCH, payload, batch.valid, wait=wait)
        return batch.sent is not None or not batch.valid

    def _read(self) -> tuple[_Batch, bool]:
        """Read the next batch, and whether that was slow."""
        batch, exact, size = _Batch(), self._options.exact, self._size
        lines, root, clock = batch.lines, self._options.root, time.perf_counter
        encode = json_values.line_encoder(root=root, error=InputError)
        limit = clock() + _READ_SECONDS
        slow = False
        count = 0
        for record in itertools.islice(self._source, size if not self._exhausted else 0):
            try:
                # Encoded at once: the caller may change it before the next. Joined at once: many
                # short strings would cost the allocator more than all else.
                lines += encode(record)
            except InputError as error:
                batch.refused[count] = error
            count += 1
            if not exact and clock() > limit:
                slow = True
                break
        batch.count = count
        self._exhausted = not slow and count < size
        batch.valid = count - len(batch.refused)
        return batch, slow or clock() > limit

    def _outcome(self, batch: _Batch) -> list[Any]:
        results = self._collect(batch) if batch.valid else []
        if not batch.refused:
            return results
        rest = iter(results)
        return [batch.refused.get(place) or next(rest) for place in range(batch.count)]

    def _collect(self, batch: _Batch) -> list[Any]:
        assert batch.sent is not None
        self._options.collect(batch.sent)
        while isinstance(batch.sent.reply, Resend):
            self._post(batch, wait=True)
            self._options.collect(batch.sent)
        reply = batch.sent.reply
        if isinstance(reply, Exception):
            return [reply] * batch.valid
        assert reply is not None
        self._adapt(reply, batch.valid)
        try:
            results = _decode(reply.kind, reply.payload)
        except (ValueError, struct.error):
            results = None
        if results is None or len(results) != batch.valid:
            return [invalid_reply(self._name)] * batch.valid
        batch.all_succeeded = reply.kind in (ARRAY, RESULTS) and not batch.refused
        return results

    def _adapt(self, reply: Frame, count: int) -> None:
        """Choose the size of the next batch by the time that this one took."""
        options = self._options
        fitting = int(count * options.seconds * 1e6 / max(reply.micros, 1))
        if options.exact:
            many = options.batch_size * options.together
            self._size = many if fitting >= many else options.batch_size
        else:
            self._size = max(1, min(fitting, options.batch_size, self._size * _GROWTH))


def _decode(kind: int, payload: bytes) -> list[Any] | None:
    """Return results, and exceptions in their places; None when the kind is not of a batch."""
    found: list[Any]
    if kind == ARRAY:
        try:
            found = json_values.loads(payload)
        except ValueError:  # nested too deeply for orjson
            found = json.loads(payload)
        return found
    if kind == RESULTS:
        try:
            # One list is parsed much faster than its members.
            found = json_values.loads(b"[%b]" % payload.replace(b"\n", b","))
        except ValueError:  # nested too deeply in one more list
            found = [json_values.loads(line) for line in payload.split(b"\n")]
        return found
    if kind == MIXED:
        return [
            json_values.loads(line[1:]) if line[:1] == b"+" else rebuild(line[1:])
            for line in payload.split(b"\n")
        ]
    if kind == PARTS:
        parts = [_decode(*part) or [] for part in split_parts(payload)]
        return list(itertools.chain.from_iterable(parts))
    return None
