"""Packages on a real S3 server: what is written there, what is read, and what goes wrong."""

from __future__ import annotations

import io
import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mfimage.errors import MfimageError, PackageError, ReferenceNotFound, StorageError
from mfimage.package.spec import BlobRef
from mfimage.package.storage.buckets import open_storage
from mfimage.package.store import PackageStore, blob_name, open_package
from tests.support.faulty import Fault, Faulty, Handler, faulty
from tests.support.packages import make_package
from tests.support.s3 import Bucket, S3Server, bucket_on

pytestmark = pytest.mark.slow

CONTENT = random.Random(1).randbytes(300_000)
# Larger than what boto3 sends in one piece.
LARGE = random.Random(2).randbytes(20 << 20)


@pytest.fixture
def proxy(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:
    """What this process and those it starts take for the server."""
    with faulty(bucket.server.url) as running:
        for name, value in S3Server(url=running.url).env.items():
            monkeypatch.setenv(name, value)
        yield running


def cached(cache: Path) -> list[bytes]:
    """Return the blobs of the cache."""
    return [path.read_bytes() for path in (cache / "blobs" / "sha256").glob("[0-9a-f]*")]


def put(bucket: Bucket, data: bytes) -> BlobRef:
    """Store a blob without our own code."""
    from mfimage.package.store import digest_of

    ref = digest_of(io.BytesIO(data))
    bucket.write(f"root/{blob_name(ref)}", data)
    return ref


def test_what_is_written_can_be_read(bucket: Bucket) -> None:
    store = PackageStore(f"{bucket.url}/root")
    for data in (b"", b"x", CONTENT, LARGE):
        ref = store.put_bytes(data)
        assert bucket.read(f"root/{blob_name(ref)}") == data
        assert store.holds(ref)
        assert store.read_blob(ref) == data
        assert b"".join(store.stream_blob(ref)) == data
        assert store.blob_file(ref).read_bytes() == data
        assert store.storage.size(blob_name(ref)) == len(data)
    assert store.storage.url("a/b") == f"{bucket.url}/root/a/b"


@pytest.mark.parametrize("prefix", ["", "/", "/a", "/a/", "/a b/c+d/ü%20"])
def test_any_prefix(bucket: Bucket, prefix: str, tmp_path: Path) -> None:
    storage = open_storage(bucket.url + prefix)
    storage.write("x/y", io.BytesIO(b"content"))
    assert storage.read("x/y") == b"content"
    with open_storage(bucket.url + prefix).open("x/y") as file:
        assert file.read() == b"content"
    assert [key.endswith("x/y") for key in bucket.objects()] == [True]


@pytest.mark.parametrize("root", ["s3://", "s3:///a", "{url}/a//b", "{url}/a/../b", "{url}/?a"])
def test_what_is_no_root(bucket: Bucket, root: str) -> None:
    with pytest.raises(StorageError) as caught:
        open_storage(root.format(url=bucket.url))
    assert caught.value.hint


def test_a_blob_is_written_once(bucket: Bucket, proxy: Faulty) -> None:
    for _ in range(2):
        ref = PackageStore(f"{bucket.url}/root").put_bytes(CONTENT)
    assert proxy.count("PUT") == 1
    bucket.write(f"root/{blob_name(ref)}", CONTENT[:-1])
    assert not PackageStore(f"{bucket.url}/root").holds(ref)


def test_peeking_fetches_nothing(bucket: Bucket, proxy: Faulty, cache: Path) -> None:
    ref = put(bucket, CONTENT)
    store = PackageStore(f"{bucket.url}/root")
    assert store.peek_blob(ref) is None
    assert proxy.count("GET", ref.hex) == 0
    store.read_blob(ref)
    assert store.peek_blob(ref) == CONTENT
    (cache / "blobs" / "sha256" / ref.hex).write_bytes(CONTENT[::-1])
    assert store.peek_blob(ref) is None, "it is damaged"
    assert proxy.count("GET", ref.hex) == 1


def test_what_was_written_or_read_here_is_not_fetched(bucket: Bucket, proxy: Faulty) -> None:
    written = PackageStore(f"{bucket.url}/root").put_bytes(CONTENT)
    read = put(bucket, CONTENT[::-1])
    for _ in range(3):
        store = PackageStore(f"{bucket.url}/root")
        assert store.read_blob(written) == CONTENT
        assert store.read_blob(read) == CONTENT[::-1]
        assert store.blob_file(read).read_bytes() == CONTENT[::-1]
    assert proxy.count("GET", written.hex) == 0
    assert proxy.count("GET", read.hex) == 1


def test_a_whole_package(bucket: Bucket) -> None:
    reference = make_package(f"{bucket.url}/root")
    assert reference.startswith(f"{bucket.url}/root/functions/predict/")
    for spelling in (reference, reference.rpartition("/")[0], reference.rpartition("/")[0] + "/"):
        assert open_package(spelling).reference == reference


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("{url}/functions/predict/abc/function.json", "no function package at {url}/functions"),
        ("{url}/functions/predict/abc", "no function package at {url}/functions/predict/abc/"),
        ("{url}/else/where", "is not a reference"),
        ("{url}", "is not a reference"),
        ("s3://", "is not a reference"),
    ],
)
def test_a_reference_that_leads_nowhere(bucket: Bucket, reference: str, message: str) -> None:
    with pytest.raises(ReferenceNotFound) as caught:
        open_package(reference.format(url=bucket.url))
    assert message.format(url=bucket.url) in caught.value.message


