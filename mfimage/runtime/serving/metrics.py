"""Prometheus metrics: this server's, the process's, and the function's own.

``prometheus_client`` counts. Counting a request costs 1.8 us, and 4.9 us in its multiprocess mode,
where each process writes to files of its own and whichever process answers ``/metrics`` adds them
up. With hundreds of functions it costs more: their counters do not fit in the processor's caches.
So a process that answers ``/metrics`` alone counts many requests of a function at a time.
It chooses its mode when it is imported, so it is imported late.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from array import array
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from mfimage.errors import OptionError
from mfimage.runtime.layout import MULTIPROCESS_VARIABLE

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
    from prometheus_client.registry import Collector

ENDPOINTS = ("record", "batch", "other")
SECONDS = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    60.0,
)  # fmt: skip
# Requests of an endpoint that are counted together.
_AT_ONCE = 64
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)


class Meter:
    """Counts the requests of one endpoint, when ``at_once`` of them have ended or at ``flush``.

    What has had no request has no series, if it is not flushed: hundreds of functions would have
    as many.
    """

    __slots__ = ("_at_once", "_in_flight", "_labels", "_metrics", "_open", "_seconds", "_series")

    def __init__(self, metrics: Metrics, labels: Sequence[str], *, at_once: int) -> None:
        self._metrics = metrics
        self._labels = labels
        self._at_once = at_once
        self._open = self._in_flight = 0  # requests in flight; those that the gauge has
        self._seconds = array("d")  # of requests that ended with 200 and are not counted yet
        self._series: _Series | None = None

    def begin(self) -> None:
        """Count a request as in flight."""
        self._open += 1
        if self._at_once == 1:
            self.flush()

    def end(self, status: int, seconds: float) -> None:
        """Count a request as answered; status 499 is a client that disconnected."""
        self._open -= 1
        if status == 200:
            self._seconds.append(seconds)
            if len(self._seconds) >= self._at_once:
                self.flush()
        else:
            self.flush().count(status, [seconds])

    def flush(self) -> _Series:
        """Count what is not counted yet."""
        series = self._series
        if series is None:
            series = self._series = self._metrics.series(self._labels)
        if self._open != self._in_flight:
            series.in_flight.inc(self._open - self._in_flight)
            self._in_flight = self._open
        if self._seconds:
            series.count(200, self._seconds)
            del self._seconds[:]
        return series

    @property
    def used(self) -> bool:
        """Whether there is something to flush."""
        return bool(self._seconds) or self._open != self._in_flight


class _Series:
    """What ``prometheus_client`` has for the requests of one endpoint."""

    def __init__(
        self, labels: Sequence[str], in_flight: Gauge, requests: Counter, seconds: Histogram
    ) -> None:
        self.in_flight = in_flight
        self._labels = labels
        self._requests = requests
        self._observe = seconds.labels(*labels).observe
        # 200 is there from the start, so that rates begin at 0.
        self._by_status = {200: requests.labels(*labels, "200")}

    def count(self, status: int, seconds: Sequence[float]) -> None:
        """Count requests by the seconds that each took."""
        counter = self._by_status.get(status)
        if counter is None:
            counter = self._requests.labels(*self._labels, str(status))
            self._by_status[status] = counter
        counter.inc(len(seconds))
        for each in seconds:
            self._observe(each)


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
        # What another process may be asked for is counted at once.
        self._at_once = 1 if MULTIPROCESS_VARIABLE in os.environ else _AT_ONCE
        self._meters: dict[tuple[str, ...], Meter] = {}
        if not several:
            for endpoint in ENDPOINTS:
                self.meter(endpoint)

    def meter(self, endpoint: str, function: str | None = None) -> Meter:
        """Return what counts one of ``ENDPOINTS``, of a function or of the server."""
        labels = (*self._own(function), endpoint)
        meter = self._meters.get(labels)
        if meter is None:
            meter = self._meters[labels] = Meter(self, labels, at_once=self._at_once)
            if not (function and self._several):
                meter.flush()
        return meter

    def series(self, labels: Sequence[str]) -> _Series:
        """Return the series of an endpoint, by its labels."""
        own = labels[:-1]
        in_flight = self._in_flight.labels(*own) if own else self._in_flight
        return _Series(labels, in_flight, self._requests, self._seconds)

    def batch_sizes(self, function: str | None = None) -> Histogram:
        """Return what observes the sizes of a function's calls with many records."""
        own = self._own(function)
        return self._batch_sizes.labels(*own) if own else self._batch_sizes

    def _own(self, function: str | None) -> tuple[str, ...]:
        return (function or "",) if self._several else ()

    def flush(self) -> None:
        """Count all that has been; on the loop, which counts."""
        for meter in self._meters.values():
            if meter.used:
                meter.flush()

    def render(self, infos: Sequence[Mapping[str, str]], accept: str = "") -> tuple[bytes, str]:
        """Return the exposition in the format that ``accept`` asks for, and its media type.

        ``infos`` describes each function. It has what was counted at the last ``flush``.
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


@contextlib.contextmanager
def counts_in_files(why: str) -> Iterator[Path]:
    """Let this process and its children count together; ``why`` starts the error if they cannot.

    Yield the folder of the files.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix="mfimage-metrics-"))
    except OSError as error:
        raise OptionError(
            f"{why} count requests in files, and {os.environ.get('TMPDIR', '/tmp')} "  # noqa: S108
            f"cannot be written: {error.strerror}",
            hint="mount a tmpfs or an emptyDir at /tmp, or set MFIMAGE_WORKERS=1",
        ) from None
    os.environ[MULTIPROCESS_VARIABLE] = str(folder)
    import prometheus_client  # noqa: F401  (once for all children; it reads the variable)

    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def worker_name(index: int) -> str:
    """Return the name under which a worker counts; those of its children start with it."""
    return f"worker{index}"


def count_as(name: str) -> None:
    """Continue the counts of the process before that had the name."""
    from prometheus_client import values

    process = os.getpid()
    # A process that the function forks must not write to its parent's files.
    values.ValueClass = values.MultiProcessValue(  # type: ignore[no-untyped-call]
        lambda: name if os.getpid() == process else os.getpid()
    )


def forget(name: str, folder: Path) -> None:
    """Drop what counted only while a process and its children lived."""
    from prometheus_client.multiprocess import mark_process_dead

    for each in (name, f"{name}.*"):
        mark_process_dead(each, os.fspath(folder))  # type: ignore[no-untyped-call]
