"""Objects in buckets, and files of this machine, by obstore.

obstore retries, reads ranges and uploads in parts by itself. Its errors are texts, which are
parsed here for the HTTP status, the service's error code and the reason.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from mfimage.errors import StorageError
from mfimage.masking import MASK, mask_urls

RETRIES: Any = {"max_retries": 8, "retry_timeout": timedelta(minutes=2)}
_MIB = 1 << 20
# Larger objects move in parts, a few at once; S3 takes at most 10,000 of them.
_PART = 8 * _MIB
_PARTS, _PARTS_AT_ONCE = 9_000, 4
_FILES_AT_ONCE = 32
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "METAFLOW_S3_ENDPOINT_URL")

CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gs": "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS",
    "azure": "run `az login`, or set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET",
}
NETWORK = {
    "s3": "check the network and METAFLOW_S3_ENDPOINT_URL",
    "gs": "check the network",
    "azure": "check the network and METAFLOW_AZURE_STORAGE_BLOB_SERVICE_ENDPOINT",
}
_SCHEMES = {"s3": "s3", "gs": "gs", "az": "azure", "ab": "azure"}
_STATUS = re.compile(r"status code: (\d{3}) ?([^:\n]*)")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_REGION = re.compile(r"redirect without LOCATION|AuthorizationHeaderMalformed|PermanentRedirect")
_HOST = re.compile(r"https?://[^\s,]+")
_REASONS = (
    (re.compile(r"kind: Timeout|TimedOut"), "timeout: no answer in time"),
    (re.compile(r"IncompleteBody|kind: Interrupted|UnexpectedEof"), "the response broke off"),
    (re.compile(r"IncompleteMessage|ConnectionReset|BrokenPipe|ConnectionAborted"),
     "the connection was closed without a response"),
)  # fmt: skip
_CERTIFICATE = re.compile(r"InvalidCertificate\(\s*(?:Other\(\s*)*(?:OtherError\(\s*)*(\w+)")
_DETAIL = re.compile(r'(?:message|error): "([^"]+)"')
_NO_BUCKET = {"NoSuchBucket", "ContainerNotFound"}
_BUSY = {"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException"}
_REFUSED_KEYS = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
# What is signed or secret in a query.
_QUERY = re.compile(r"(?<=\?)[^\s'\"<>]+")


@dataclass(frozen=True, kw_only=True)
class ObjectInfo:
    """What a store says about an object; ``version`` changes when the content does."""

    url: str
    size: int  # in bytes
    version: str


class WrongRegion(StorageError):
    """The bucket is in another region than the one that was asked."""


class Objects:
    """The objects of one bucket, or the files of this machine.

    ``root`` stands before every key, as ``s3://bucket/`` or ``/``; without ``store``, obstore's is
    configured by the environment.
    """

    def __init__(self, root: str, store: Any = None) -> None:
        self.root = root
        self._store = _open(root) if store is None else store

    def url(self, key: str) -> str:
        """Return the whole address of a key."""
        return self.root + key

    def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """Return an object's bytes from ``start`` to before ``end``."""
        import obstore

        with self._translated(key, "read"):
            if end is None:
                return bytes(obstore.get(self._store, key).bytes())
            return bytes(obstore.get_range(self._store, key, start=start, end=end))

    def read_many(self, keys: Iterable[str]) -> Iterator[bytes]:
        """Yield small objects' bytes, in order, some read ahead."""
        waiting = iter(keys)
        with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
            while chunk := list(itertools.islice(waiting, _FILES_AT_ONCE)):
                yield from pool.map(self.read, chunk)

    def download(self, key: str, sink: BinaryIO) -> None:
        """Write an object's content to ``sink``; a large one is read in parallel parts."""
        import obstore

        with self._translated(key, "read"):
            found = obstore.get(self._store, key)
            size = found.meta["size"]
            chunks = iter(found.stream(min_chunk_size=_MIB)) if size <= _PART else None
        if chunks is not None:
            while True:
                with self._translated(key, "read"):
                    chunk = next(chunks, None)
                if chunk is None:
                    return
                sink.write(chunk)
        del found
        starts = iter(range(0, size, _PART))
        with ThreadPoolExecutor(_PARTS_AT_ONCE) as pool:
            while window := list(itertools.islice(starts, _PARTS_AT_ONCE)):
                ends = [min(start + _PART, size) for start in window]
                for part in pool.map(self.read, itertools.repeat(key), window, ends):
                    sink.write(part)

    def open(self, key: str) -> BinaryIO:
        """Open an object for reading; it can be seeked."""
        import obstore

        with self._translated(key, "read"):
            reader = obstore.open_reader(self._store, key)
        translated = functools.partial(self._translated, key, "read")
        return io.BufferedReader(_Raw(reader, translated), _MIB)

    def write(self, key: str, content: bytes | Path) -> None:
        """Write an object, whole or not at all, over whatever is there."""
        import obstore

        with self._translated(key, "write"):
            obstore.put(self._store, key, content)

    def upload(self, key: str, source: BinaryIO) -> None:
        """Make an object of what ``source`` holds from here on, whole or not at all."""
        import obstore

        first = source.read(_PART)
        if len(first) < _PART:
            self.write(key, first)
            return
        chunks = _Chunks(first, source)
        with self._translated(key, "write", chunks):
            known = isinstance(source, io.BufferedReader)
            whole = os.fstat(source.fileno()).st_size if known else 0
            size = max(_PART, whole // _PARTS)
            obstore.put(
                self._store, key, iter(chunks), chunk_size=size, max_concurrency=_PARTS_AT_ONCE
            )

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield every object below a folder, sorted by name."""
        import obstore

        found: list[ObjectInfo] = []
        with self._translated(prefix, "list"):
            for chunk in obstore.list(self._store, prefix.rstrip("/") or None):
                found += map(self._info, chunk)
        yield from sorted(found, key=lambda info: info.url)

    def stat(self, key: str) -> ObjectInfo | None:
        """Return what is known of an object; None when there is none."""
        import obstore

        try:
            with self._translated(key, "read"):
                return self._info(obstore.head(self._store, key))
        except FileNotFoundError:
            return None

    def size(self, key: str) -> int | None:
        """Return an object's size in bytes; None when there is none."""
        found = self.stat(key)
        return found.size if found else None

    def _info(self, meta: Any) -> ObjectInfo:
        version = str(meta["e_tag"] or meta["last_modified"])
        return ObjectInfo(url=self.url(meta["path"]), size=meta["size"], version=version)

    @contextlib.contextmanager
    def _translated(self, key: str, verb: str, source: _Chunks | None = None) -> Iterator[None]:
        """Raise ``FileNotFoundError`` or ``StorageError`` with the URL, the reason and a hint."""
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, OSError, ValueError) as error:
            if source is not None and source.error is not None:
                raise source.error from None
            message, hint = describe(str(error), self.root)
            if isinstance(error, FileNotFoundError) and (not message or "://" not in self.root):
                if verb != "write":
                    raise FileNotFoundError(self.url(key)) from None
                message = f"nothing is there; is there a {_bucket(self.root)!r}?"
            kind = WrongRegion if _REGION.search(str(error)) else StorageError
            raise kind(f"cannot {verb} {self.url(key)}: {message}", hint=hint) from None


