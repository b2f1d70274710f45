"""Packages in a bucket, as a user works with them: bind, copy, call, inspect, build."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.e2e.conftest import EXAMPLE, SETOSA, Project, serving
from tests.support.faulty import Fault, Faulty, faulty
from tests.support.packages import make_package
from tests.support.s3 import Bucket, S3Server, bucket_on

pytestmark = [pytest.mark.e2e, pytest.mark.index]
ANSWER = {"prediction": 0, "name": "setosa"}
LOAD = (
    "import json, sys; from metaflow import function_from_json\n"
    "with function_from_json(sys.argv[1], backend=sys.argv[2]) as function:\n"
    "    print(json.dumps(function(json.loads(sys.argv[3]))))\n"
)


@pytest.fixture(autouse=True)
def cache(caches: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this module: what these tests fetch is not there yet."""
    monkeypatch.setenv("MFIMAGE_CACHE", str(caches / "storage"))
    return caches / "storage"


@pytest.fixture
def counted(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:
    """What stands before the server, and counts."""
    with faulty(bucket.server.url) as proxy:
        for name, value in S3Server(url=proxy.url).env.items():
            monkeypatch.setenv(name, value)
        yield proxy


def load(reference: str, backend: str) -> object:
    command = [sys.executable, "-c", LOAD, reference, backend, json.dumps(SETOSA)]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def call(project: Project, reference: str, **options: Mapping[str, str]) -> object:
    line = json.dumps(SETOSA)
    return json.loads(project.mfimage("call", reference, stdin=f"{line}\n", **options).stdout)


def test_copy_up_use_and_copy_down(
    iris: Project, bucket: Bucket, counted: Faulty, cache: Path, tmp_path: Path
) -> None:
    reference = iris.bind("predict.py:predict", "--root", str(tmp_path / "a"))
    blobs = len(list((tmp_path / "a" / "blobs" / "sha256").iterdir()))
    up = iris.mfimage("copy", reference, f"{bucket.url}/functions-of/iris")
    remote = up.stdout.strip()
    assert remote == reference.replace(str(tmp_path / "a"), f"{bucket.url}/functions-of/iris")
    assert up.stderr.splitlines()[-1].startswith(f"copied {blobs} blobs (")
    assert counted.count("PUT") == blobs + 1
    assert counted.paths("PUT")[-1].endswith("/function.json")

    again = iris.mfimage("copy", reference, f"{bucket.url}/functions-of/iris/")
    assert again.stdout == up.stdout
    assert again.stderr.startswith("copied 0 blobs")
    assert counted.count("PUT") == blobs + 1
    shutil.rmtree(tmp_path / "a")

    assert not (cache / "blobs").exists(), "what is only copied is not kept"
    assert load(remote, "local") == ANSWER
    gets = counted.count("GET", "/blobs/")
    assert load(remote, "process") == ANSWER
    assert call(iris, remote) == ANSWER
    assert counted.count("GET", "/blobs/") <= blobs, "each blob is downloaded once"
    assert gets > 0
    for spelling in (remote, remote.removesuffix("function.json")):
        said = json.loads(iris.mfimage("inspect", spelling, "--json").stdout)
        assert said["reference"] == remote

    shutil.rmtree(cache / "blobs")  # environments stay: making one takes seconds
    down = iris.mfimage("copy", remote, str(tmp_path / "b")).stdout.strip()
    assert down == reference.replace(str(tmp_path / "a"), str(tmp_path / "b"))
    counted.requests.clear()
    assert load(down, "local") == ANSWER
    assert counted.requests == []


def test_bind_to_a_bucket(iris: Project, bucket: Bucket) -> None:
    reference = iris.bind("predict.py:predict", "--root", f"{bucket.url}/root")
    assert reference.startswith(f"{bucket.url}/root/functions/predict/")
    assert iris.bind("predict.py:predict", "--root", f"{bucket.url}/root") == reference
    environment = {"MFIMAGE_FUNCTIONS_ROOT": f"{bucket.url}/root"}
    done = iris.mfimage("bind", "predict.py:predict", "--task", iris.task, env=environment)
    assert done.stdout.strip() == reference
    assert call(iris, reference) == ANSWER


def test_a_bucket_copied_key_by_key_holds_the_same_function(iris: Project, bucket: Bucket) -> None:
    """References are relative to their root: ``aws s3 cp --recursive`` moves a root."""
    reference = iris.bind("predict.py:predict", "--root", f"{bucket.url}/old")
    client = bucket.server.client()
    for key in bucket.objects("old/"):
        assert bucket.url.encode() not in bucket.read(key)
        source = {"Bucket": bucket.name, "Key": key}
        target = key.replace("old/", "new/deep/", 1)
        client.copy_object(Bucket=bucket.name, Key=target, CopySource=source)
    bucket.delete("old/")
    moved = reference.replace("/old/", "/new/deep/")
    assert call(iris, moved) == ANSWER
    done = iris.mfimage("call", reference, stdin="{}\n", check=False)
    assert done.returncode == 1
    assert f"error: no function package at {reference}" in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["bind", "predict.py:predict", "--task", "{task}", "--root", "{root}"],
        ["copy", "{local}", "{root}"],
        ["copy", "{remote}", "local"],
        ["call", "{remote}"],
        ["inspect", "{remote}"],
        ["env", "{remote}"],
        ["build", "{remote}"],
        ["render", "{remote}", "-o", "out"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
@pytest.mark.parametrize("trouble", ["nobody there", "busy", "no bucket"])
def test_trouble_is_told_in_two_lines(
    iris: Project, counted: Faulty, tmp_path: Path, command: list[str], trouble: str
) -> None:
    bucket = "no-such-bucket-of-mfimage" if trouble == "no bucket" else "bucket"
    env = S3Server(url="http://127.0.0.1:9").env if trouble == "nobody there" else {}
    counted.faults[:] = [Fault(kind="503")] if trouble == "busy" else []
    root = f"s3://{bucket}/root"
    given = {
        "task": iris.task,
        "root": root,
        "local": make_package(tmp_path),
        "remote": f"{root}/functions/predict/{'0' * 64}/function.json",
    }
    start = time.monotonic()
    done = iris.mfimage(*(text.format(**given) for text in command), check=False, env=env)
    assert time.monotonic() - start < 60
    assert (done.returncode, done.stdout) == (1, "")
    told = [line for line in done.stderr.splitlines() if "trying again" not in line]
    assert [line.partition(":")[0] for line in told[-2:]] == ["error", "hint"]
    assert root in told[-2]
    assert len(told) == 2, done.stderr


@pytest.fixture(scope="module")
def remote_iris(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """examples/iris, trained with ``METAFLOW_DEFAULT_DATASTORE=s3``."""
    folder = tmp_path_factory.mktemp("remote-iris")
    for name in ("train.py", "predict.py"):
        shutil.copy(EXAMPLE / name, folder)
    with bucket_on(s3_server) as bucket, pytest.MonkeyPatch.context() as patch:
        for name, value in {**bucket.env, **_datastore(bucket)}.items():
            patch.setenv(name, value)
        command = [sys.executable, "train.py", "run"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert bucket.objects("metaflow/IrisFlow/data/")
        run = (folder / ".metaflow" / "IrisFlow" / "latest_run").read_text().strip()
        yield Project(folder=folder, task=f"IrisFlow/{run}/train")


def _datastore(bucket: Bucket) -> dict[str, str]:
    return {
        "METAFLOW_DEFAULT_DATASTORE": "s3",
        "METAFLOW_DATASTORE_SYSROOT_S3": f"{bucket.url}/metaflow",
    }


def test_a_flow_whose_datastore_is_a_bucket(remote_iris: Project, bucket: Bucket) -> None:
    there = os.environ["METAFLOW_DATASTORE_SYSROOT_S3"]
    reference = remote_iris.bind("predict.py:predict")
    assert reference.startswith(there.rpartition("/")[0])
    assert call(remote_iris, reference) == ANSWER
    chosen = remote_iris.bind("predict.py:predict", "--root", f"{bucket.url}/root")
    assert chosen.startswith(f"{bucket.url}/root/functions/predict/")
    assert Path(chosen).parent.name == Path(reference).parent.name
    assert load(chosen, "local") == ANSWER


# Needs no package, so that its image is made quickly.
NAMED = """
from metaflow import FunctionParameters, json_function

@json_function
def named(data: int, params: FunctionParameters) -> str:
    return params.class_names[data]
"""


@pytest.mark.docker
def test_an_image_from_a_bucket(
    iris: Project, base_image: str, images: list[str], bucket: Bucket
) -> None:
    (iris.folder / "named.py").write_text(NAMED)
    reference = iris.bind("named.py:named", "--root", f"{bucket.url}/root")
    name = "mfimage-test-remote:1"
    assert iris.mfimage("build", reference, "-t", name).stdout == f"{name}\n"
    images.append(name)
    bucket.delete()  # an image needs no bucket
    with serving(name) as server:
        assert server.post("/named", 2) == (200, "virginica")
