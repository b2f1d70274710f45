"""The function in the caller's own process."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mfimage.package.archive import extract
from mfimage.package.store import Package
from mfimage.runtime.loader import LiveFunction, load_function


class LocalBackend:
    """Runs a package's function in this process; any thread may call it.

    Parameters
    ----------
    package : Package
        What to load. Its code is unpacked once per machine and user, its artifacts are loaded
        when the function first reads them.
    """

    def __init__(self, package: Package) -> None:
        self._live: LiveFunction = load_function(
            package.spec, code=_code_folder(package), read_blob=package.read, dedicated=False
        )
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def __call__(self, record: Any) -> Any:
        """Return the result for one record."""
        return self._live(record)

    async def acall(self, record: Any) -> Any:
        """Return the result for one record; a plain function runs in a thread."""
        if self._live.is_async:
            return await self._live.acall(record)
        return await asyncio.wrap_future(self.submit(record))

    def submit(self, record: Any) -> Future[Any]:
        """Start a call in a thread."""
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(thread_name_prefix=f"mfimage-{self._live.name}")
            return self._pool.submit(self._live, record)

    def map(self, records: Iterable[Any], *, batch_size: int, on_error: str) -> Iterator[Any]:
        """Yield results in order; records of a batch function go ``batch_size`` at a time."""
        iterator = iter(records)
        size = batch_size if self._live.batch else 1
        while chunk := list(itertools.islice(iterator, size)):
            for result in self._live.results(chunk):
                if isinstance(result, Exception) and on_error == "raise":
                    raise result
                yield result

    def close(self) -> None:
        """End the threads."""
        with self._lock:
            if self._pool is not None:
                self._pool.shutdown()
                self._pool = None
        self._live.close()


def cache_folder() -> Path:
    """Return the user's cache folder: ``MFIMAGE_CACHE``, else ``mfimage`` in the usual place."""
    chosen = os.environ.get("MFIMAGE_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mfimage"


def _code_folder(package: Package) -> Path:
    """Return a folder that holds the package's code, unpacking it when it is not there yet."""
    code = package.spec.code
    folder = cache_folder() / "code" / code.hex
    if folder.is_dir():
        return folder
    data = package.read(code)
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=".tmp-", dir=folder.parent))
    try:
        extract(data, fresh / "code", where=f"the code of {package.reference}")
        try:
            (fresh / "code").rename(folder)
        except OSError:
            if not folder.is_dir():  # somebody else was faster: the same content
                raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder
