"""Where two layers differ, file by file."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from mfimage.errors import PackageError
from mfimage.files import chunks_of
from mfimage.image.oci.compression import decompressed, unreadable
from mfimage.image.oci.images import StoredLayer

How = Literal["added", "removed", "content", "kind", "mode", "owner", "time"]
_KINDS = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.DIRTYPE: "folder",
    tarfile.SYMTYPE: "link",
    tarfile.LNKTYPE: "hard link",
}


@dataclass(frozen=True, kw_only=True)
class FileChange:
    """One file that is not the same in both."""

    path: str
    how: tuple[How, ...]  # added or removed (in the second of the two), or what of it differs

    @property
    def only_time(self) -> bool:
        """Whether everything that a program reads is the same."""
        return self.how == ("time",)

    def __str__(self) -> str:
        return f"{self.path}: {', '.join(self.how)}"


_File = Mapping[How, object]  # what distinguishes two files, by what is said to differ


def compare_layers(one: StoredLayer, other: StoredLayer) -> tuple[FileChange, ...]:
    """Return how the files of a layer differ from those of another, by path."""
    return tuple(_changes(_files(one), _files(other)))


def _changes(one: Mapping[str, _File], other: Mapping[str, _File]) -> Iterator[FileChange]:
    for path in sorted({**one, **other}):
        before, after = one.get(path), other.get(path)
        if before is None:
            yield FileChange(path=path, how=("added",))
        elif after is None:
            yield FileChange(path=path, how=("removed",))
        elif how := tuple(name for name in before if before[name] != after[name]):
            yield FileChange(path=path, how=how)


def _files(layer: StoredLayer) -> dict[str, _File]:
    try:
        with (
            layer.open() as packed,
            decompressed(packed) as plain,
            tarfile.open(fileobj=plain, mode="r|") as tar,
        ):
            return {
                "/" + member.name.removeprefix("./").strip("/"): _file(tar, member)
                for member in tar
            }
    except unreadable() as error:
        raise PackageError(f"the layer {layer.descriptor.digest} cannot be read: {error}") from None


def _file(tar: tarfile.TarFile, member: tarfile.TarInfo) -> _File:
    hasher = hashlib.sha256(member.linkname.encode())
    if member.isreg() and (content := tar.extractfile(member)) is not None:
        for chunk in chunks_of(content):
            hasher.update(chunk)
    return {
        "kind": _KINDS.get(member.type, "special file"),
        "content": hasher.hexdigest(),
        "mode": member.mode,
        "owner": (member.uid, member.gid),
        "time": member.mtime,
    }
