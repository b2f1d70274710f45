"""Writes layers as reproducible tars: sorted, owned by root, with one time for all files."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mfimage.image.plan.files import ContextFile
from mfimage.image.plan.layers import verified

_BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True, kw_only=True)
class Link:
    """A symbolic link in an image; its path has no leading ``/``."""

    path: str
    target: str


@dataclass(frozen=True, kw_only=True)
class Folder:
    """An empty folder in an image."""

    path: str
    mode: int = 0o755


Member = ContextFile | Link | Folder


def layer_tar(members: Iterable[Member], *, epoch: int) -> Iterator[bytes]:
    """Stream a layer, including the folders above its members; ``epoch`` is every file's time."""
    done: set[str] = set()
    for member in sorted(members, key=lambda member: member.path.split("/")):
        folder = member.path if isinstance(member, Folder) else _parent(member.path)
        missing = []
        while folder and folder not in done:
            done.add(folder)
            missing.append(folder)
            folder = _parent(folder)
        for name in reversed(missing):
            own = isinstance(member, Folder) and name == member.path
            mode = member.mode if isinstance(member, Folder) and own else 0o755
            yield _header(f"{name}/", epoch, mode=mode, kind=tarfile.DIRTYPE)
        if isinstance(member, Link):
            yield _header(member.path, epoch, mode=0o777, kind=tarfile.SYMTYPE, link=member.target)
        elif isinstance(member, ContextFile):
            size = member.size()
            yield _header(member.path, epoch, mode=member.mode, size=size)
            yield from verified(member)
            yield b"\0" * (-size % _BLOCK)
    yield b"\0" * (2 * _BLOCK)


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _header(
    name: str,
    epoch: int,
    *,
    mode: int,
    size: int = 0,
    kind: bytes = tarfile.REGTYPE,
    link: str = "",
) -> bytes:
    info = tarfile.TarInfo(name)
    info.mode, info.size, info.mtime, info.type, info.linkname = mode, size, epoch, kind, link
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
