"""examples/batch as an image for Ray: as KubeRay's cluster, and on its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow
import pytest
import yaml
from pyarrow import parquet

from tests.e2e.conftest import Project, serving
from tests.support.kuberay import TOKEN, RayCluster, docker, lines, logs, ray_cluster, until

EXAMPLE = Path(__file__).parents[2] / "examples" / "batch"
IMAGE = "mfimage-test-wine:1"
WINE = {"alcohol": 13.2, "color_intensity": 5, "proline": 1000}
ANYBODY = {"user": "12345", "read_only": True, "tmpfs": {"/tmp": ""}}

pytestmark = [pytest.mark.docker, pytest.mark.e2e]


@pytest.fixture(scope="module")
def wine(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project in which examples/batch was trained, with 10,000 records."""
    folder = tmp_path_factory.mktemp("wine")
    for path in EXAMPLE.glob("*.py"):
        shutil.copy(path, folder)
    for command in (["train.py", "run"], ["records.py", "10000", "data/in/wines.jsonl"]):
        subprocess.run([sys.executable, *command], cwd=folder, check=True, capture_output=True)
    for path in (folder / "data", folder):
        path.chmod(0o777)
    run = (folder / ".metaflow" / "WineFlow" / "latest_run").read_text().strip()
    return Project(folder=folder, task=f"WineFlow/{run}")


@pytest.fixture(scope="module")
def reference(wine: Project) -> str:
    return wine.bind("classify.py:classify")


@pytest.fixture(scope="module")
def expected(wine: Project, reference: str) -> list[str]:
    """What the function gives here."""
    from mfimage.load import function_from_json

    records = [json.loads(line) for line in lines([wine.folder / "data/in/wines.jsonl"])]
    with function_from_json(reference, backend="local") as classify:
        return [json.dumps(each, separators=(",", ":")) for each in classify.map(records)]


@pytest.fixture(scope="module")
def wine_image(wine: Project, reference: str, base_image: str, images: list[str]) -> str:
    wine.mfimage("build", reference, "--target", "ray", "--with", "serve,data", "-t", IMAGE)
    images.append(IMAGE)
    return IMAGE


def manifest(wine: Project, kind: str, *options: str) -> Any:
    made = wine.mfimage(
        "manifest", kind, IMAGE, "--allow-tag", "--worker-cpu", "1", *options
    ).stdout
    return yaml.safe_load(made)["spec"]


@pytest.fixture(scope="module")
def job(wine: Project, wine_image: str) -> Any:
    """A RayJob: with batches so small that there is time to disturb it."""
    places = ("--input", "/data/in/*.jsonl", "--output", "/data/out")
    return manifest(wine, "rayjob", *places, "--replicas", "2", "--batch-size", "2")


@pytest.fixture(scope="module")
def cluster(wine: Project, job: Any) -> Iterator[tuple[RayCluster, list[str]]]:
    with ray_cluster(IMAGE, job["rayClusterSpec"], wine.folder / "data") as made:
        yield made, made.start(workers=2)


def test_a_job_outlives_a_worker(
    wine: Project, cluster: Any, job: Any, expected: list[str]
) -> None:
    made, workers = cluster
    out = wine.folder / "data" / "out"
    submitter = made.submit(f"{job['entrypoint']} --part-bytes 65536")
    until(lambda: len([*out.glob("part-*")]) > 2, what=logs(submitter))
    docker("kill", workers.pop())
    assert not (out / "_SUCCESS").exists()
    code = docker("wait", submitter)
    told = logs(submitter)
    assert code == "0", told
    assert lines([*out.glob("part-*.jsonl")]) == expected
    assert "a process died while it ran part" in told
    summary = json.loads((out / "_SUCCESS").read_text())
    assert (summary["records"], summary["failed"], summary["skipped"]) == (10_000, 0, 0)
    assert f'"records":{summary["records"]}' in told


def test_a_service_answers(wine: Project, cluster: Any) -> None:
    """Deployed by what KubeRay PUTs, at the prefix that the manifest says."""
    made, workers = cluster
    config = yaml.safe_load(manifest(wine, "rayservice")["serveConfigV2"])
    head = f"http://{made.ip(f'{made.name}-head')}:8265/api/serve/applications/"
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert httpx.put(head, json=config, headers=headers, timeout=60).status_code == 200

    def status() -> Any:
        found = httpx.get(head, headers=headers, timeout=60).json()["applications"]["classify"]
        assert found["status"] != "DEPLOY_FAILED", found["message"]
        return found["status"] == "RUNNING"

    until(status, 90)
    worker = f"http://{made.ip(workers[0])}:8000"

    def healthy() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{worker}/-/healthz").text == "success"
        return False

    try:
        until(healthy)
    except AssertionError:
        logs_of_serve = "tail -n 50 /tmp/ray/session_latest/logs/serve/*.log"
        nodes = (f"{made.name}-head", workers[0])
        told = [docker("exec", node, "bash", "-c", logs_of_serve, check=False) for node in nodes]
        pytest.fail("the worker is not ready:\n" + "\n".join(told))
    good = httpx.post(f"{worker}/classify", json=WINE)
    assert (good.status_code, good.json()) == (200, {"cultivar": 0})
    many = httpx.post(f"{worker}/classify", json=[WINE, {}]).json()
    assert many[0] == {"result": {"cultivar": 0}}
    assert many[1]["error"]["status"] == 422
    bad = httpx.post(f"{worker}/classify", json={**WINE, "alcohol": "much"})
    assert (bad.status_code, bad.headers["content-type"]) == (422, "application/problem+json")
    assert bad.json()["errors"] == [
        {"path": "wines.alcohol", "message": "expected float, got 'much'"}
    ]
    document = httpx.get(f"{worker}/classify/openapi.json").json()
    assert [*document["paths"]] == ["/classify", "/classify/batch"]


def test_a_batch_in_one_container(
    wine: Project, wine_image: str, expected: list[str], tmp_path: Path
) -> None:
    """From Parquet to Parquet, as anybody, on a read-only file system."""
    records = [json.loads(line) for line in lines([wine.folder / "data/in/wines.jsonl"])]
    table = pyarrow.Table.from_pylist(records)
    tmp_path.chmod(0o777)
    parquet.write_table(table, tmp_path / "wines.parquet")
    words = ["--rm", "--user", "12345", "--read-only", "--tmpfs", "/tmp", "-v", f"{tmp_path}:/data"]
    places = ["--input", "/data/wines.parquet", "--output", "/data/out"]
    out = docker("run", *words, wine_image, "batch", *places, "--format", "parquet")
    assert json.loads(out)["records"] == 10_000, "stdout has the summary, and nothing else"
    (part,) = (tmp_path / "out").glob("part-*.parquet")
    assert parquet.read_table(part).to_pylist() == [json.loads(each) for each in expected]
    if os.geteuid() == 0:
        assert (tmp_path / "out" / "_SUCCESS").stat().st_uid == 12345


def test_one_container_serves(wine_image: str) -> None:
    with serving(wine_image, **ANYBODY) as server:
        assert server.post("/classify", WINE) == (200, {"cultivar": 0})
        assert server.post("/classify", [WINE])[1] == [{"result": {"cultivar": 0}}]
        assert server.post("/classify", 5)[0] == 422
        assert server.ask("GET", "/openapi.json")[0] == 200
        container = server.container.get_wrapped_container()
        began = time.monotonic()
        container.stop(timeout=40)
        assert time.monotonic() - began < 30
        container.reload()
        assert container.attrs["State"]["ExitCode"] == 0, container.logs().decode()
