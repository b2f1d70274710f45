"""Which files an image's layers have, and how large they are: their tars, read once."""

from __future__ import annotations

import hashlib
import posixpath
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import BinaryIO, cast

from mfimage.errors import PackageError
from mfimage.files import chunks_of
from mfimage.image.oci.compression import decompressed, unreadable
from mfimage.image.oci.images import StoredImage, StoredLayer
from mfimage.sizes import format_size

# Of one file that is kept, and of all.
_LARGEST_KEPT = 32 << 20
_MOST_KEPT = 128 << 20
_WHITEOUT = ".wh."
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class LayerFiles:
    """The files of one layer."""

    diff_id: str
    digest: str  # of the stored layer, which may be compressed
    stored: int  # its bytes
    files: Mapping[str, int]  # unpacked bytes by path, without the first slash
    kept: Mapping[str, bytes]  # what some of them hold

    @property
    def size(self) -> int:
        """Unpacked bytes."""
        return sum(self.files.values())


@dataclass(frozen=True, kw_only=True)
class StoredFiles:
    """The files of all layers, lowest first."""

    layers: tuple[LayerFiles, ...]

    @cached_property
    def kept(self) -> Mapping[str, bytes]:
        """What some files hold, by path; a later layer's replaces an earlier one's."""
        return {path: data for layer in self.layers for path, data in layer.kept.items()}

    @property
    def size(self) -> int:
        """Unpacked bytes."""
        return sum(layer.size for layer in self.layers)


class _Hashing:
    """Reads a tar, and hashes what it reads."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hasher = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._hasher.update(data)
        return data

    def digest(self) -> str:
        """Read the rest; return the digest of all."""
        for _ in chunks_of(cast(BinaryIO, self)):
            pass
        return f"sha256:{self._hasher.hexdigest()}"


def read_files(
    stored: StoredImage,
    *,
    keep: Callable[[str], bool],
    known: Sequence[LayerFiles] = (),
    say: Say = lambda _: None,
) -> StoredFiles:
    """Read the headers of all layers, and the content of small files that ``keep`` chooses.

    A layer is read whole, except for those that are ``known`` already, and verified by its digest
    before anything of it is returned.
    """
    layers, before = [], {layer.diff_id: layer for layer in known}
    room = _MOST_KEPT
    for number, layer in enumerate(stored.layers, 1):
        found = before.get(layer.diff_id)
        if found is None:
            say(f"reading layer {number} of {len(stored.layers)}, {format_size(layer.size)}")
            files, kept = _read(layer, keep, room)
            found = LayerFiles(
                diff_id=layer.diff_id,
                digest=layer.digest,
                stored=layer.size,
                files=files,
                kept=kept,
            )
        room -= sum(map(len, found.kept.values()))
        layers.append(found)
    return StoredFiles(layers=tuple(layers))


def read_file(layer: StoredLayer, path: str) -> bytes | None:
    """Return a small file of a layer, which is read whole and verified; None if it has none."""
    wanted = path.lstrip("/")
    return _read(layer, lambda name: name == wanted, _MOST_KEPT)[1].get(wanted)


def _read(
    layer: StoredLayer, keep: Callable[[str], bool], room: int
) -> tuple[dict[str, int], dict[str, bytes]]:
    files: dict[str, int] = {}
    kept: dict[str, bytes] = {}
    try:
        with layer.open() as packed, decompressed(packed) as plain:
            reader = _Hashing(plain)
            with tarfile.open(fileobj=cast(BinaryIO, reader), mode="r|") as tar:
                for member in tar:
                    path = posixpath.normpath(member.name).lstrip("/")
                    if not member.isreg() or posixpath.basename(path).startswith(_WHITEOUT):
                        continue
                    files[path] = member.size
                    if member.size <= min(room, _LARGEST_KEPT) and keep(path):
                        content = tar.extractfile(member)
                        kept[path] = content.read() if content else b""
                        room -= member.size
            found = reader.digest()
    except unreadable() as error:
        raise PackageError(f"the layer {layer.digest} cannot be read: {error}") from None
    if found != layer.diff_id:
        raise PackageError(f"the layer {layer.digest} is damaged: its content is {found}")
    return files, kept
