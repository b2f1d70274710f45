"""Tasks whose artifacts are in a bucket: read there, and what goes wrong is told soon."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import pytest

from mfimage.capture.task.datastore import TaskStore
from mfimage.errors import StorageError, TaskError
from tests.support.faulty import Fault, Faulty, faulty
from tests.support.projects import python, write
from tests.support.s3 import Bucket, S3Server, bucket_on

# Metaflow leaves its temporary files open when a download fails.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
Place = tuple[str, str, str]
FLOW = """
from metaflow import FlowSpec, step

class BucketFlow(FlowSpec):
    @step
    def start(self):
        self.labels = ["a", "b"] * 1000
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    BucketFlow()
"""


@pytest.fixture
def proxy(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:
    with faulty(bucket.server.url) as running:
        for name, value in S3Server(url=running.url).env.items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.fixture(scope="module")
def kept(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """What names a finished task's datastore, in a bucket."""
    folder = write(tmp_path_factory.mktemp("bucket"), {"flow.py": FLOW})
    options = ["--quiet", "--no-pylint", "--datastore", "s3"]
    with bucket_on(s3_server) as bucket:
        sysroot = f"{bucket.url}/metaflow"
        env = {**bucket.env, "METAFLOW_DATASTORE_SYSROOT_S3": sysroot}
        python(["flow.py", *options, "run", "--run-id-file", "id"], folder=folder, env=env)
        run = (folder / "id").read_text().strip()
        yield f"BucketFlow/{run}/start/1", "s3", sysroot


@pytest.fixture
def place(kept: Place, bucket: Bucket) -> Place:
    """The same; this process finds its server."""
    return kept


def test_reading_a_task(place: Place, proxy: Faulty) -> None:
    proxy.faults = [
        Fault(kind="503", times=1),
        Fault(kind="cut", method="GET", path="/data/", times=1),
    ]
    store = TaskStore(*place)
    assert store.succeeded()
    with store.open("labels") as (path, compressed):
        assert compressed
        assert path.read_bytes()[:2] == b"\x1f\x8b"


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("503", "answered 503"),
        ("drop", "Connection was closed|Could not connect"),
        ("cut", "responses break off"),
    ],
)
def test_a_server_that_stays_bad(place: Place, proxy: Faulty, kind: str, said: str) -> None:
    store = TaskStore(*place)
    proxy.faults = [Fault(kind=kind, path="/data/")]  # type: ignore[arg-type]
    began = time.monotonic()
    with (
        pytest.raises(StorageError, match=f"cannot read from the datastore {place[2]}.*({said})"),
        store.open("labels"),
    ):
        pass
    assert time.monotonic() - began < 40


def test_a_task_that_is_not_there(place: Place, bucket: Bucket) -> None:
    with pytest.raises(TaskError, match="has not finished"):
        TaskStore(place[0], "s3", f"{bucket.url}-gone/metaflow")


def test_a_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)  # type: ignore[arg-type]
    with pytest.raises(StorageError, match="s3:// needs boto3") as caught:
        TaskStore("F/1/start/2", "s3", "s3://bucket/metaflow")
    assert caught.value.hint == "pip install boto3"
