"""Files that are whole or absent, their SHA-256, and the time that archives give them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

# 1980-01-01, the earliest that a zip archive can hold: of every file that we write into archives.
EPOCH = 315_532_800
CHUNK = 1 << 20
# How names of files begin that are not whole yet.
UNFINISHED = ".tmp-"


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
            _sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def chunks_of(file: BinaryIO) -> Iterator[bytes]:
    """Yield what a file holds from here on, at most 1 MiB at once."""
    while chunk := file.read(CHUNK):
        yield chunk


def sha256_hex(chunks: Iterable[bytes]) -> str:
    """Return the SHA-256 of chunks of bytes, in hex."""
    hasher = hashlib.sha256()
    for chunk in chunks:
        hasher.update(chunk)
    return hasher.hexdigest()
