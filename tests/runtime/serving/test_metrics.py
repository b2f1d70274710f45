from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as open_metrics,
)

from mfimage.runtime.serving.metrics import ENDPOINTS, SECONDS, Metrics
from tests.runtime.apps import samples

INFO = {"name": "predict", "digest": "sha256:0"}


def test_what_is_counted_is_shown() -> None:
    metrics = Metrics()
    record, batch = metrics.meter("record"), metrics.meter("batch")
    metrics.ready.set(1)
    for seconds in (0.0001, 0.004, 0.004, 1000.0):
        record.begin()
        record.end(200, seconds)
    record.begin()
    batch.begin()
    batch.end(422, 0.0005)
    for size in (1, 64, 5000):
        metrics.batch_sizes().observe(size)
    found = samples(metrics)
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


def test_requests_of_several_functions_are_counted_together_and_none_is_lost() -> None:
    metrics = Metrics(several=True)
    meter = metrics.meter("record", "predict/emea")
    metrics.meter("record", "predict/apac")
    for _ in range(1000):
        meter.begin()
        meter.end(200, 0.001)
    meter.begin()
    meter.begin()
    meter.end(422, 0.001)
    found = samples(metrics)
    labels = "endpoint=record,function=predict/emea"
    assert found["mfimage_requests_total", f"{labels},status=200"] == 1000
    assert found["mfimage_requests_total", f"{labels},status=422"] == 1
    assert found["mfimage_request_seconds_count", labels] == 1001
    assert found["mfimage_requests_in_flight", "function=predict/emea"] == 1
    assert not [name for name in found if "apac" in name[1]]  # never called
    meter.end(499, 0.001)
    assert samples(metrics)["mfimage_requests_in_flight", "function=predict/emea"] == 0


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_each_endpoint_is_counted_apart(endpoint: str) -> None:
    for seconds in (*SECONDS, 61.0):
        metrics = Metrics()
        metrics.meter(endpoint).begin()
        metrics.meter(endpoint).end(404, seconds)
        found = samples(metrics)
        for other in ENDPOINTS:
            mine = float(other == endpoint)
            assert found["mfimage_request_seconds_count", f"endpoint={other}"] == mine
            assert found["mfimage_requests_total", f"endpoint={other},status=200"] == 0
        assert found["mfimage_requests_total", f"endpoint={endpoint},status=404"] == 1
        assert found["mfimage_request_seconds_sum", f"endpoint={endpoint}"] == seconds


def test_open_metrics_when_asked() -> None:
    body, media_type = Metrics().render([INFO], "application/openmetrics-text; version=1.0.0")
    assert media_type.startswith("application/openmetrics-text")
    assert {family.name for family in open_metrics(body.decode())} >= {"mfimage_requests"}


def test_times_of_creation_are_not_shown() -> None:
    assert not [name for name, _ in samples(Metrics()) if name.startswith("mfimage_") and
                name.endswith("_created")]  # fmt: skip


COUNT = """
import os, sys
from prometheus_client import Counter
from mfimage.runtime.serving.metrics import Metrics, count_as, worker_name
count_as(worker_name(int(sys.argv[1])))
mine, metrics = Counter("mine", "Mine."), Metrics()
metrics.ready.set(1)
mine.inc(2)
meter = metrics.meter("record")
meter.begin()
meter.end(200, 0.1)
meter.begin()
if os.fork() == 0:
    mine.inc(10)
    os._exit(0)
os.wait()
print(metrics.render([{"name": "x"}])[0].decode())
"""
FORGET = """
import sys
from pathlib import Path
from mfimage.runtime.serving.metrics import Metrics, forget, worker_name
forget(worker_name(int(sys.argv[1])), Path(sys.argv[2]))
"""


def run(script: str, folder: Path, *arguments: str) -> str:
    environ = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, env=environ, check=True, capture_output=True, text=True).stdout


def test_workers_add_up_and_a_successor_continues(tmp_path: Path) -> None:
    def shown(text: str, name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        assert found, text
        return float(found[1])

    for index in ("0", "1", "2"):
        text = run(COUNT, tmp_path, index)
    assert shown(text, "mfimage_workers_ready") == 3
    assert shown(text, "mfimage_requests_in_flight") == 3
    assert shown(text, 'mfimage_requests_total{endpoint="record",status="200"}') == 3
    assert shown(text, "mine_total") == 36  # what the function forks counts in files of its own
    files = len(list(tmp_path.glob("*worker*")))
    run(FORGET, tmp_path, "1", str(tmp_path))
    text = run(COUNT, tmp_path, "1")
    assert shown(text, "mfimage_workers_ready") == 3
    assert shown(text, "mfimage_requests_in_flight") == 3
    assert shown(text, 'mfimage_requests_total{endpoint="record",status="200"}') == 4
    assert shown(text, 'mfimage_request_seconds_count{endpoint="record"}') == 4
    assert len(list(tmp_path.glob("*worker*"))) == files
