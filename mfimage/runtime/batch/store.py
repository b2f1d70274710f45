"""The files of a batch job: on this machine, or in s3://, gs:// and azure:// buckets."""

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

from mfimage.errors import OptionError, StorageError

_REMOTE = re.compile(r"(s3|s3a|gs|az|azure|abfs|abfss)://([^/]+)(/.*)?")
_WILD = re.compile(r"[*?\[]")
_BUFFER = 1 << 20
_AT_ONCE = 32
RETRIES: Any = {"max_retries": 8, "retry_timeout": timedelta(minutes=2)}
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "METAFLOW_S3_ENDPOINT_URL")


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """A file of records.

    Attributes
    ----------
    url : str
        Where it is.
    size : int
        In bytes.
    version : str
        Changes when the content does.
    """

    url: str
    size: int
    version: str


class Store:
    """The files of one bucket, or of this machine.

    Attributes
    ----------
    root : str
        What stands before every key, as ``s3://bucket/`` or ``/``.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self._store = _open(root)

    def url(self, key: str) -> str:
        """Return the whole address of a key."""
        return self.root + key

    def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """Return a file's bytes from ``start`` to before ``end``."""
        import obstore

        with self._told(key, "read"):
            if end is None:
                return bytes(obstore.get(self._store, key).bytes())
            return bytes(obstore.get_range(self._store, key, start=start, end=end))

    def read_many(self, keys: Iterable[str]) -> Iterator[bytes]:
        """Yield small files' bytes, in order, some read ahead."""
        waiting = iter(keys)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            while chunk := list(itertools.islice(waiting, _AT_ONCE)):
                yield from pool.map(self.read, chunk)

    def open(self, key: str) -> BinaryIO:
        """Open a file for reading; it can be seeked."""
        import obstore

        with self._told(key, "read"):
            reader = obstore.open_reader(self._store, key)
        return io.BufferedReader(_Raw(reader, functools.partial(self._told, key, "read")), _BUFFER)

    def write(self, key: str, content: bytes | Path) -> None:
        """Write a file, whole or not at all, over whatever is there."""
        import obstore

        with self._told(key, "write"):
            obstore.put(self._store, key, content)

    def list(self, prefix: str) -> Iterator[InputFile]:
        """Yield every file below a folder, sorted by name."""
        import obstore

        found: list[InputFile] = []
        with self._told(prefix, "list"):
            for chunk in obstore.list(self._store, prefix.rstrip("/") or None):
                found += map(self._file, chunk)
        yield from sorted(found, key=lambda file: file.url)

    def stat(self, key: str) -> InputFile | None:
        """Return what is known of a file; None when there is none."""
        import obstore

        try:
            with self._told(key, "read"):
                return self._file(obstore.head(self._store, key))
        except FileNotFoundError:
            return None

    def _file(self, meta: Any) -> InputFile:
        version = str(meta["e_tag"] or meta["last_modified"])
        return InputFile(url=self.url(meta["path"]), size=meta["size"], version=version)

    @contextlib.contextmanager
    def _told(self, key: str, verb: str) -> Iterator[None]:
        """Say which file, and what the store said, on one line."""
        from obstore.exceptions import BaseError

        try:
            yield
        except FileNotFoundError:
            raise FileNotFoundError(self.url(key)) from None
        except (BaseError, OSError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise StorageError(
                f"cannot {verb} {self.url(key)}: {reason}",
                hint="check the URL, the credentials (AWS_*, GOOGLE_*, AZURE_*) and the endpoint"
                if "://" in self.root
                else None,
            ) from None


class _Raw(io.RawIOBase):
    """A file of obstore as Python's."""

    def __init__(self, reader: Any, told: Callable[[], AbstractContextManager[None]]) -> None:
        self._reader = reader
        self._told = told

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with self._told():
            data = self._reader.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with self._told():
            return int(self._reader.seek(offset, whence))

    def tell(self) -> int:
        return int(self._reader.tell())


def locate(url: str) -> tuple[Store, str]:
    """Return where a URL or path is: the store and the key.

    Raises
    ------
    OptionError
        When the scheme is not known, or the URL has a password in it.
    """
    remote = _REMOTE.fullmatch(url)
    if remote:
        scheme, bucket, path = remote.groups()
        if "@" in bucket and ":" in bucket.partition("@")[0]:
            raise OptionError(
                f"a {scheme}:// URL has a password in it",
                hint="give credentials by the store's own variables",
            )
        return Store(f"{scheme}://{bucket}/"), (path or "/")[1:]
    if "://" in url and not url.startswith("file://"):
        raise OptionError(
            f"{url}: there are no files at {url.partition('://')[0]}://",
            hint="use a path, s3://, gs:// or azure://",
        )
    path = os.path.abspath(url.removeprefix("file://"))  # noqa: PTH100  (links stay)
    return Store("/"), path[1:]


def _open(root: str) -> Any:
    from obstore.store import LocalStore, from_url

    if root == "/":
        return LocalStore(prefix="/", mkdir=True)
    options: dict[str, Any] = {}
    endpoint = next((os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), None)
    if root.startswith("s3") and endpoint:
        options["config"] = {"endpoint": endpoint}
        # Said so by whoever set it.
        options["client_options"] = {"allow_http": endpoint.startswith("http://")}
    return from_url(root, retry_config=RETRIES, **options)


def find_inputs(url: str, suffixes: tuple[str, ...]) -> list[InputFile]:
    """Return the files that a URL names: a file, those below a folder, or those of a pattern.

    Parameters
    ----------
    url : str
        ``*``, ``?``, ``[a-z]`` and ``[!a-z]`` stand for anything but ``/``, ``**`` for folders
        too.
    suffixes : tuple of str
        Of the files to take from a folder; what starts with ``_`` or ``.`` is passed over.

    Raises
    ------
    OptionError
        When there is none.
    """
    store, key = locate(url)
    wild = _WILD.search(key)
    if wild and store.stat(key) is None:  # there may be a file that is called so
        pattern = _pattern(store.url(key))
        folder = key[: wild.start()].rpartition("/")[0]
        found = [file for file in store.list(folder) if pattern.fullmatch(file.url)]
    elif key and not url.endswith("/") and (single := store.stat(key)) is not None:
        found = [single]
    else:
        below = store.url(key.rstrip("/"))
        found = [
            file
            for file in store.list(key)
            if file.url.endswith(suffixes) and not _hidden(file.url.removeprefix(below))
        ]
    if not found:
        raise OptionError(
            f"input: there are no files at {url}",
            hint=f"name a file, a pattern, or a folder with files in {' or '.join(suffixes)}",
        )
    return found


def _hidden(path: str) -> bool:
    return any(part.startswith(("_", ".")) for part in path.split("/") if part)


def _pattern(text: str) -> re.Pattern[str]:
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[!?[^\]/]+\])", text)
    return re.compile("".join(map(_piece, parts)))


def _piece(part: str) -> str:
    wild = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    if part in wild:
        return wild[part]
    if part.startswith("[") and part.endswith("]"):
        inner = part[1:-1].replace("\\", r"\\")
        return f"(?!/)[^{inner[1:]}]" if inner.startswith("!") else f"[{inner}]"
    return re.escape(part)