READERS: dict[str, Callable[[PackageStore, BlobRef], bytes]] = {
    "read_blob": lambda store, ref: store.read_blob(ref),
    "stream_blob": lambda store, ref: b"".join(store.stream_blob(ref)),
    "blob_file": lambda store, ref: store.blob_file(ref).read_bytes(),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["503", "drop", "cut", "short", "garble"])
def test_one_bad_answer_does_no_harm(
    bucket: Bucket, proxy: Faulty, cache: Path, kind: Any, reader: str
) -> None:
    """It is asked for again, or there is an error; what is read is right."""
    ref = put(bucket, CONTENT)
    proxy.faults.append(Fault(kind=kind, method="GET", times=1))
    try:
        assert READERS[reader](PackageStore(f"{bucket.url}/root"), ref) == CONTENT
    except PackageError as error:
        assert kind in ("short", "garble")  # what nobody on the way could notice
        assert ref.hex in error.message
    assert all(data == CONTENT for data in cached(cache))
    assert READERS[reader](PackageStore(f"{bucket.url}/root"), ref) == CONTENT


@pytest.mark.parametrize("kind", ["503", "drop", "cut", "short", "garble"])
def test_a_server_that_stays_bad(bucket: Bucket, proxy: Faulty, cache: Path, kind: Any) -> None:
    ref = put(bucket, CONTENT)
    proxy.faults.append(Fault(kind=kind, method="GET"))
    start = time.monotonic()
    with pytest.raises((StorageError, PackageError)) as caught:
        PackageStore(f"{bucket.url}/root").blob_file(ref)
    assert time.monotonic() - start < 60
    assert f"{bucket.url}/root/{blob_name(ref)}" in caught.value.message
    assert caught.value.hint
    assert cached(cache) == []


@pytest.mark.parametrize("kind", ["503", "drop", "cut"])
@pytest.mark.parametrize("data", [CONTENT, LARGE], ids=["small", "large"])
def test_one_failed_write_is_tried_again(
    bucket: Bucket, proxy: Faulty, kind: Any, data: bytes
) -> None:
    proxy.faults.append(Fault(kind=kind, method="PUT", times=1))
    ref = PackageStore(f"{bucket.url}/root").put_bytes(data)
    assert bucket.read(f"root/{blob_name(ref)}") == data


@pytest.mark.parametrize("kind", ["503", "drop", "cut"])
@pytest.mark.parametrize("data", [CONTENT, LARGE], ids=["small", "large"])
def test_a_write_that_fails_leaves_nothing(
    bucket: Bucket, proxy: Faulty, kind: Any, data: bytes
) -> None:
    proxy.faults.append(Fault(kind=kind, method="PUT"))
    start = time.monotonic()
    with pytest.raises(StorageError) as caught:
        PackageStore(f"{bucket.url}/root").put_bytes(data)
    assert time.monotonic() - start < 60
    assert f"{bucket.url}/root/blobs/sha256/" in caught.value.message
    assert caught.value.hint
    assert bucket.objects() == {}


def test_a_package_whose_writing_fails_never_looks_whole(bucket: Bucket, proxy: Faulty) -> None:
    """The first write fails, the second, ...: function.json comes last."""
    for survivors in range(4):
        root = f"{bucket.url}/{survivors}"
        proxy.faults[:] = [Fault(kind="503", method="PUT", path=f"/{survivors}/", after=survivors)]
        with pytest.raises(StorageError):
            make_package(root)
        assert all("/blobs/" in key for key in bucket.objects(f"{survivors}/"))
        proxy.faults.clear()
        assert open_package(make_package(root))


