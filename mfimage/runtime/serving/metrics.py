"""Prometheus metrics: this server's, the process's, and the function's own.

``prometheus_client`` counts. Counting a request costs 1.8 us, and 4.9 us in its multiprocess mode,
where each process writes to files of its own and whichever process answers ``/metrics`` adds them
up. It chooses its mode when it is imported, so it is imported late.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from mfimage.runtime.layout import MULTIPROCESS_VARIABLE

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
    from prometheus_client.registry import Collector

ENDPOINTS = ("record", "batch", "other")
SECONDS = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    60.0,
)  # fmt: skip
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)


class Meter:
    """Counts the requests of one endpoint."""

    def __init__(
        self, labels: Sequence[str], in_flight: Gauge, requests: Counter, seconds: Histogram
    ) -> None:
        self._labels = labels
        self._in_flight = in_flight
        self._requests = requests
        self._seconds = seconds.labels(*labels)
        # 200 is there from the start, so that rates begin at 0.
        self._by_status = {200: requests.labels(*labels, "200")}

    def begin(self) -> None:
        """Count a request as in flight."""
        self._in_flight.inc()

    def end(self, status: int, seconds: float) -> None:
        """Count a request as answered; status 499 is a client that disconnected."""
        self._in_flight.dec()
        counter = self._by_status.get(status)
        if counter is None:
            counter = self._requests.labels(*self._labels, str(status))
            self._by_status[status] = counter
        counter.inc()
        self._seconds.observe(seconds)


class Metrics:
    """The metrics of one server process; with a label for the function if it serves ``several``."""

    def __init__(self, *, several: bool = False) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self._registry = registry = CollectorRegistry()
        self._several = several
        label = ["function"] if several else []
        self.ready = Gauge(
            "mfimage_workers_ready", "Processes that have loaded the function.",
            registry=registry, multiprocess_mode="livesum",
        )  # fmt: skip
        self._in_flight = Gauge(
            "mfimage_requests_in_flight", "Requests without an answer yet.", label,
            registry=registry, multiprocess_mode="livesum",
        )  # fmt: skip
        self._batch_sizes = Histogram(
            "mfimage_batch_size", "Records in one call of a batch function.", label,
            registry=registry, buckets=SIZES,
        )  # fmt: skip
        self._requests = Counter(
            "mfimage_requests", "Answers given.", [*label, "endpoint", "status"],
            registry=registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "mfimage_request_seconds", "From a request to its answer.", [*label, "endpoint"],
            registry=registry, buckets=SECONDS,
        )  # fmt: skip
        self._meters: dict[tuple[str, ...], Meter] = {}
        if not several:
            for endpoint in ENDPOINTS:
                self.meter(endpoint)

    def meter(self, endpoint: str, function: str | None = None) -> Meter:
        """Return what counts one of ``ENDPOINTS``, of a function or of the server."""
        own = self._own(function)
        labels = (*own, endpoint)
        if labels not in self._meters:
            in_flight = self._in_flight.labels(*own) if own else self._in_flight
            self._meters[labels] = Meter(labels, in_flight, self._requests, self._seconds)
        return self._meters[labels]

    def batch_sizes(self, function: str | None = None) -> Histogram:
        """Return what observes the sizes of a function's calls with many records."""
        own = self._own(function)
        return self._batch_sizes.labels(*own) if own else self._batch_sizes

    def _own(self, function: str | None) -> tuple[str, ...]:
        return (function or "",) if self._several else ()

    def render(self, infos: Sequence[Mapping[str, str]], accept: str = "") -> tuple[bytes, str]:
        """Return the exposition in the format that ``accept`` asks for, and its media type.

        ``infos`` describes each function.
        """
        from prometheus_client import exposition

        encoder, media_type = exposition.choose_encoder(accept)
        # An encoder only calls ``collect``.
        everything = SimpleNamespace(collect=partial(self._collect, infos))
        return encoder(cast("CollectorRegistry", everything)), media_type

    def _collect(self, infos: Sequence[Mapping[str, str]]) -> Iterator[Metric]:
        from prometheus_client import REGISTRY
        from prometheus_client.core import InfoMetricFamily
        from prometheus_client.multiprocess import MultiProcessCollector

        described = InfoMetricFamily("mfimage_function", "The function being served.", labels=())
        for info in infos:
            described.add_metric((), dict(info))
        yield described
        if MULTIPROCESS_VARIABLE in os.environ:
            files = MultiProcessCollector(None)  # type: ignore[no-untyped-call]
            yield from cast("Collector", files).collect()
            return
        for metric in self._registry.collect():
            # As in multiprocess mode, without the times at which counters were made.
            metric.samples = [each for each in metric.samples if not each.name.endswith("_created")]
            yield metric
        yield from REGISTRY.collect()


def count_as_worker(index: int) -> None:
    """Continue the counts of the worker before: there are as many files as workers."""
    from prometheus_client import values

    worker = os.getpid()
    # A process that the function forks must not write to its parent's files.
    values.ValueClass = values.MultiProcessValue(  # type: ignore[no-untyped-call]
        lambda: f"worker{index}" if os.getpid() == worker else os.getpid()
    )


def forget_worker(index: int, folder: Path) -> None:
    """Drop what counted only while a worker lived."""
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(f"worker{index}", os.fspath(folder))  # type: ignore[no-untyped-call]
