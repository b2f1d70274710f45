"""Copying to and from a real S3 server, which fails in every way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mfimage.copy import copy_package
from mfimage.errors import PackageError, StorageError
from mfimage.load import function_from_json
from mfimage.package.store import open_package
from tests.support.faulty import Fault, Faulty, faulty
from tests.support.packages import make_package
from tests.support.projects import python
from tests.support.s3 import Bucket, S3Server
from tests.test_copying import MFIMAGE, PEAK, huge, large, names

pytestmark = pytest.mark.slow


@pytest.fixture
def proxy(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:
    """What this process and those it starts take for the server."""
    with faulty(bucket.server.url) as running:
        for name, value in S3Server(url=running.url).env.items():
            monkeypatch.setenv(name, value)
        yield running


def test_up_over_and_down(bucket: Bucket, proxy: Faulty, tmp_path: Path, cache: Path) -> None:
    reference = make_package(tmp_path / "a")
    up = copy_package(reference, f"{bucket.url}/up")
    assert up == reference.replace(str(tmp_path / "a"), f"{bucket.url}/up")
    assert sorted(bucket.objects("up/")) == [f"up/{name}" for name in names(tmp_path / "a")]
    assert not cache.exists(), "what is only sent is not kept"
    over = function_from_json(up).export(f"{bucket.url}/over")
    down = copy_package(over, tmp_path / "b")
    assert function_from_json(down)({"x": 2}) == {"y": 6}
    for name in names(tmp_path / "a"):
        whole = (tmp_path / "a" / name).read_bytes()
        assert (tmp_path / "b" / name).read_bytes() == whole
        assert bucket.read(f"over/{name}") == whole


def test_what_is_there_is_not_sent(bucket: Bucket, proxy: Faulty, tmp_path: Path) -> None:
    reference = make_package(tmp_path / "a")
    up = copy_package(reference, f"{bucket.url}/up")
    assert proxy.count("PUT") == 4
    assert proxy.paths("PUT")[-1].endswith("function.json")
    for source, root in ((reference, "up"), (reference, "up/"), (up, "up")):
        assert copy_package(source, f"{bucket.url}/{root}") == up
    assert (proxy.count("PUT"), proxy.count("GET", "/blobs/")) == (4, 0)
    other = make_package(tmp_path / "a", artifacts={"factor": 5})
    copy_package(other, f"{bucket.url}/up")
    assert proxy.count("PUT") == 6, "the artifact and function.json"


@pytest.mark.parametrize("survivors", [0, 1, 4, 7])
def test_a_broken_copy_goes_on_where_it_stopped(
    bucket: Bucket, proxy: Faulty, tmp_path: Path, survivors: int
) -> None:
    """Counted at the server: no blob arrives twice, whichever write breaks."""
    reference = large(tmp_path / "a", count=5, size=100_000)
    files = names(tmp_path / "a")
    proxy.faults.append(Fault(kind="drop", method="PUT", after=survivors))
    with pytest.raises(StorageError) as caught:
        copy_package(reference, f"{bucket.url}/up", jobs=2)
    assert "cannot write s3://" in caught.value.message
    assert "copy again: what has arrived is not sent again" in str(caught.value.hint)
    arrived = bucket.objects()
    assert len(arrived) == survivors
    assert all("/blobs/" in key for key in arrived)
    proxy.faults.clear()
    proxy.requests.clear()
    up = copy_package(reference, f"{bucket.url}/up", jobs=2)
    sent = {path.partition("/up/")[2].partition("?")[0] for path in proxy.paths("PUT")}
    assert sent == set(files) - {key.removeprefix("up/") for key in arrived}
    assert proxy.count("PUT") == len(files) - survivors
    assert function_from_json(up)({"x": 2}) == {"y": 6}


@pytest.mark.parametrize("kind", ["503", "drop", "cut"])
def test_a_copy_gets_over_a_few_faults(
    bucket: Bucket, proxy: Faulty, tmp_path: Path, kind: Any
) -> None:
    reference = large(tmp_path / "a", count=5, size=100_000)
    for method in ("PUT", "GET", "HEAD"):
        proxy.faults.append(Fault(kind=kind, method=method, after=1, times=1))
    up = copy_package(reference, f"{bucket.url}/up")
    down = copy_package(up, tmp_path / "b")
    assert all(fault.seen > 1 for fault in proxy.faults[: 3 if kind != "cut" else 2])
    assert names(tmp_path / "a") == names(tmp_path / "b")
    assert function_from_json(down)({"x": 2}) == {"y": 6}


@pytest.mark.parametrize("kind", ["503", "cut", "short", "garble"])
def test_a_download_that_stays_bad_leaves_nothing(
    bucket: Bucket, proxy: Faulty, tmp_path: Path, cache: Path, kind: Any
) -> None:
    reference = make_package(tmp_path / "a", artifacts={"factor": 3, "other": "x" * 5000})
    up = copy_package(reference, f"{bucket.url}/up")
    ref = open_package(up).spec.artifacts["other"]
    proxy.faults.append(Fault(kind=kind, method="GET", path=ref.hex))
    start = time.monotonic()
    with pytest.raises((StorageError, PackageError)) as caught:
        copy_package(up, tmp_path / "b")
    assert time.monotonic() - start < 60
    assert caught.value.message.startswith("artifact 'other': ")
    assert f"{bucket.url}/up/blobs/sha256/{ref.hex}" in caught.value.message
    assert not [name for name in names(tmp_path / "b") if ref.hex in name or "function" in name]
    assert not list(cache.rglob(ref.hex))
    proxy.faults.clear()
    assert function_from_json(copy_package(up, tmp_path / "b"))({"x": 2}) == {"y": 6}


def test_ctrl_c_while_no_answer_comes(bucket: Bucket, proxy: Faulty, tmp_path: Path) -> None:
    """In whatever library it waits."""
    reference = large(tmp_path / "a", count=12, size=1 << 20)
    proxy.faults.append(Fault(kind="delay", method="PUT", after=2, seconds=100))
    command = [MFIMAGE, "copy", reference, f"{bucket.url}/up", "--jobs", "4"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while proxy.count("PUT") < 5:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    said, story = process.communicate(timeout=60)
    assert time.monotonic() - start < 5
    assert (said, process.returncode) == ("", 130)
    assert story.splitlines()[-1] == "interrupted"
    assert not [key for key in bucket.objects() if "function.json" in key]


@pytest.mark.parametrize("times", [1, 1000])
@pytest.mark.parametrize("method", ["PUT", "GET"])
def test_timeouts(bucket: Bucket, proxy: Faulty, tmp_path: Path, method: str, times: int) -> None:
    """A late answer is given up; asked again, or an error before long."""
    wait = 1 if times == 1 else 0.3
    patience = {"config": {"read_timeout": wait, "retries": {"total_max_attempts": 1}}}
    env = {**os.environ, "METAFLOW_DATATOOLS_CLIENT_PARAMS": json.dumps(patience)}
    reference = make_package(tmp_path / "a")
    proxy.faults.append(Fault(kind="delay", method=method, path="/blobs/", times=times, seconds=60))
    source, root = reference, f"{bucket.url}/up"
    if method == "GET":
        source, root = copy_package(reference, f"{bucket.url}/up"), str(tmp_path / "b")
    start = time.monotonic()
    command = [MFIMAGE, "copy", source, root]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert time.monotonic() - start < 30
    if times == 1:
        assert function_from_json(done.stdout.strip())({"x": 2}) == {"y": 6}
    else:
        assert (done.returncode, done.stdout) == (1, "")
        *_, error, hint = done.stderr.splitlines()
        assert error.startswith("error: ") and f"{bucket.url}/up/blobs/" in error
        assert "timeout" in error
        assert hint.startswith("hint: check the network")


def test_no_thread_is_left(bucket: Bucket, proxy: Faulty, tmp_path: Path) -> None:
    reference = large(tmp_path / "a", count=4, size=1 << 20)
    up = copy_package(reference, f"{bucket.url}/up")
    assert not _threads()
    proxy.faults.append(Fault(kind="503", method="GET", path="/blobs/", after=1))
    with pytest.raises(StorageError):
        copy_package(up, tmp_path / "b")
    deadline = time.monotonic() + 30
    while _threads() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _threads()


def _threads() -> list[str]:
    """Return the threads that are neither the test's own nor the proxy's."""
    names = [thread.name for thread in threading.enumerate()]
    return [n for n in names if n.startswith(("mfimage", "ThreadPool"))]


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("s3://no-such-bucket-of-mfimage/x", "there is no bucket 'no-such-bucket-of-mfimage'"),
        ("s3://", "names no bucket"),
    ],
)
def test_wrong_roots(bucket: Bucket, tmp_path: Path, root: str, message: str) -> None:
    reference = make_package(tmp_path / "a")
    command = [MFIMAGE, "copy", reference, root]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_memory_does_not_grow_with_an_artifact(bucket: Bucket, tmp_path: Path) -> None:
    """Up and down, in parts."""
    reference = huge(tmp_path / "a", 256 << 20)
    code = (
        "import sys; from mfimage.copy import copy_package\n"
        "copy_package(copy_package(*sys.argv[1:3]), sys.argv[3])\n"
        f"print({PEAK})"
    )
    arguments = ["-c", code, reference, f"{bucket.url}/up", str(tmp_path / "b")]
    assert (
        int(python(arguments, folder=tmp_path).stdout) < 260
    )  # it is 131 to 194, and would be 316
    assert names(tmp_path / "a") == names(tmp_path / "b")
    shutil.rmtree(tmp_path)
