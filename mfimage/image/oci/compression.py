"""Versions of distributions that decide what a layer is."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any, BinaryIO, cast

from mfimage.errors import OptionError


def installed_version(name: str) -> str | None:
    """Return the version of an installed distribution, None if it is not there.

    A folder's name has it as a rule; importing ``importlib.metadata`` takes longer than a small
    layer.
    """
    for entry in sys.path:
        for found in Path(entry or ".").glob(f"{name}-*.dist-info"):
            return found.name.removesuffix(".dist-info").partition("-")[2]
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


# Compressing layers: one pass hashes what goes in and what comes out.
#
# Equal content gives equal bytes: no time and no name stand in the header, and the compressor gets
# blocks of one size, whatever pieces the content comes in.

GZIP, ZSTD = "gzip", "zstd"
# What goes to the compressor at once: its output depends on that.
_BLOCK = 1 << 20
# Higher ones take twice the time for 2 % of a scikit-learn environment.
_GZIP_LEVEL = 1
_ZSTD_LEVEL = 3
_GZIP_HEADER = 31  # zlib's way to ask for gzip's format


def compressor_id(kind: str) -> str:
    """Return what decides compressed bytes, beside the content: a library, its version, a level.

    Raises
    ------
    OptionError
        When the library is not installed.
    """
    if kind == GZIP:
        return f"isal-{installed_version('isal')}-{_GZIP_LEVEL}"
    found = installed_version("zstandard")
    if found is None:
        raise OptionError(
            "compression: zstd needs a library that is not installed",
            hint="pip install zstandard, or leave --compression out: gzip",
        )
    return f"zstandard-{found}-{_ZSTD_LEVEL}"


def _compressor(kind: str) -> Any:
    if kind == GZIP:
        from isal import isal_zlib

        return isal_zlib.compressobj(_GZIP_LEVEL, isal_zlib.DEFLATED, _GZIP_HEADER)
    import zstandard

    return zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compressobj()


class Compressing:
    """Compresses into a file what is written to it.

    Parameters
    ----------
    file : binary file
        Gets the compressed bytes.
    kind : str
        ``gzip`` or ``zstd``.
    """

    def __init__(self, file: BinaryIO, kind: str) -> None:
        self._file = file
        self._compressor = _compressor(kind)
        self._plain = hashlib.sha256()
        self._packed = hashlib.sha256()
        self._held = bytearray()
        self.size = 0

    def write(self, data: bytes) -> None:
        """Take some bytes."""
        if not self._held and len(data) == _BLOCK:
            self._block(data)
            return
        self._held += data
        while len(self._held) >= _BLOCK:
            self._block(bytes(self._held[:_BLOCK]))
            del self._held[:_BLOCK]

    def finish(self) -> tuple[str, str, int]:
        """Write the rest; return diff id, digest, and compressed size."""
        if self._held:
            self._block(bytes(self._held))
        self._out(self._compressor.flush())
        return _name(self._plain), _name(self._packed), self.size

    def _block(self, block: bytes) -> None:
        self._plain.update(block)
        self._out(self._compressor.compress(block))

    def _out(self, data: bytes) -> None:
        self._packed.update(data)
        self._file.write(data)
        self.size += len(data)


def _name(hasher: Any) -> str:
    return f"sha256:{hasher.hexdigest()}"


def decompressed(file: BinaryIO) -> BinaryIO:
    """Return what reads a layer's tar, whichever way it is compressed.

    Raises
    ------
    OptionError
        When the library is not installed.
    """
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
