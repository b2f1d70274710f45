"""Unpacking a code archive, when its digest has been verified; what could escape is refused."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mfimage.errors import PackageError


def members(data: bytes, *, where: str) -> Iterator[tuple[str, bytes, int]]:
    """Yield name, content and mode of every file in a code archive.

    Parameters
    ----------
    data : bytes
        A ``tar.gz``.
    where : str
        What to call it in errors.

    Raises
    ------
    PackageError
        When it is no archive, or a member would land outside its folder: absolute paths, ``..``,
        links, devices.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
            for member in tar:
                _refuse_escape(member, where)
                file = tar.extractfile(member)
                if file is not None:
                    yield member.name, file.read(), 0o755 if member.mode & 0o100 else 0o644
    except (tarfile.TarError, EOFError, OSError) as error:
        raise PackageError(f"{where}: not a readable archive: {error}") from None


def _refuse_escape(member: tarfile.TarInfo, where: str) -> None:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name:
        raise PackageError(f"{where}: member {member.name!r} would land outside the folder")
    if not (member.isfile() or member.isdir()):
        kind = "a link" if member.islnk() or member.issym() else "a special file"
        raise PackageError(f"{where}: member {member.name!r} is {kind}; only files are allowed")


def extract(data: bytes, folder: Path, *, where: str) -> None:
    """Unpack a code archive into ``folder``, which must not exist; all of it or nothing.

    Raises
    ------
    PackageError
        As ``members``; then nothing is left.
    """
    folder.mkdir(mode=0o700, parents=True)
    try:
        for name, content, mode in members(data, where=where):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            path.chmod(mode)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
