"""Layers as tars: names sorted, one time for all, owner root, nothing of the machine in them."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from mfimage.image.plan.files import ContextFile
from mfimage.image.plan.layers import verified

_BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True, kw_only=True)
class Link:
    """A symbolic link in an image.

    Attributes
    ----------
    path, target : str
        Where it stands, without the ``/`` before it, and where it leads.
    """

    path: str
    target: str


@dataclass(frozen=True, kw_only=True)
class Folder:
    """An empty folder in an image."""

    path: str


Member = ContextFile | Link | Folder


def layer_tar(members: Iterable[Member], *, epoch: int) -> Iterator[bytes]:
    """Stream a layer, the folders above its members included.

    Parameters
    ----------
    members : iterable of ContextFile, Link or Folder
        In any order; paths are those in the image, without the ``/`` before them.
    epoch : int
        The time of everything.

    Raises
    ------
    PackageError
        Before the end, when a file is not what its digest says.
    """
    done: set[str] = set()
    for member in sorted(members, key=lambda member: member.path.split("/")):
        for folder in _folders(member):
            if folder not in done:
                done.add(folder)
                yield _header(f"{folder}/", epoch, mode=0o755, kind=tarfile.DIRTYPE)
        if isinstance(member, Link):
            yield _header(member.path, epoch, mode=0o777, kind=tarfile.SYMTYPE, link=member.target)
        elif isinstance(member, ContextFile):
            size = member.size()
            yield _header(member.path, epoch, mode=member.mode, size=size)
            yield from verified(member)
            yield b"\0" * (-size % _BLOCK)
    yield b"\0" * (2 * _BLOCK)


def _folders(member: Member) -> Iterator[str]:
    path = PurePosixPath(member.path)
    yield from (str(parent) for parent in reversed(path.parents[:-1]))
    if isinstance(member, Folder):
        yield member.path


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
