"""The cache of remote blobs: whole, verified, bounded, and shared by many processes."""

from __future__ import annotations

import gc
import io
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

from mfimage.errors import OptionError, PackageError, StorageError
from mfimage.package.spec import BlobRef
from mfimage.package.storage import cache as once
from mfimage.package.storage.blobs import BlobCache, DamagedBlob
from mfimage.package.storage.cache import cache_size
from mfimage.package.store import PackageStore, blob_name, digest_of, open_package
from tests.support.faulty import faulty
from tests.support.packages import make_package
from tests.support.s3 import Bucket, S3Server

pytestmark = pytest.mark.slow

KIB = 1024


class Origin:
    """Where blobs come from; it counts what is asked for."""

    def __init__(self, *contents: bytes) -> None:
        self.refs = [digest_of(io.BytesIO(data)) for data in contents]
        self.contents = dict(zip((ref.hex for ref in self.refs), contents, strict=True))
        self.asked: list[str] = []

    def __call__(self, ref: BlobRef, file: BinaryIO) -> None:
        self.asked.append(ref.hex)
        file.seek(0)
        file.truncate()
        file.write(self.contents[ref.hex])


def blobs(count: int, size: int = KIB) -> list[bytes]:
    return [random.Random(seed).randbytes(size) for seed in range(count)]


def names(cache: BlobCache) -> set[str]:
    """Return all that lies in the cache, half or whole."""
    return {path.name for path in cache.folder.iterdir()}


