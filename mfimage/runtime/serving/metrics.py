"""Counting requests so cheaply that every request can afford it.

Each process counts in its own row of one block of shared memory, so that whichever process
answers ``/metrics`` adds up all rows. A worker that is replaced goes on with its predecessor's
row: counters never run backwards. ``exposition.py`` shows them.
"""

from __future__ import annotations

import itertools
import mmap
import os
import threading
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import NamedTuple, cast

from prometheus_client import CollectorRegistry, Metric, exposition
from prometheus_client.core import (
    REGISTRY,
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from mfimage.runtime.layout import MULTIPROCESS_VARIABLE

ENDPOINTS = ("record", "batch", "other")
# 499: the client left before the answer.
STATUSES = (200, 307, 400, 404, 405, 413, 415, 422, 499, 500, 503, 504)
SECONDS = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    60.0,
)  # fmt: skip
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)

# A row: ready, in flight, then for each endpoint its statuses, its latencies and their sum,
# then the batch sizes and their sum. Every list of buckets has one for what is larger.
_READY, _IN_FLIGHT, _FIRST = 0, 1, 2
_LATENCIES = len(STATUSES)
_LATENCY_SUM = _LATENCIES + len(SECONDS) + 1
_ENDPOINT = _LATENCY_SUM + 1
_BATCHES = _FIRST + _ENDPOINT * len(ENDPOINTS)
_BATCH_SUM = _BATCHES + len(SIZES) + 1
_ROW = _BATCH_SUM + 1
_INDEX = {status: index for index, status in enumerate(STATUSES)}


class Histogram(NamedTuple):
    """How many values were at most each bound, the last being infinity, and their sum."""

    bounds: tuple[float, ...]
    so_far: tuple[float, ...]
    total: float


def _base(endpoint: str) -> int:
    return _FIRST + ENDPOINTS.index(endpoint) * _ENDPOINT


class Board:
    """Rows of counters, shared with the processes that are forked after it was made."""

    def __init__(self, rows: int = 1) -> None:
        self.rows = rows
        self._cells = memoryview(mmap.mmap(-1, rows * _ROW * 8)).cast("d")

    def row(self, index: int) -> memoryview[float]:
        """Return one process's cells."""
        return self._cells[index * _ROW : (index + 1) * _ROW]

    def is_ready(self, index: int) -> bool:
        """Tell whether the process of a row has loaded the function."""
        return bool(self._cells[index * _ROW + _READY])

    def vacate(self, index: int) -> None:
        """Forget what was true of a process only while it lived."""
        self._cells[index * _ROW + _READY] = self._cells[index * _ROW + _IN_FLIGHT] = 0.0

    def ready(self) -> int:
        """Return how many processes have loaded the function."""
        return int(self._total(_READY))

    def in_flight(self) -> float:
        """Return how many requests have no answer yet."""
        return self._total(_IN_FLIGHT)

    def answers(self, endpoint: str) -> dict[int, float]:
        """Return how many answers there were, by status."""
        base = _base(endpoint)
        return {status: self._total(base + index) for status, index in _INDEX.items()}

    def seconds(self, endpoint: str) -> Histogram:
        """Return how long answers took."""
        return self._histogram(_base(endpoint) + _LATENCIES, SECONDS)

    def batch_sizes(self) -> Histogram:
        """Return how many records went into the calls of a batch function."""
        return self._histogram(_BATCHES, SIZES)

    def _histogram(self, first: int, bounds: tuple[float, ...]) -> Histogram:
        cells = range(first, first + len(bounds) + 1)
        so_far = tuple(itertools.accumulate(self._total(cell) for cell in cells))
        return Histogram(bounds=bounds, so_far=so_far, total=self._total(cells.stop))

    def _total(self, cell: int) -> float:
        return float(sum(self._cells[cell::_ROW]))


