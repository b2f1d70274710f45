"""Scans what a builder made for credentials, before anything of it leaves.

Files that mfimage puts into layers are looked at as they went in. The layer of distributions is
where a build's secrets were used: it is read back, when there are values to look for and it was
not found clean of them before. That is remembered without the values: by a keyed hash whose key
stays on this machine.
"""

from __future__ import annotations

import contextlib
import hmac
import secrets as random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from mfimage.image.plan.layers import artifact_files, code_files, runtime_files
from mfimage.image.secrets.scan import CredentialScan
from mfimage.package.storage.cache import cache_folder

if TYPE_CHECKING:
    from mfimage.image.builder import Builder, BuiltImage
    from mfimage.image.plan.layers import BlobPath

_READ_BACK = ("dependencies", "system")
# Raised when more is looked for than before.
_FORMAT = b"1"


def scan_image(
    builder: Builder, image: BuiltImage, blob_path: BlobPath, secrets: Mapping[str, bytes]
) -> None:
    """Look through an image that was just built.

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
    scan, memory = CredentialScan(secrets), ScanMemory(secrets)
    plan = image.plan
    scan.config(builder.info(image))
    scan.files("code", code_files(plan, blob_path))
    clean: list[str] = []
    if scan.has_values:
        scan.files("runtime", runtime_files(plan))
        for layer in plan.artifacts:
            digests = [blob.digest for blob in layer.blobs if not memory.knows(blob.digest)]
            if digests:
                scan.files(f"artifact:{','.join(layer.names)}", artifact_files(layer, blob_path))
                clean += digests
        for built in image.layers:
            if built.name in _READ_BACK and not memory.knows(built.diff_id):
                scan.tar(built.name, cast(BinaryIO, Reader(builder.layer(image, built.name))))
                clean.append(built.diff_id)
    scan.check()
    for name in clean:
        memory.remember(name)


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


class ScanMemory:
    """What was found clean of these values, on this machine."""

    def __init__(self, secrets: Mapping[str, bytes]) -> None:
        self._folder = cache_folder() / "scans"
        self._secrets = secrets

    def knows(self, digest: str) -> bool:
        """Tell whether content was found clean."""
        try:
            return self._path(digest).exists()
        except OSError:
            return False

    def remember(self, digest: str) -> None:
        """Keep that content is clean; a cache that cannot be written is no fault."""
        with contextlib.suppress(OSError):
            self._path(digest).touch(mode=0o600)

    def _path(self, digest: str) -> Path:
        hasher = hmac.new(self._key(), _FORMAT, "sha256")
        for part in (digest.encode(), *(x for pair in sorted(self._pairs()) for x in pair)):
            hasher.update(len(part).to_bytes(8, "big") + part)
        return self._folder / hasher.hexdigest()

    def _pairs(self) -> Iterator[tuple[bytes, bytes]]:
        yield from ((name.encode(), value) for name, value in self._secrets.items())

    def _key(self) -> bytes:
        path = self._folder / "key"
        with contextlib.suppress(FileNotFoundError):
            return path.read_bytes()
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = self._folder / f".key-{random.token_hex(8)}"
        fresh.touch(mode=0o600)
        fresh.write_bytes(random.token_bytes(32))
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(fresh)  # whoever is first
        fresh.unlink()
        return path.read_bytes()
