"""Files that are whole or absent, their SHA-256, and the time that archives give them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, BinaryIO

# 1980-01-01, the earliest that a zip archive can hold: of every file that we write into archives.
EPOCH = 315_532_800
CHUNK = 1 << 20
# How names of files begin that are not whole yet.
UNFINISHED = ".tmp-"
# How the Dockerfile of a rendered folder begins.
MARKER = "# Made by mfimage "


@contextlib.contextmanager
def whole_file(path: Path, *, durable: bool = False) -> Iterator[BinaryIO]:
    """Open what replaces the file at ``path`` when the block ends without an exception.

    A ``durable`` file outlives a loss of power from then on.
    """
    fresh = path.with_name(f"{UNFINISHED}{uuid.uuid4().hex}")
    try:
        with fresh.open("xb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        fresh.replace(path)
        if durable:
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)


def chunks_of(file: IO[bytes]) -> Iterator[bytes]:
    """Yield what a file holds from here on, at most 1 MiB at once."""
    while chunk := file.read(CHUNK):
        yield chunk


def verified_chunks(
    chunks: Iterable[bytes], hexdigest: str, damaged: Callable[[], Exception]
) -> Iterator[bytes]:
    """Yield chunks, the last one after all were verified; raise ``damaged()`` instead of it."""
    hasher = hashlib.sha256()
    held = b""
    for chunk in chunks:
        if held:
            yield held
        hasher.update(chunk)
        held = chunk
    if hasher.hexdigest() != hexdigest:
        raise damaged()
    yield held


def sha256_hex(chunks: Iterable[bytes]) -> str:
    """Return the SHA-256 of chunks of bytes, in hex."""
    hasher = hashlib.sha256()
    for chunk in chunks:
        hasher.update(chunk)
    return hasher.hexdigest()


def is_rendered(folder: Path) -> bool:
    """Return whether ``mfimage render`` wrote a folder."""
    with contextlib.suppress(OSError), (folder / "Dockerfile").open("rb") as file:
        return file.read(len(MARKER)) == MARKER.encode()
    return False
