"""Scans what a builder made for credentials, before anything of it leaves.

Files that mfimage puts into layers are looked at as they went in. The layer of distributions is
where a build's secrets were used: it is read back when there are values to look for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, BinaryIO, cast

from mfimage.image.plan.layers import artifact_files, code_files, runtime_files
from mfimage.image.secrets.scan import CredentialScan

if TYPE_CHECKING:
    from mfimage.image.builder import Builder, BuiltImage
    from mfimage.image.plan.layers import BlobPath

_READ_BACK = ("dependencies", "system")


def scan_image(
    builder: Builder, image: BuiltImage, blob_path: BlobPath, secrets: Mapping[str, bytes]
) -> None:
    """Scan an image that was just built.

    Parameters
    ----------
    builder : Builder
        What built it.
    image : BuiltImage
        What it built.
    blob_path : callable
        Returns where a blob is.
    secrets : mapping of str to bytes
        What the build was given, by id.

    Raises
    ------
    BuildError
        Naming the places and kinds of what was found, and no value.
    """
    scan, plan = CredentialScan(secrets), image.plan
    scan.config(builder.info(image))
    scan.files("code", code_files(plan, blob_path))
    if scan.has_values:
        scan.files("runtime", runtime_files(plan))
        for layer in plan.artifacts:
            scan.files(f"artifact:{','.join(layer.names)}", artifact_files(layer, blob_path))
        for built in image.layers:
            if built.name in _READ_BACK and not built.shared:
                scan.tar(built.name, cast(BinaryIO, Reader(builder.layer(image, built.name))))
    scan.check()


class Reader:
    """Reads from an iterator of bytes."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._held = b""

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes; fewer at the end only."""
        parts, missing = [self._held], size - len(self._held)
        while missing > 0 and (chunk := next(self._chunks, b"")):
            parts.append(chunk)
            missing -= len(chunk)
        data = b"".join(parts)
        self._held = data[size:]
        return data[:size]
