"""A file of an image or of a build context: its content as bytes or path, mode, digest."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mfimage.files import EPOCH, chunks_of, sha256_hex


@dataclass(frozen=True, kw_only=True)
class ContextFile:
    """One regular file of a build context."""

    path: str  # in the context or image, with /
    content: bytes | Path
    mode: int = 0o644
    digest: str | None = None  # SHA-256 in hex, if known; what is written is verified against it

    def chunks(self) -> Iterator[bytes]:
        """Read the content."""
        content = self.content
        with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
            yield from chunks_of(file)

    def size(self) -> int:
        """Return the size of the content in bytes."""
        if isinstance(self.content, bytes):
            return len(self.content)
        return self.content.stat().st_size

    def mtime_ns(self) -> int:
        """Return the file's time in a build context, in nanoseconds: always the same second."""
        # BuildKit takes a file for unchanged if its name, mode, size and time are. But equal inputs
        # must give equal images, so the second is fixed. Image layers hold whole seconds only,
        # which leaves the nanoseconds free to stand for the content.
        digest = self.digest or sha256_hex(self.chunks())
        return EPOCH * 10**9 + int(digest[-16:], 16) % 10**9
