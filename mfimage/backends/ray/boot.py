"""The actor that Ray runs on a node; it needs nothing there but Ray.

This module is pickled by value. It imports mfimage only after making it importable: the node's own
source if that is the same, else the caller's.
"""

from __future__ import annotations

import hashlib
import os
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

Luggage = tuple[Any, "dict[str, Any] | None"]
# What precedes a payload: the frame's kind; and how many records the function gets at a time, or
# how many microseconds it took. (Not a struct.Struct, which cannot be pickled.)
HEAD = "<BI"
HEAD_SIZE = struct.calcsize(HEAD)


class FunctionHost:
    """One function in one process of a node; ``digest`` is that of mfimage's source."""

    def __init__(self, name: str, config: bytes, digest: str) -> None:
        # The function's output is a log, not a result.
        os.dup2(2, 1)
        sys.stdout = sys.stderr
        self._name = name
        self._config = config
        self._digest = digest
        self._node: Any = None

    def __repr__(self) -> str:
        # Ray's prefix for each line that the function prints.
        return self._name

    def load(self, luggage: Luggage) -> bytes:
        """Load the function; return the outcome as JSON."""
        # References to the files of mfimage's source, and to the package's blobs by hexadecimal
        # digest, or None. They are fetched only if they are missing here.
        source, blobs = luggage
        if self._node is None:
            find_source(self._digest, source)
            from mfimage.backends.ray.node import RayNode

            self._node = RayNode(self._config)
        return bytes(self._node.load(blobs))

    def answer(self, *pieces: bytes) -> bytes:
        """Return the reply to a request, which may come in pieces."""
        request = b"".join(pieces) if len(pieces) > 1 else pieces[0]
        kind, size = struct.unpack_from(HEAD, request)
        kind, micros, payload = self._node.answer(kind, request[HEAD_SIZE:], size)
        return struct.pack(HEAD, kind, micros) + bytes(payload)

    def value(self, record: Any, is_json: bool, luggage: Luggage) -> Any:
        """Return the result for one record, which is JSON or a value, as a value."""
        # Ray may send it to a restarted process, which has loaded nothing.
        if self._node is None or not self._node.is_loaded:
            self.load(luggage)
        return self._node.value(record, is_json=is_json)


def find_source(digest: str, source: Any) -> None:
    """Make mfimage importable: the source installed here if it is the same, else ``source``."""
    if "mfimage" in sys.modules:
        return
    from importlib.machinery import PathFinder

    spec = PathFinder.find_spec("mfimage")
    if spec is not None and spec.origin and source_digest(Path(spec.origin).parents[1]) == digest:
        return
    import ray

    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cache = Path(os.environ.get("MFIMAGE_CACHE") or Path(base) / "mfimage")
    folder = cache / "ray" / "source" / digest
    if not folder.is_dir() or source_digest(folder) != digest:
        _write(ray.get(source), folder, digest)
    sys.path.insert(0, str(folder))


def _write(files: dict[str, bytes], folder: Path, digest: str) -> None:
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Each process has its own temporary folder; the first to finish renames it.
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        fresh = Path(temporary, "fresh")
        if digest_of(files) != digest:
            raise ValueError("mfimage's source does not match its digest")
        for name, content in files.items():
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            (fresh / name).write_bytes(content)
        if folder.is_dir() and source_digest(folder) != digest:  # cleaned in part
            folder.rename(Path(temporary, "old"))
        try:
            fresh.rename(folder)
        except OSError:
            if source_digest(folder) != digest:
                raise


def source_files(root: Path) -> dict[str, bytes]:
    """Return mfimage's source files below a folder, by name."""
    found = [*root.glob("mfimage/**/*.py"), *root.glob("metaflow_extensions/mfimage/**/*.py")]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(found)}


def source_digest(root: Path) -> str:
    """Return the digest of mfimage's source files below a folder."""
    return digest_of(source_files(root))


def digest_of(files: dict[str, bytes]) -> str:
    """Return the digest of files."""
    hasher = hashlib.sha256()
    for name, content in files.items():
        hasher.update(f"{name}\0{len(content)}\0".encode() + content)
    return hasher.hexdigest()
