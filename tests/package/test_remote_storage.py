"""Objects of each kind of store, on real servers: what is the same wherever a bucket is."""

from __future__ import annotations

import io
import logging
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mfimage.errors import PackageError, ReferenceNotFound, StorageError
from mfimage.package.storage import cache as once
from mfimage.package.storage.buckets import open_storage
from mfimage.package.storage.objects import without_secrets
from mfimage.package.store import PackageStore, blob_name, open_package
from tests.support.clouds import azure_running, google_running
from tests.support.faulty import Fault, faulty
from tests.support.packages import make_package
from tests.support.s3 import Bucket, S3Server

pytestmark = pytest.mark.slow

SIZES = (0, 10, 20 << 20)
KINDS = ["s3", "gs", pytest.param("azure", marks=pytest.mark.index)]


@pytest.fixture(scope="module")
def google(s3_server: S3Server) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, google_running(s3_server, patch) as url:
        yield url


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("azure") / "data"
    with pytest.MonkeyPatch.context() as patch, azure_running(folder, patch) as url:
        yield url


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest) -> str:
    """A bucket on a real server."""
    fixture = {"s3": "bucket", "gs": "google", "azure": "azure"}[request.param]
    found = request.getfixturevalue(fixture)
    return found.url if isinstance(found, Bucket) else str(found)


def test_what_is_written_is_read(url: str) -> None:
    storage = open_storage(f"{url}/some/folder")
    for size in SIZES:
        content = random.Random(size).randbytes(size)
        storage.write("x/y", io.BytesIO(content))
        assert storage.size("x/y") == size
        assert storage.read("x/y") == content
        with storage.open("x/y") as file:
            assert file.read(5) == content[:5]
    assert storage.url("x/y") == f"{url}/some/folder/x/y"
    assert open_storage(f"{url}/some/").read("folder/x/y") == content


def test_what_is_not_there(url: str) -> None:
    storage = open_storage(f"{url}/some/folder")
    assert storage.size("nothing") is None
    for read in (storage.read, storage.open):
        with pytest.raises(FileNotFoundError, match=f"{url}/some/folder/nothing"):
            read("nothing")


def test_no_such_bucket(url: str) -> None:
    storage = open_storage(f"{url}-other/folder")
    with pytest.raises(StorageError, match=r"cannot write .*-other") as caught:
        storage.write("x", io.BytesIO(b"x"))
    assert caught.value.hint or "is there a" in caught.value.message


def test_a_source_is_written_from_where_it_stands(url: str) -> None:
    storage = open_storage(url)
    source = io.BytesIO(b"0123456789")
    source.seek(5)
    storage.write("half", source)
    assert storage.read("half") == b"56789"


def test_a_whole_package(url: str, tmp_path: Path, cache: Path) -> None:
    reference = make_package(f"{url}/root")  # type: ignore[arg-type]
    package = open_package(reference)
    assert package.reference == reference
    assert reference.startswith(f"{url}/root/functions/predict/")
    for ref in package.spec.blobs.values():
        assert package.store.holds(ref)
        file = package.store.blob_file(ref)
        assert file == cache / "blobs" / "sha256" / ref.hex
        assert package.read(ref) == file.read_bytes()
    with pytest.raises(ReferenceNotFound):
        open_package(f"{url}/root/functions/predict/{'0' * 64}/function.json")


def test_damage_at_the_root(url: str, cache: Path) -> None:
    store = PackageStore(f"{url}/damaged")
    ref = store.put_bytes(b"content")
    store.storage.write(blob_name(ref), io.BytesIO(b"Content"))
    assert store.read_blob(ref) == b"content", "what was written here need not be fetched"
    (cache / "blobs" / "sha256" / ref.hex).unlink()
    with pytest.raises(PackageError, match="does not have the digest"):
        store.read_blob(ref)