class _Chunks:
    """A source in chunks, which keeps the exception that it raised: obstore makes it its own."""

    def __init__(self, first: bytes, source: BinaryIO) -> None:
        self._first = first
        self._source = source
        self.error: BaseException | None = None

    def __iter__(self) -> Iterator[bytes]:
        yield self._first
        try:
            while chunk := self._source.read(_PART):
                yield chunk
        except Exception as error:
            self.error = error
            raise


class _Raw(io.RawIOBase):
    """obstore's file as Python's."""

    def __init__(self, reader: Any, translated: Callable[[], AbstractContextManager[None]]) -> None:
        self._reader = reader
        self._translated = translated

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with self._translated():
            data = self._reader.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with self._translated():
            return int(self._reader.seek(offset, whence))

    def tell(self) -> int:
        return int(self._reader.tell())


def _open(root: str) -> Any:
    from obstore.store import LocalStore, from_url

    if root == "/":
        return LocalStore(prefix="/", mkdir=True)
    options: dict[str, Any] = {}
    endpoint = next((os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), None)
    if root.startswith("s3") and endpoint:
        options["config"] = {"endpoint": endpoint}
        # An http:// endpoint is meant when it is set.
        options["client_options"] = {"allow_http": endpoint.startswith("http://")}
    return from_url(root, retry_config=RETRIES, **options)


def without_secrets(text: str) -> str:
    """Return text without the passwords and signatures of the URLs in it."""
    return _QUERY.sub(MASK, mask_urls(text))


def _bucket(root: str) -> str:
    return root.partition("://")[2].partition("/")[0]


def describe(text: str, root: str) -> tuple[str, str | None]:
    """Return the reason, empty when nothing is there, and the next step for obstore's error."""
    scheme = _SCHEMES.get(root[:2])
    if scheme is None:
        return without_secrets(text).strip().partition("\n")[0], None
    if _REGION.search(text):
        reason = f"{_bucket(root)!r} is in another region"
        return reason, "set AWS_DEFAULT_REGION to the bucket's region"
    status = _STATUS.search(text)
    if status:
        code = _CODE.search(text)
        known = code[1] if code else ""
        return rejected(int(status[1]), known, status[2], scheme=scheme, bucket=_bucket(root))
    certificate = _CERTIFICATE.search(text)
    if certificate:
        reason = f"the server's certificate is not trusted ({certificate[1]})"
        return reason, "name the CA's file with AWS_CA_BUNDLE or REQUESTS_CA_BUNDLE"
    host = _HOST.search(text)
    place = f"{urlsplit(host[0]).netloc.rpartition('@')[2]}: " if host else ""
    for pattern, reason in _REASONS:
        if pattern.search(text):
            return place + reason, NETWORK[scheme]
    details = _DETAIL.findall(text)
    reason = details[-1] if details else text.strip().partition("\n")[0]
    return f"{place}{without_secrets(reason)}"[:300], NETWORK[scheme]


def rejected(
    status: int, code: str, phrase: str, *, scheme: str, bucket: str
) -> tuple[str, str | None]:
    """Return the reason and the next step for an HTTP status; an empty reason for a plain 404."""
    said = f"{status} {code or phrase}".strip()
    if code in _NO_BUCKET:
        kind = "container" if scheme == "azure" else "bucket"
        hint = f"create it, or correct the URL; {NETWORK[scheme]}"
        return f"there is no {kind} {bucket!r}", hint
    if status == 404:
        return "", None
    if status == 401 or code in _REFUSED_KEYS:
        return f"the credentials were refused ({said})", CREDENTIALS[scheme]
    if status == 403:
        hint = f"ask for the right to list, read and write {bucket!r}, or {CREDENTIALS[scheme]}"
        return f"access was denied ({said})", hint
    later = status >= 500 or status in (408, 429) or code in _BUSY
    return f"the server answered {said}", "try again later" if later else NETWORK[scheme]