@contextmanager
def process(program: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program that says ``ready``, until the block ends."""
    command = [sys.executable, "-c", program, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        try:
            yield running
        finally:
            running.kill()


HOLDS = """
import sys, time
from mfimage.package.storage.blobs import BlobCache
from mfimage.package.spec import BlobRef
held = BlobCache().hold(BlobRef(digest=sys.argv[1], size=int(sys.argv[2])), None)
print("ready", flush=True)
time.sleep(60)
"""
DOWNLOADS = """
import sys, time
from mfimage.package.storage.blobs import BlobCache
from mfimage.package.spec import BlobRef
def fetch(ref, file):
    file.write(b"half")
    file.flush()
    print("ready", flush=True)
    time.sleep(60)
BlobCache().hold(BlobRef(digest=sys.argv[1], size=int(sys.argv[2])), fetch)
"""


def test_a_blob_is_downloaded_once_and_stays() -> None:
    origin, cache = Origin(*blobs(1)), BlobCache()
    (ref,) = origin.refs
    for _ in range(3):
        held = cache.hold(ref, origin)
        assert held.path.read_bytes() == held.read() == origin.contents[ref.hex]
        held.release()
    assert origin.asked == [ref.hex]
    assert names(cache) == {ref.hex}
    assert oct(cache.folder.stat().st_mode & 0o777) == "0o700"
    assert (cache.folder.parents[1] / "CACHEDIR.TAG").exists()


def test_a_damaged_blob_is_fetched_anew(caplog: pytest.LogCaptureFixture) -> None:
    origin, cache = Origin(*blobs(1)), BlobCache()
    (ref,) = origin.refs
    for damage in (b"", b"other", origin.contents[ref.hex][:-1] + b"\0"):
        cache.hold(ref, origin).path.write_bytes(damage)
        held = cache.hold(ref, origin)
        assert held.path.read_bytes() == origin.contents[ref.hex]
    assert len(origin.asked) == 4
    assert "was damaged; it is downloaded again" in caplog.text


def test_what_arrives_damaged_is_tried_again_and_then_refused() -> None:
    good, cache = Origin(*blobs(1)), BlobCache()
    (ref,) = good.refs
    bad = Origin(*blobs(1))
    bad.contents[ref.hex] = b"damaged"
    with pytest.raises(DamagedBlob):
        cache.hold(ref, bad)
    assert len(bad.asked) == 2
    assert names(cache) == set()

    def sometimes(ref: BlobRef, file: BinaryIO) -> None:
        (good if good.asked else bad)(ref, file)
        good.asked.append(ref.hex)

    assert cache.hold(ref, sometimes).read() == good.contents[ref.hex]


def test_a_failed_download_leaves_nothing() -> None:
    origin, cache = Origin(*blobs(1)), BlobCache()
    (ref,) = origin.refs
    for error in (KeyboardInterrupt(), StorageError("no")):

        def fail(_: BlobRef, file: BinaryIO, error: BaseException = error) -> None:
            file.write(b"half")
            raise error

        with pytest.raises(type(error)):
            cache.hold(ref, fail)
        assert names(cache) == set()
    assert cache.hold(ref, origin).read() == origin.contents[ref.hex]


def test_least_recently_used_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MFIMAGE_CACHE_SIZE", "3KiB")
    origin, cache = Origin(*blobs(5)), BlobCache()
    first, second, third, fourth, fifth = origin.refs
    for seconds, ref in enumerate((first, second, third)):
        held = cache.hold(ref, origin)
        held.release()
        os.utime(held.path, (seconds, seconds))
    cache.hold(first, origin).release()  # used again
    cache.hold(fourth, origin).release()
    assert names(cache) == {ref.hex for ref in (first, third, fourth)}
    cache.hold(fifth, origin).release()
    assert names(cache) == {ref.hex for ref in (first, fourth, fifth)}


def test_a_blob_in_use_is_never_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    origin, cache = Origin(*blobs(3)), BlobCache()
    mine, theirs, other = origin.refs
    held = cache.hold(mine, origin)
    for ref in (theirs, other):
        cache.hold(ref, origin).release()
    monkeypatch.setenv("MFIMAGE_CACHE_SIZE", "0")
    with process(HOLDS, theirs.digest, str(theirs.size)):
        BlobCache().trim()
        assert names(cache) == {mine.hex, theirs.hex}
    BlobCache().trim()
    assert names(cache) == {mine.hex}
    held.release()
    BlobCache().trim()
    assert names(cache) == set()


def test_a_process_killed_amid_a_download_blocks_nobody() -> None:
    origin, cache = Origin(*blobs(2)), BlobCache()
    ref, other = origin.refs
    with process(DOWNLOADS, ref.digest, str(ref.size)) as running:
        assert len(names(cache)) == 2, "a lock, and half a blob"
        cache.hold(other, origin).release()
        assert len(names(cache)) == 3, "what others download is left alone"
        running.send_signal(signal.SIGKILL)
    began = time.monotonic()
    assert cache.hold(ref, origin).read() == origin.contents[ref.hex]
    assert time.monotonic() - began < 5
    assert names(cache) == {ref.hex, other.hex}


def test_the_rest_of_a_killed_download_goes_when_room_is_made() -> None:
    origin, cache = Origin(*blobs(2)), BlobCache()
    ref, other = origin.refs
    with process(DOWNLOADS, ref.digest, str(ref.size)):
        pass
    assert len(names(cache)) == 2
    cache.hold(other, origin).release()
    assert names(cache) == {other.hex}


CROWD = """
import os, random, sys
from mfimage.package.storage.blobs import BlobCache
from mfimage.package.store import digest_of
import io
contents = [random.Random(seed).randbytes(1000) for seed in range(8)]
refs = [digest_of(io.BytesIO(data)) for data in contents]
for child in range(12):
    if os.fork() == 0:
        chance, cache = random.Random(child), BlobCache()
        for _ in range(150):
            index = chance.randrange(8)
            held = cache.hold(refs[index], lambda ref, file: file.write(contents[index]))
            path, data = held.path, held.read()
            if chance.random() < 0.1:
                held.path.write_bytes(b"damage")  # as a disk would, under everybody
                cache.hold(refs[index], lambda ref, file: file.write(contents[index])).release()
            # Empty between being opened for the damage and getting it.
            elif data not in (contents[index], b"damage", b""):
                os._exit(1)
            held.release()
        os._exit(0)
sys.exit(any([os.wait()[1] for _ in range(12)]))
"""


def test_a_crowd_that_fills_damages_and_trims(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve processes, room for three of eight blobs: no error, no deadlock, nothing left over."""
    monkeypatch.setenv("MFIMAGE_CACHE_SIZE", "3000")
    done = subprocess.run(
        [sys.executable, "-c", CROWD], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0), done.stderr[-2000:]
    cache = BlobCache()
    cache.trim()
    found = names(cache)
    assert 1 <= len(found) <= 3
    assert not any(name.startswith(".") for name in found)


LOADERS = """
import os, sys, time
from mfimage.load import function_from_json
import boto3, botocore.session, metaflow.plugins.datatools.s3.s3, mfimage.backends.local
reference, count, backend = sys.argv[1], int(sys.argv[2]), sys.argv[3]
begin = time.time() + 0.5
for _ in range(count):
    if os.fork() == 0:
        time.sleep(max(0, begin - time.time()))
        answer = function_from_json(reference, backend=backend)({"x": 2})
        os._exit(answer != {"y": 6})
sys.exit(any([os.wait()[1] for _ in range(count)]))
"""


def test_fifty_loaders_download_each_blob_once(bucket: Bucket, cache: Path) -> None:
    """Each is asked for once at the server, however many processes start at once."""
    reference = make_package(f"{bucket.url}/root", artifacts={"factor": 3, "large": b"x" * 999_999})
    for path in (cache / "blobs" / "sha256").iterdir():
        path.unlink()
    package = open_package(reference)
    with faulty(bucket.server.url) as proxy:
        done = subprocess.run(
            [sys.executable, "-c", LOADERS, reference, "50", "local"],
            env={**os.environ, **S3Server(url=proxy.url).env},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        refs = [package.spec.code, package.spec.artifacts["factor"]]
        assert [proxy.count("GET", blob_name(ref)) for ref in refs] == [1, 1]
        assert proxy.count("GET", "/functions/") == 50
        assert proxy.count("GET", "/blobs/") == 2, "nothing that nobody reads"


def test_nothing_stays_longer_than_needed(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setenv("MFIMAGE_CACHE_SIZE", "0")
    store = PackageStore(f"{bucket.url}/root")
    refs = [store.put_bytes(data) for data in blobs(3)]
    files = [store.blob_file(ref) for ref in refs]
    assert [path.stat().st_size for path in files] == [KIB] * 3
    assert {path.parent for path in files} == {cache / "blobs" / "sha256"}
    del store
    gc.collect()
    assert list((cache / "blobs" / "sha256").iterdir()) == []


def test_a_cache_that_is_cleaned_under_us(bucket: Bucket) -> None:
    store = PackageStore(f"{bucket.url}/root")
    ref = store.put_bytes(b"content")
    store.blob_file(ref).unlink()
    assert store.blob_file(ref).read_bytes() == b"content"
    store.blob_file(ref).write_bytes(b"damage")
    assert store.read_blob(ref) == b"content"


def test_damaged_at_the_root(bucket: Bucket) -> None:
    ref = digest_of(io.BytesIO(b"content"))
    bucket.write(f"root/{blob_name(ref)}", b"damaged")
    store = PackageStore(f"{bucket.url}/root")
    reads = (store.read_blob, store.blob_file, lambda ref: list(store.stream_blob(ref)))
    for read in reads:
        with pytest.raises(PackageError, match="content does not have the digest"):
            read(ref)
    bucket.delete("root")
    for read in reads:
        with pytest.raises(PackageError, match=f"{bucket.url}/root/blobs/.*: missing"):
            read(ref)


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MFIMAGE_CACHE", str(tmp_path / "file"))
    origin = Origin(b"content")
    with pytest.raises(StorageError, match="cannot write") as caught:
        BlobCache().hold(origin.refs[0], origin)
    assert "MFIMAGE_CACHE" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("", 10 << 30),
        ("0", 0),
        ("1000", 1000),
        ("500MB", 500_000_000),
        ("2 GiB", 2 << 30),
        ("1t", 10**12),
    ],
)
def test_sizes(text: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MFIMAGE_CACHE_SIZE", text)
    assert cache_size() == size


@pytest.mark.parametrize("text", ["much", "-1", "10 EB", "GB", "1e9"])
def test_what_is_no_size(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MFIMAGE_CACHE_SIZE", text)
    with pytest.raises(OptionError, match=f"MFIMAGE_CACHE_SIZE: '{text}' is not a size") as caught:
        PackageStore("s3://bucket")
    assert "500MiB" in str(caught.value.hint)


def test_who_waits_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(once, "_SILENCE", 0.05)
    origin, cache = Origin(*blobs(1)), BlobCache()
    (ref,) = origin.refs
    with process(DOWNLOADS, ref.digest, str(ref.size)) as running:
        killer = threading.Timer(1, os.kill, (running.pid, signal.SIGKILL))
        killer.start()
        assert cache.hold(ref, origin).read() == origin.contents[ref.hex]
        killer.join()
    assert "still waiting for another process, which has" in caplog.text
