"""A file of an image or of a build context: its content as bytes or path, mode, digest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mfimage.files import EPOCH, sha256_hex

CHUNK = 1 << 18


@dataclass(frozen=True, kw_only=True)
class ContextFile:
    """One regular file of a build context."""

    path: str  # in the context or image, with /
    content: bytes | Path
    mode: int = 0o644
    digest: str | None = None  # SHA-256 in hex, if known; what is written is verified against it

    def chunks(self) -> Iterator[bytes]:
        """Read the content."""
        if isinstance(self.content, bytes):
            for start in range(0, len(self.content), CHUNK):
                yield self.content[start : start + CHUNK]
            return
        with self.content.open("rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk

    def size(self) -> int:
        """Return the size of the content in bytes."""
        if isinstance(self.content, bytes):
            return len(self.content)
        return self.content.stat().st_size

    def mtime_ns(self) -> int:
        """Return the time of the file in a build context, in nanoseconds: always the same second.

        BuildKit takes a file for unchanged if its name, mode, size and time are. But equal inputs
        must give equal images, so the second is fixed. Image layers hold whole seconds only, which
        leaves the nanoseconds free to stand for the content.
        """
        digest = self.digest or sha256_hex(self.chunks())
        return EPOCH * 10**9 + int(digest[-16:], 16) % 10**9