def test_nobody_there(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in S3Server(url="http://127.0.0.1:9").env.items():
        monkeypatch.setenv(name, value)
    start = time.monotonic()
    with pytest.raises(StorageError) as caught:
        open_package(f"{bucket.url}/functions/predict/abc/function.json")
    assert time.monotonic() - start < 60
    assert "127.0.0.1:9" in caught.value.message
    assert caught.value.hint


def test_no_such_bucket(bucket: Bucket) -> None:
    url = "s3://no-such-bucket-of-mfimage"
    calls: list[Callable[[], Any]] = [
        lambda: make_package(f"{url}/root"),
        lambda: open_package(f"{url}/functions/predict/abc/function.json"),
    ]
    for call in calls:
        with pytest.raises(MfimageError) as caught:
            call()
        assert url in caught.value.message
        assert "bucket" in f"{caught.value.message} {caught.value.hint}"


@pytest.fixture(scope="module")
def strict_bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Bucket, Any]]:
    """A bucket on a server that looks at credentials, and a user who may use it."""
    from tests.support.s3 import s3_running

    with s3_running(tmp_path_factory.mktemp("strict")) as server, bucket_on(server) as bucket:
        iam = server.client("iam")
        iam.create_user(UserName="alice")
        allow = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [allow]})
        iam.put_user_policy(UserName="alice", PolicyName="all", PolicyDocument=policy)
        key = iam.create_access_key(UserName="alice")["AccessKey"]
        _strict(server, 0)
        yield bucket, key
        _strict(server, float("inf"))


def _strict(server: S3Server, after: float) -> None:
    import httpx

    httpx.post(f"{server.url}/moto-api/reset-auth", content=str(after)).raise_for_status()


def test_credentials(strict_bucket: tuple[Bucket, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    bucket, key = strict_bucket
    for name, value in bucket.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
    reference = make_package(f"{bucket.url}/root")
    assert open_package(reference)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-and-not-to-be-shown")
    for call in (lambda: open_package(reference), lambda: make_package(f"{bucket.url}/other")):
        start = time.monotonic()
        with pytest.raises(StorageError) as caught:
            call()
        assert time.monotonic() - start < 30
        said = f"{caught.value.message} {caught.value.hint}"
        assert bucket.url in said and "AWS_ACCESS_KEY_ID" in said
        assert "wrong-and-not-to-be-shown" not in said


class Elsewhere(Handler):
    """A server of another region than the default."""

    def do(self) -> None:
        if "/eu-west-1/" in self.headers.get("Authorization", ""):
            super().do()
            return
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(301)
        self.send_header("x-amz-bucket-region", "eu-west-1")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD = do_PUT = do_POST = do


def test_a_bucket_of_another_region_is_found(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    with faulty(bucket.server.url, Elsewhere) as proxy:
        for name, value in S3Server(url=proxy.url).env.items():
            monkeypatch.setenv(name, value)
        reference = make_package(f"{bucket.url}/root")
        assert open_package(reference).reference == reference
        with pytest.raises(StorageError, match="is in another region") as caught:
            open_storage(bucket.url).write("x", io.BytesIO(b"x"))
        assert "AWS_DEFAULT_REGION" in str(caught.value.hint)


def test_objects_are_encrypted_as_metaflow_is_configured(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METAFLOW_S3_SERVER_SIDE_ENCRYPTION", "aws:kms")
    storage = open_storage(bucket.url)
    for name, data in {"small": b"x", "large": LARGE}.items():
        storage.write(name, io.BytesIO(data))
        found = bucket.server.client().head_object(Bucket=bucket.name, Key=name)
        assert found["ServerSideEncryption"] == "aws:kms"


def test_aws_own_endpoint_and_profile_are_found(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without Metaflow's setting and without variables, as boto3 does."""
    config = tmp_path / "config"
    config.write_text(
        f"[profile here]\nregion = eu-west-1\nendpoint_url = {bucket.server.url}\n"
        "aws_access_key_id = mfimage-test\naws_secret_access_key = mfimage-test-secret\n"
    )
    names = ("METAFLOW_S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION")
    with monkeypatch.context() as patch:
        for name in (*names, "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.delenv(name)
        patch.setenv("AWS_CONFIG_FILE", str(config))
        patch.setenv("AWS_PROFILE", "here")
        open_storage(bucket.url).write("x", io.BytesIO(b"content"))
    assert bucket.read("x") == b"content"


def test_a_profile_that_does_not_exist(bucket: Bucket) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_PROFILE", "nowhere")
        with pytest.raises(StorageError, match=r"s3://.*\(nowhere\) could not be found") as caught:
            open_storage(bucket.url).read("x")
    assert "AWS_PROFILE" in str(caught.value.hint)


def test_an_endpoint_that_is_not_a_url(bucket: Bucket) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METAFLOW_S3_ENDPOINT_URL", "localhost")
        patch.setenv("METAFLOW_S3_RETRY_COUNT", "0")
        with pytest.raises(StorageError) as caught:
            open_storage(bucket.url).read("x")
    assert caught.value.hint


def test_no_credentials(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(StorageError, match="no usable credentials") as caught:
        open_storage(bucket.url).read("x")
    assert "AWS_PROFILE" in str(caught.value.hint)


def test_a_certificate_file_that_cannot_be_read(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("METAFLOW_S3_VERIFY_CERTIFICATE", str(tmp_path / "ca.pem"))
    with pytest.raises(StorageError, match=r"ca\.pem: No such file"):
        open_storage(bucket.url).read("x")
