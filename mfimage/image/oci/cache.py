"""Layers on this machine, found by their inputs.

::

    layers/inputs/<hex>.json     digest, diff ID and size of the layer that these inputs give
    layers/sha256/<hex>          the layers, bounded and locked as other blobs are

Equal inputs give equal bytes, so a digest does not depend on whether a layer was cached, or with
which compression: a layer that is cached with another one is repacked.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

from mfimage.errors import BuildError
from mfimage.files import chunks_of
from mfimage.image.oci.compression import GZIP, NONE, ZSTD, Compressing, compressor_id, decompressed
from mfimage.image.oci.images import StoredLayer
from mfimage.image.registry.descriptors import Descriptor
from mfimage.package.spec import BlobRef, sha256_digest
from mfimage.package.storage.blobs import BlobCache, Held
from mfimage.package.storage.cache import cache_folder, locked, not_written, remember

# A file with this prefix that is older than `_ABANDONED` seconds was left by a killed process.
_UNFINISHED = ".new-"
_ABANDONED = 24 * 3600
LAYER = "application/vnd.oci.image.layer.v1.tar"
_TYPES = {GZIP: f"{LAYER}+gzip", ZSTD: f"{LAYER}+zstd", NONE: LAYER}
_FORMAT = "1"  # raised when equal inputs are to give other bytes than before


class LayerCache:
    """The layers below the user's cache folder, with one compression: gzip, zstd or none."""

    def __init__(self, compression: str, *, fresh: bool = False) -> None:
        root = cache_folder() / "layers"
        self.compression = compression
        self.compressor = compressor_id(compression)
        self._inputs = root / "inputs"
        self._blobs = BlobCache(root / "sha256")
        self.fresh = fresh
        self._held: list[Held] = []

    def key(self, inputs: Sequence[str]) -> str:
        """Return the hex digits of a digest of a layer's inputs and its compression."""
        text = json.dumps([_FORMAT, self.compressor, *inputs])
        return sha256_digest(text.encode()).removeprefix("sha256:")

    def layer(self, inputs: Sequence[str], chunks: Callable[[], Iterable[bytes]]) -> StoredLayer:
        """Return the layer that these inputs give: cached, or made by one process at a time."""
        # Its `open` raises `BuildError` if a cached layer is damaged.
        if (found := self.find(inputs)) is not None:
            return found
        lock = self._record(inputs).with_suffix(".lock")
        try:
            for folder in (self._inputs, self._blobs.folder):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with locked(lock):
                try:
                    found = self.find(inputs)
                    return found or self._remember(inputs, self._made(inputs, chunks))
                finally:
                    lock.unlink(missing_ok=True)
        except OSError as error:
            raise not_written(self._inputs, error) from error

    def find(self, inputs: Sequence[str]) -> StoredLayer | None:
        """Return the layer that these inputs gave, unless it is absent or to be made anew."""
        if self.fresh:
            return None
        try:
            known = json.loads(self._record(inputs).read_bytes())
            diff_id = known.pop("diff_id")
            descriptor = Descriptor(**known)
            ref = BlobRef(digest=descriptor.digest, size=descriptor.size)
            held = self._blobs.find(ref)
            if held is None:
                return None
            self._held.append(held)
            return StoredLayer(
                descriptor=descriptor, diff_id=diff_id, open=partial(_verified, held, ref),
                cached=True,
            )  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError):
            return None  # absent or damaged: the layer is made anew

    def tar(self, diff_id: str, chunks: Callable[[], Iterable[bytes]]) -> StoredLayer:
        """Return the layer of a tar."""
        return self.layer([f"tar {diff_id}"], chunks)

    def find_tar(self, diff_id: str) -> StoredLayer | None:
        """Return the layer of a tar, if it is cached."""
        return self.find([f"tar {diff_id}"])

    def close(self) -> None:
        """Release all layers."""
        for held in self._held:
            held.release()
        self._held.clear()

    def _record(self, inputs: Sequence[str]) -> Path:
        return self._inputs / f"{self.key(inputs)}.json"

    def _made(self, inputs: Sequence[str], chunks: Callable[[], Iterable[bytes]]) -> StoredLayer:
        other = GZIP if self.compression == NONE else NONE
        cache = LayerCache(other, fresh=self.fresh)
        try:
            if (layer := cache.find(inputs)) is not None:
                with contextlib.suppress(BuildError), layer.open() as file:
                    return self._make(chunks_of(decompressed(file)))
            return self._make(chunks())
        finally:
            cache.close()

    def _make(self, chunks: Iterable[bytes]) -> StoredLayer:
        _sweep(self._blobs.folder)
        with tempfile.NamedTemporaryFile(
            dir=self._blobs.folder, prefix=_UNFINISHED, delete=False
        ) as file:
            path = Path(file.name)
            try:
                with Compressing(file, self.compression) as sink:  # type: ignore[arg-type]
                    for chunk in chunks:
                        sink.write(chunk)
                    diff_id, digest, size = sink.finish()
                file.flush()
                held = self._blobs.adopt(BlobRef(digest=digest, size=size), path)
            except BaseException:
                path.unlink(missing_ok=True)
                raise
        self._held.append(held)
        kind = _TYPES[self.compression]
        descriptor = Descriptor(media_type=kind, digest=digest, size=size)
        return StoredLayer(
            descriptor=descriptor, diff_id=diff_id, open=lambda: held.path.open("rb")
        )

    def _remember(self, inputs: Sequence[str], layer: StoredLayer) -> StoredLayer:
        found = layer.descriptor
        known = {
            "digest": found.digest, "size": found.size, "media_type": found.media_type,
            "diff_id": layer.diff_id,
        }  # fmt: skip
        remember(self._record(inputs), json.dumps(known).encode())
        return layer


def _verified(held: Held, ref: BlobRef) -> BinaryIO:
    """Open a cached layer; remove it and raise `BuildError` if it is damaged."""
    if not held.matches(ref):
        held.discard()
        raise BuildError(
            f"{held.path}: damaged in the cache, and removed",
            hint="build again: the layer is then made anew",
        )
    return held.path.open("rb")


@contextlib.contextmanager
def work_folder() -> Iterator[Path]:
    """Yield a private folder in the cache, as a rule on one file system with uv's: files link."""
    folder = cache_folder() / "layers"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _sweep(folder)
    with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=folder) as text:
        yield Path(text)


def _sweep(folder: Path) -> None:
    for path in folder.glob(f"{_UNFINISHED}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()
