from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as open_metrics,
)
from prometheus_client.parser import text_string_to_metric_families

from mfimage.runtime.serving.metrics import ENDPOINTS, SECONDS, STATUSES, Board, Metrics, render

INFO = {"name": "predict", "digest": "sha256:0"}


def samples(board: Board) -> dict[tuple[str, str], float]:
    """Return what is exposed, by name and labels."""
    text = render(board, INFO)[0].decode()
    return {
        (sample.name, ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_what_is_counted_is_shown() -> None:
    board = Board()
    metrics = Metrics(board)
    metrics.ready(is_ready=True)
    for seconds in (0.0001, 0.004, 0.004, 1000.0):
        metrics.record.begin()
        metrics.record.end(200, seconds)
    metrics.record.begin()
    metrics.batch.begin()
    metrics.batch.end(422, 0.0005)
    for size in (1, 64, 5000):
        metrics.count_batch(size)
    found = samples(board)
    assert found["mfimage_requests_total", "endpoint=record,status=200"] == 4
    assert found["mfimage_requests_total", "endpoint=batch,status=422"] == 1
    assert ("mfimage_requests_total", "endpoint=record,status=422") not in found
    assert found["mfimage_requests_in_flight", ""] == 1
    assert found["mfimage_request_seconds_bucket", "endpoint=record,le=0.0005"] == 1
    assert found["mfimage_request_seconds_bucket", "endpoint=record,le=0.005"] == 3
    assert found["mfimage_request_seconds_bucket", "endpoint=record,le=60.0"] == 3
    assert found["mfimage_request_seconds_bucket", "endpoint=record,le=+Inf"] == 4
    assert found["mfimage_request_seconds_count", "endpoint=record"] == 4
    assert found["mfimage_request_seconds_sum", "endpoint=record"] == pytest.approx(1000.0081)
    # A bound counts what equals it.
    assert found["mfimage_request_seconds_bucket", "endpoint=batch,le=0.0005"] == 1
    assert found["mfimage_batch_size_bucket", "le=64.0"] == 2
    assert found["mfimage_batch_size_sum", ""] == 5065
    assert found["mfimage_workers_ready", ""] == 1
    assert found["mfimage_function_info", "digest=sha256:0,name=predict"] == 1
    assert found["process_cpu_seconds_total", ""] > 0


def test_processes_add_up_and_a_successor_goes_on() -> None:
    board = Board(3)
    for index in range(3):
        metrics = Metrics(board, index)
        metrics.ready(is_ready=True)
        metrics.record.begin()
        metrics.record.end(200, 0.1)
        metrics.record.begin()
    assert samples(board)["mfimage_requests_in_flight", ""] == 3
    board.vacate(1)
    assert (board.ready(), board.is_ready(1), board.in_flight()) == (2, False, 2)
    successor = Metrics(board, 1)
    successor.record.begin()
    successor.record.end(200, 0.1)
    assert board.answers("record")[200] == 4
    assert board.seconds("record").so_far[-1] == 4


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_no_counter_lands_in_another_s_place(endpoint: str) -> None:
    for status in STATUSES:
        for seconds in (*SECONDS, 61.0):
            board = Board(2)
            getattr(Metrics(board, 1), endpoint).end(status, seconds)
            assert {e: sum(board.answers(e).values()) for e in ENDPOINTS} == {
                e: float(e == endpoint) for e in ENDPOINTS
            }
            assert board.answers(endpoint)[status] == 1
            histogram = board.seconds(endpoint)
            assert histogram.total == seconds
            assert histogram.so_far[-1] == 1
            assert histogram.so_far.index(1.0) == [*SECONDS, 61.0].index(seconds)
            assert board.batch_sizes().so_far[-1] == 0


def test_open_metrics_when_asked() -> None:
    body, media_type = render(Board(), INFO, "application/openmetrics-text; version=1.0.0")
    assert media_type.startswith("application/openmetrics-text")
    assert {family.name for family in open_metrics(body.decode())} >= {"mfimage_requests"}


@pytest.fixture
def counts_of_processes(tmp_path: os.PathLike[str]) -> Iterator[str]:
    folder = os.fspath(tmp_path)
    yield folder


def test_the_function_s_own_counts_are_added_up(
    counts_of_processes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process writes its counts into a folder, as prometheus_client does."""
    import subprocess
    import sys

    script = "from prometheus_client import Counter; Counter('mine', 'Mine.').inc(2)"
    environ = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": counts_of_processes}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", script], env=environ, check=True)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", counts_of_processes)
    text = render(Board(), INFO)[0].decode()
    assert re.search(r"^mine_total 4.0$", text, re.MULTILINE)
