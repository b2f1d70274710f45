"""What ``/metrics`` shows: this server's counts, the process's, and the function's own.

A function may count with ``prometheus_client``; it need not know how many processes there are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import cast

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
from mfimage.runtime.metrics import ENDPOINTS, Board, Histogram


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