def test_a_source_that_fails_is_not_the_stores_fault(url: str) -> None:
    class Stop(Exception):
        pass

    class Source(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise Stop

    with pytest.raises(Stop):
        open_storage(url).write("stopped", Source(b"x" * 100))
    assert open_storage(url).size("stopped") is None


@pytest.mark.parametrize("scheme", ["s3", "gs", "azure", "https"])
def test_credentials_in_a_url_are_refused_and_not_repeated(scheme: str) -> None:
    tail = "functions/f/0/function.json"
    for root in (f"{scheme}://user:hunter2@bucket/x", f"{scheme}://hunter2@bucket"):
        for use in (open_storage, PackageStore, lambda root: open_package(f"{root}/{tail}")):
            with pytest.raises(StorageError, match="holds credentials") as caught:
                use(root)
            assert "hunter2" not in f"{caught.value} {caught.value.hint}"


def test_secrets_are_cut_out_of_what_libraries_say() -> None:
    text = "no answer from http://user:hunter2@host/a/b?sig=hunter3&x=1 (s3://bucket/a)"
    assert without_secrets(text) == "no answer from http://***@host/a/b?*** (s3://bucket/a)"


@pytest.mark.parametrize(
    ("scheme", "module", "command"),
    [
        ("s3", "boto3", "pip install obstore boto3"),
        ("s3", "obstore", "pip install obstore boto3"),
        ("gs", "google.auth", "pip install obstore google-auth requests"),
        ("azure", "azure.identity", "pip install obstore azure-identity"),
    ],
)
def test_a_library_that_is_not_installed(
    scheme: str, module: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # type: ignore[arg-type]
    with pytest.raises(StorageError, match=rf"{scheme}:// needs .*not installed") as caught:
        open_storage(f"{scheme}://bucket/x").read("y")
    assert caught.value.hint == command


def test_no_credentials_for_google(google: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from metaflow.plugins.gcp import gs_storage_client_factory as factory

    monkeypatch.setattr(factory, "cached_provider_class", factory.GcpDefaultClientProvider)
    monkeypatch.setattr(factory, "_client_cache", {})
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere")
    with pytest.raises(StorageError, match="no usable credentials") as caught:
        open_storage("gs://bucket/x").read("y")
    assert "gcloud auth" in str(caught.value.hint)


def test_nobody_at_googles_address(google: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    monkeypatch.setenv("METAFLOW_S3_RETRY_COUNT", "0")
    with pytest.raises(StorageError, match="Connection refused") as caught:
        open_storage(google).read("y")
    assert caught.value.hint == "check the network"


def test_who_waits_is_told_what_for(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(once, "_SILENCE", 0.2)
    bucket.write("x", b"content")
    with faulty(bucket.server.url) as proxy:
        for name, value in S3Server(url=proxy.url).env.items():
            monkeypatch.setenv(name, value)
        proxy.faults = [Fault(kind="delay", seconds=1, times=1), Fault(kind="503", times=3)]
        with caplog.at_level(logging.WARNING):
            assert open_storage(bucket.url).read("x") == b"content"
    assert f"still trying to read {bucket.url}/x after" in caplog.text


CHILDREN = """
import os, sys
from mfimage.package.storage.buckets import open_storage
storage = open_storage(sys.argv[1])
storage.read("0")
for child in range(4):
    if os.fork() == 0:
        good = all(storage.read(str(i)) == str(i).encode() * 1000 for i in range(50))
        os._exit(not good)
sys.exit(any([os.wait()[1] for _ in range(4)]))
"""


def test_forked_processes_do_not_share_a_connection(bucket: Bucket) -> None:
    for i in range(50):
        bucket.write(str(i), str(i).encode() * 1000)
    command = [sys.executable, "-c", CHILDREN, bucket.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr


FORKED = """
import io, os, sys
from mfimage.errors import StorageError
from mfimage.package.storage.buckets import open_storage
storage = open_storage(sys.argv[1])
storage.size("x")
if os.fork():
    sys.exit(os.wait()[1] != 0)
storage.write("x", io.BytesIO(b"written"))
assert (storage.size("x"), storage.size("y"), storage.read("x")) == (7, None, b"written")
try:
    storage.read("y")
except FileNotFoundError as error:
    assert str(error) == storage.url("y")
try:
    open_storage("s3://no-such-bucket-of-mfimage").write("x", io.BytesIO(b""))
except StorageError as error:
    assert "there is no bucket" in error.message and error.hint
    os._exit(0)
"""


def test_a_forked_process_writes_and_gets_the_same_errors(bucket: Bucket) -> None:
    """obstore hangs there: a helper process does it."""
    command = [sys.executable, "-c", FORKED, bucket.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert bucket.read("x") == b"written"


MEMORY = """
import os, re, sys
from pathlib import Path

def peak():  # not getrusage: its peak is that of the process that started this one, too
    return int(re.search("VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

from mfimage.package.store import PackageStore
PackageStore(sys.argv[1]).put_bytes(b"the libraries are there")
before = peak()
ref = PackageStore(sys.argv[1]).put_file(Path(sys.argv[2]))
os.environ["MFIMAGE_CACHE"] += "-other"
assert PackageStore(sys.argv[1]).blob_file(ref).stat().st_size == ref.size
print((peak() - before) >> 10)
"""


def test_memory_does_not_grow_with_a_blob(bucket: Bucket, tmp_path: Path) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(180 << 20)
    command = [sys.executable, "-c", MEMORY, bucket.url, str(large)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=200, check=False, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 130, "MiB"


@pytest.mark.index
def test_a_certificate_that_is_not_trusted(azure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    monkeypatch.setenv("METAFLOW_S3_RETRY_COUNT", "0")
    with pytest.raises(StorageError, match="certificate is not trusted") as caught:
        open_storage(azure).read("x")
    assert "REQUESTS_CA_BUNDLE" in str(caught.value.hint)
