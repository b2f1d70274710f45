"""The files that a URL names, on this machine and in a bucket."""

from __future__ import annotations

import json
import socket

import pytest

from mfimage.errors import OptionError, StorageError
from mfimage.runtime.batch.store import find_inputs, locate
from tests.runtime.batches import run_job
from tests.runtime.packages import live

NAMES = (
    "a/x.jsonl",
    "a/y.avro",
    "a/b/z1.jsonl",
    "a/b/z2.jsonl",
    "a/b/_tmp/w.jsonl",
    "a/.hidden.jsonl",
    "a/with space & ü%20#.jsonl",
)
CASES = [
    ("a/x.jsonl", {"a/x.jsonl"}),
    ("a", {"a/x.jsonl", "a/b/z1.jsonl", "a/b/z2.jsonl", "a/with space & ü%20#.jsonl"}),
    ("a/", {"a/x.jsonl", "a/b/z1.jsonl", "a/b/z2.jsonl", "a/with space & ü%20#.jsonl"}),
    ("a/b", {"a/b/z1.jsonl", "a/b/z2.jsonl"}),
    ("a/*.jsonl", {"a/x.jsonl", "a/.hidden.jsonl", "a/with space & ü%20#.jsonl"}),
    ("a/*", {"a/x.jsonl", "a/y.avro", "a/.hidden.jsonl", "a/with space & ü%20#.jsonl"}),
    ("a/*/*.jsonl", {"a/b/z1.jsonl", "a/b/z2.jsonl"}),
    ("a/**/z?.jsonl", {"a/b/z1.jsonl", "a/b/z2.jsonl"}),
    ("**/x.jsonl", {"a/x.jsonl"}),
    ("a/**", {*NAMES}),
    ("a/b/z[!1].jsonl", {"a/b/z2.jsonl"}),
    ("a/[x-z].*", {"a/x.jsonl", "a/y.avro"}),
    ("a/with*", {"a/with space & ü%20#.jsonl"}),
    ("a/with space & ü%20#.jsonl", {"a/with space & ü%20#.jsonl"}),
]


def found(root: str, url: str) -> set[str]:
    files = find_inputs(f"{root}/{url}", (".jsonl",))
    assert [file.url for file in files] == sorted(file.url for file in files)
    for file in files:
        store, key = locate(file.url)
        assert store.read(key) == b"1\n", "found files can be read"
        assert file.size == 2
    return {file.url.removeprefix(f"{root}/") for file in files}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("files")
    for name in NAMES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("1\n")
    return root


@pytest.mark.parametrize(("url", "names"), CASES)
def test_the_files_of_a_path(folder, url, names):
    assert found(str(folder), url) == names


@pytest.mark.slow
def test_the_files_of_a_bucket_url(bucket):
    for name in NAMES:
        bucket.write(name, b"1\n")
    for url, names in CASES:
        assert found(bucket.url, url) == names, url
    assert len(found(bucket.url, "")) == 4, "the whole bucket"
    with pytest.raises(OptionError, match=r"there are no files at s3://.*/b"):
        found(bucket.url, "b")


def add(data: int) -> int:
    return data + 1


@pytest.mark.slow
def test_a_job_from_bucket_to_bucket(bucket):
    bucket.write("in/a.jsonl", b"".join(b"%d\n" % n for n in range(1000)))
    bucket.write("in/b.jsonl", b'"x"\n7\n')
    summary = run_job(
        live(add), input=f"{bucket.url}/in", output=f"{bucket.url}/out/", part_bytes=500
    )
    parts = [name for name in sorted(bucket.objects("out/")) if name.startswith("out/part-")]
    assert len(parts) == summary.parts == 9
    results = b"".join(map(bucket.read, parts)).split()
    assert [*map(int, results)] == [*range(1, 1001), 8]
    assert json.loads(bucket.read("out/errors.jsonl"))["file"] == f"{bucket.url}/in/b.jsonl"
    assert json.loads(bucket.read("out/_SUCCESS"))["failed"] == 1
    again = run_job(live(add), input=f"{bucket.url}/in", output=f"{bucket.url}/out", part_bytes=500)
    assert again.skipped == 9


@pytest.mark.slow
def test_other_formats_are_read_from_a_bucket(bucket, tmp_path):
    import fastavro

    schema = {"type": "int"}
    with (tmp_path / "in.avro").open("wb") as file:
        fastavro.writer(file, schema, range(200_000))
    bucket.write("in.avro", (tmp_path / "in.avro").read_bytes())
    summary = run_job(live(add), input=f"{bucket.url}/in.avro", output=tmp_path / "out")
    assert (summary.records, summary.failed) == (200_000, 0)
    with (tmp_path / "out" / "part-00000.avro").open("rb") as file:
        assert sum(fastavro.reader(file)) == sum(range(200_001))
    assert not (tmp_path / "out" / "errors.jsonl").exists()


def test_unknown_schemes_and_passwords_are_refused(tmp_path):
    with pytest.raises(OptionError, match="unknown scheme ftp://") as caught:
        locate("ftp://host/x")
    assert "s3://" in caught.value.hint
    with pytest.raises(OptionError, match="has a password in it") as caught:
        locate("s3://user:secret@bucket/x")
    assert "secret" not in str(caught.value)


def test_an_unreachable_server_is_named(monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{unused.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
        monkeypatch.setattr("mfimage.package.storage.objects.RETRIES", {"max_retries": 0})
        with pytest.raises(StorageError, match="cannot read s3://bucket/x: ") as caught:
            find_inputs("s3://bucket/x", (".jsonl",))
    assert "hush" not in f"{caught.value} {caught.value.hint}"
    assert "METAFLOW_S3_ENDPOINT_URL" in caught.value.hint
