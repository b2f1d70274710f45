"""Compressed layers on this machine, found by what went into them.

::

    layers/inputs/<hex>.json     digest, diff id and size of the layer that these inputs give
    layers/sha256/<hex>          compressed layers; bounded and locked as other blobs are

Equal inputs give equal bytes, so it does not matter for a digest whether a layer was found here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mfimage.errors import BuildError
from mfimage.image.oci.compression import ZSTD, Compressing, compressor_id
from mfimage.package.spec import BlobRef, sha256_digest
from mfimage.package.storage.blobs import BlobCache, Held
from mfimage.package.storage.cache import cache_folder, locked, not_written, remember

# What begins like this and is older than that many seconds was left by a process that was killed.
UNFINISHED = ".new-"
_ABANDONED = 24 * 3600
LAYER = "application/vnd.oci.image.layer.v1.tar"
# Raised when equal inputs shall give other bytes than before.
_FORMAT = "1"


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A compressed layer on this machine.

    Attributes
    ----------
    digest, diff_id : str
        ``sha256:<hex>`` of the compressed tar, and of the tar.
    size : int
        Compressed bytes.
    media_type : str
        Of the compressed tar.
    held : Held
        Its file, which stays as long as this is not released.
    cached : bool
        Whether it was found.
    """

    digest: str
    diff_id: str
    size: int
    media_type: str
    held: Held
    cached: bool

    def open(self) -> BinaryIO:
        """Open the compressed tar.

        Raises
        ------
        BuildError
            When it is damaged; then it is removed.
        """
        if self.cached and not self.held.matches(BlobRef(digest=self.digest, size=self.size)):
            self.held.discard()
            raise BuildError(
                f"{self.held.path}: damaged in the cache, and removed",
                hint="build again: it will be made anew",
            )
        return self.held.path.open("rb")


class LayerCache:
    """The layers below the user's cache folder.

    Parameters
    ----------
    compression : str
        One of ``gzip``, ``zstd``.
    fresh : bool
        Make every layer anew.
    """

    def __init__(self, compression: str, *, fresh: bool = False) -> None:
        root = cache_folder() / "layers"
        self.compression = compression
        self.compressor = compressor_id(compression)
        self._inputs = root / "inputs"
        self._blobs = BlobCache(root / "sha256")
        self.fresh = fresh
        self._held: list[Held] = []

    def key(self, inputs: Sequence[str]) -> str:
        """Return the hex digits that stand for a layer's inputs and how it is compressed."""
        text = json.dumps([_FORMAT, self.compressor, *inputs])
        return sha256_digest(text.encode()).removeprefix("sha256:")

    def layer(self, inputs: Sequence[str], chunks: Callable[[], Iterable[bytes]]) -> Layer:
        """Return the layer that these inputs give, made by one process at a time.

        Parameters
        ----------
        inputs : sequence of str
            What decides its content.
        chunks : callable
            Yields the tar, when it is needed.

        Raises
        ------
        StorageError
            When the cache cannot be written.
        """
        if (found := self.find(inputs)) is not None:
            return found
        record = self._record(inputs)
        try:
            for folder in (self._inputs, self._blobs.folder):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = record.with_suffix(".lock")
            with locked(lock):
                try:
                    return self.find(inputs) or self._make(record, chunks)
                finally:
                    lock.unlink(missing_ok=True)
        except OSError as error:
            raise not_written(self._inputs, error) from error

    def _record(self, inputs: Sequence[str]) -> Path:
        return self._inputs / f"{self.key(inputs)}.json"

    def find(self, inputs: Sequence[str]) -> Layer | None:
        """Return the layer that these inputs gave; None if it is not here, or to be made anew."""
        if self.fresh:
            return None
        try:
            known = json.loads(self._record(inputs).read_bytes())
            held = self._blobs.find(BlobRef(digest=known["digest"], size=known["size"]))
            if held is None:
                return None
            self._held.append(held)
            return Layer(**known, held=held, cached=True)
        except (OSError, ValueError, KeyError, TypeError):
            return None  # absent, or damaged: it is made anew

    def _make(self, record: Path, chunks: Callable[[], Iterable[bytes]]) -> Layer:
        sweep(self._blobs.folder)
        suffix = "zstd" if self.compression == ZSTD else "gzip"
        with tempfile.NamedTemporaryFile(
            dir=self._blobs.folder, prefix=UNFINISHED, delete=False
        ) as f:
            path = Path(f.name)
            try:
                sink = Compressing(f, self.compression)  # type: ignore[arg-type]
                for chunk in chunks():
                    sink.write(chunk)
                diff_id, digest, size = sink.finish()
                f.flush()
                held = self._blobs.adopt(BlobRef(digest=digest, size=size), path)
            except BaseException:
                path.unlink(missing_ok=True)
                raise
        self._held.append(held)
        layer = Layer(
            digest=digest, diff_id=diff_id, size=size, media_type=f"{LAYER}+{suffix}",
            held=held, cached=False,
        )  # fmt: skip
        _record(record, layer)
        return layer

    def close(self) -> None:
        """Let go of all layers."""
        for held in self._held:
            held.release()
        self._held.clear()


def sweep(folder: Path) -> None:
    """Remove what killed processes left unfinished."""
    for path in folder.glob(f"{UNFINISHED}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()


def _record(path: Path, layer: Layer) -> None:
    known = {
        name.name: getattr(layer, name.name)
        for name in dataclasses.fields(layer)
        if name.name not in ("held", "cached")
    }
    remember(path, json.dumps(known).encode())
