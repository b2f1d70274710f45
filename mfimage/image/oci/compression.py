"""Compresses layers reproducibly, and hashes them in the same pass, in a thread.

The header has neither a time nor a name, and the compressor gets blocks of one size, since its
output depends on how the content is divided.
"""

from __future__ import annotations

import gzip
import hashlib
import sys
import tarfile
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from mfimage.errors import OptionError

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor


def installed_version(name: str) -> str | None:
    """Return the version of an installed distribution; None if it is not installed."""
    # Usually a folder's name has it: importing ``importlib.metadata`` takes longer than making a
    # small layer.
    for entry in sys.path:
        for found in Path(entry or ".").glob(f"{name}-*.dist-info"):
            return found.name.removesuffix(".dist-info").partition("-")[2]
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


GZIP, ZSTD = "gzip", "zstd"
# What an engine gets: it names layers by their uncompressed tars, and would only unpack them again.
NONE = "none"
_BLOCK = 1 << 20
_AHEAD = 8  # blocks that wait for the thread
# Higher levels take twice the time to save 2 % of a scikit-learn environment.
_GZIP_LEVEL = 1
_ZSTD_LEVEL = 3
_GZIP_HEADER = 31  # asks zlib for a gzip header


def compressor_id(kind: str) -> str:
    """Return what compressed bytes depend on beside the content: library, version, level."""
    if kind == NONE:
        return NONE
    if kind == GZIP:
        return f"isal-{installed_version('isal')}-{_GZIP_LEVEL}"
    found = installed_version("zstandard")
    if found is None:
        raise OptionError(
            "compression: zstd needs the zstandard library, which is not installed",
            hint="pip install zstandard, or use gzip: leave --compression out",
        )
    return f"zstandard-{found}-{_ZSTD_LEVEL}"


def _compressor(kind: str) -> Any:
    if kind == GZIP:
        from isal import isal_zlib

        return isal_zlib.compressobj(_GZIP_LEVEL, isal_zlib.DEFLATED, _GZIP_HEADER)
    import zstandard

    return zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compressobj()


class Compressing:
    """Compresses what is written to it into a file."""

    def __init__(self, file: BinaryIO, kind: str) -> None:
        self._file = file
        self._compressor = None if kind == NONE else _compressor(kind)
        self._raw = hashlib.sha256()
        self._packed = self._raw if kind == NONE else hashlib.sha256()
        self._held = bytearray()
        self._worker: ThreadPoolExecutor | None = None
        self._waiting: deque[Future[None]] = deque()
        self.size = 0

    def __enter__(self) -> Compressing:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._worker:
            self._worker.shutdown(cancel_futures=True)

    def write(self, data: bytes) -> None:
        """Compress some bytes."""
        if not self._held and len(data) == _BLOCK:
            self._later(data)
            return
        self._held += data
        while len(self._held) >= _BLOCK:
            self._later(bytes(self._held[:_BLOCK]))
            del self._held[:_BLOCK]

    def finish(self) -> tuple[str, str, int]:
        """Write the rest; return the diff ID, the digest, and the compressed size."""
        while self._waiting:
            self._waiting.popleft().result()
        if self._held:
            self._block(bytes(self._held))
        if self._compressor:
            self._out(self._compressor.flush())
        return _name(self._raw), _name(self._packed), self.size

    def _later(self, block: bytes) -> None:
        if self._worker is None:  # a small layer needs no thread, nor this import
            from concurrent.futures import ThreadPoolExecutor

            self._worker = ThreadPoolExecutor(1, thread_name_prefix="mfimage-compress")
        self._waiting.append(self._worker.submit(self._block, block))
        if len(self._waiting) > _AHEAD:
            self._waiting.popleft().result()

    def _block(self, block: bytes) -> None:
        self._raw.update(block)
        self._out(self._compressor.compress(block) if self._compressor else block)

    def _out(self, data: bytes) -> None:
        if self._compressor:
            self._packed.update(data)
        self._file.write(data)
        self.size += len(data)


def _name(hasher: Any) -> str:
    return f"sha256:{hasher.hexdigest()}"


def decompressed(file: BinaryIO) -> BinaryIO:
    """Return a reader of a layer's tar, whatever its compression."""
    magic = file.read(4)
    file.seek(0)
    if magic[:2] == b"\x1f\x8b":
        from isal import igzip

        untyped: Any = igzip
        return cast(BinaryIO, untyped.IGzipFile(fileobj=file, mode="rb"))
    if magic == b"\x28\xb5\x2f\xfd":
        compressor_id(ZSTD)
        import zstandard

        return cast(BinaryIO, zstandard.ZstdDecompressor().stream_reader(file))
    return file


def unreadable() -> tuple[type[Exception], ...]:
    """Return what reading a damaged layer raises; after ``except``, it is asked for only then."""
    from isal import isal_zlib

    zstandard: Any = sys.modules.get("zstandard")
    others = (zstandard.ZstdError,) if zstandard else ()
    return tarfile.TarError, EOFError, gzip.BadGzipFile, isal_zlib.error, *others