class Meter:
    """Counts the requests of one endpoint."""

    def __init__(self, row: memoryview[float], endpoint: str) -> None:
        self._cells = row
        self._base = _base(endpoint)

    def begin(self) -> None:
        """Count a request as in flight."""
        self._cells[_IN_FLIGHT] += 1.0

    def end(self, status: int, seconds: float) -> None:
        """Count a request as answered."""
        cells, base = self._cells, self._base
        cells[_IN_FLIGHT] -= 1.0
        # Nothing here answers with another status; should a framework, it shows as an error.
        cells[base + _INDEX.get(status, _INDEX[500])] += 1.0
        cells[base + _LATENCIES + bisect_left(SECONDS, seconds)] += 1.0
        cells[base + _LATENCY_SUM] += seconds


class Metrics:
    """What one process counts."""

    def __init__(self, board: Board, index: int = 0) -> None:
        self.board = board
        self._row = board.row(index)
        self._lock = threading.Lock()
        board.vacate(index)
        self.record, self.batch, self.other = (Meter(self._row, name) for name in ENDPOINTS)

    def ready(self, *, is_ready: bool) -> None:
        """Note whether this process has loaded the function."""
        self._row[_READY] = float(is_ready)

    def count_batch(self, size: int) -> None:
        """Count one call of a batch function; from any thread."""
        with self._lock:
            self._row[_BATCHES + bisect_left(SIZES, size)] += 1.0
            self._row[_BATCH_SUM] += size


# What ``/metrics`` shows: this server's counts, the process's, and the function's own.
#
# A function may count with ``prometheus_client``; it need not know how many processes there are.


def render(board: Board, info: Mapping[str, str], accept: str = "") -> tuple[bytes, str]:
    """Return the exposition in the form that ``accept`` asks for, and its media type.

    Parameters
    ----------
    board : Board
        The counts of all processes.
    info : mapping
        What to say of the function.
    accept : str
        The request's ``Accept`` header.
    """
    encoder, media_type = exposition.choose_encoder(accept)
    # An encoder only ever calls ``collect``.
    everything = cast("CollectorRegistry", _Everything(board, info))
    return encoder(everything), media_type


class _Everything(Collector):
    def __init__(self, board: Board, info: Mapping[str, str]) -> None:
        self._board = board
        self._info = dict(info)

    def collect(self) -> Iterator[Metric]:
        board = self._board
        yield InfoMetricFamily("mfimage_function", "The function being served.", self._info)
        yield GaugeMetricFamily(
            "mfimage_workers_ready", "Processes that have loaded the function.", board.ready()
        )
        yield GaugeMetricFamily(
            "mfimage_requests_in_flight", "Requests without an answer yet.", board.in_flight()
        )
        yield from self._requests()
        sizes = HistogramMetricFamily(
            "mfimage_batch_size", "Records in one call of a batch function."
        )
        _add(sizes, (), board.batch_sizes())
        yield sizes
        yield from _of_the_function().collect()

    def _requests(self) -> Iterator[Metric]:
        labels = ("endpoint", "status")
        requests = CounterMetricFamily("mfimage_requests", "Answers given.", labels=labels)
        seconds = HistogramMetricFamily(
            "mfimage_request_seconds", "From a request to its answer.", labels=labels[:1]
        )
        for endpoint in ENDPOINTS:
            for status, count in self._board.answers(endpoint).items():
                # One that never came is left out; 200 stands there so that rates have a start.
                if count or status == 200:
                    requests.add_metric((endpoint, str(status)), count)
            _add(seconds, (endpoint,), self._board.seconds(endpoint))
        yield requests
        yield seconds


def _add(family: HistogramMetricFamily, labels: tuple[str, ...], values: Histogram) -> None:
    bounds = [*map(str, values.bounds), "+Inf"]
    buckets = list(zip(bounds, values.so_far, strict=True))
    family.add_metric(labels, buckets, values.total)


def _of_the_function() -> Collector:
    if MULTIPROCESS_VARIABLE not in os.environ:
        return cast("Collector", REGISTRY)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # it registers itself
    return cast("Collector", registry)
