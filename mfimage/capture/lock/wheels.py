"""Wheels of what is on no index: built from its source, the same bytes every time."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mfimage.capture.lock.indexes import IndexOptions
from mfimage.capture.lock.platform import Target
from mfimage.capture.lock.pylock import file_name
from mfimage.capture.lock.uv import build_directory, build_requirement
from mfimage.errors import LockError
from mfimage.files import EPOCH, chunks_of, sha256_hex

_MAX_SOURCE = 1 << 30
_NEVER = {"__pycache__", "node_modules", ".git", ".hg", ".tox", ".nox", ".metaflow", ".mfimage"}
_CACHES = {".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis"}


def is_buildable(package: Mapping[str, Any]) -> bool:
    """Tell whether a locked package names a source that a wheel can be built from."""
    return any(package.get(kind) for kind in ("directory", "vcs", "archive", "sdist"))


def build_wheel(
    package: Mapping[str, Any], out: Path, *, base: Path, target: Target, index: IndexOptions
) -> Path:
    """Build the wheel of a locked package that has none.

    Parameters
    ----------
    package : mapping
        A package of a ``pylock.toml`` with ``directory``, ``vcs``, ``archive`` or ``sdist``.
    out : Path
        Where the wheel goes.
    base : Path
        Where the lock's relative paths start.
    target : Target
        What the wheel has to fit.
    index : IndexOptions
        Where what it is built with comes from.

    Raises
    ------
    LockError
        When the source is gone, or cannot be built, or gives a wheel that does not fit.
    """
    name = package["name"]
    with tempfile.TemporaryDirectory(prefix="mfimage-build-") as folder:
        work = Path(folder)
        if package.get("directory"):
            built = _build_folder(
                name, _folder(package["directory"], base), work, target=target, index=index
            )
        else:
            requirement = f"{name} @ {_source_url(package, base)}"
            built = build_requirement(name, requirement, work, target=target, index=index)
        if not target.fits(built.name):
            raise LockError(
                f"{name} is on no index and was built as {built.name}, which does not fit {target}",
                hint=f"build it on {target}, and name the wheel in a requirements file",
            )
        return repack(built, out)


def _build_folder(
    name: str, source: Path, work: Path, *, target: Target, index: IndexOptions
) -> Path:
    copy = _copy_source(name, source, work / "source")
    try:
        return build_directory(copy, work / "out", target=target, index=index)
    except LockError as error:
        message = error.message.replace(str(copy), str(source))
        raise LockError(message, hint=error.hint) from None


def local_file(table: Mapping[str, Any], base: Path) -> Path | None:
    """Return the file on this machine that a ``wheels`` or ``archive`` table means, if any."""
    if table.get("path"):
        return Path(base, table["path"])
    url = urlsplit(table.get("url", ""))
    return Path(unquote(url.path)) if url.scheme == "file" else None


def _folder(table: Mapping[str, Any], base: Path) -> Path:
    return Path(os.path.abspath(base / table["path"] / table.get("subdirectory", "")))  # noqa: PTH100


def _source_url(package: Mapping[str, Any], base: Path) -> str:
    """Return the URL of a source, with its hash, as a requirement names it."""
    vcs = package.get("vcs")
    if vcs:
        if vcs.get("type") != "git":
            raise LockError(f"{package['name']} comes from {vcs.get('type')!r}; only git is known")
        place = vcs.get("url") or (base / vcs["path"]).resolve().as_uri()
        part = f"#subdirectory={vcs['subdirectory']}" if vcs.get("subdirectory") else ""
        return f"git+{place}@{vcs['commit-id']}{part}"
    table = package.get("archive") or package["sdist"]
    file = local_file(table, base)
    digest = table.get("hashes", {}).get("sha256")
    if not digest:
        raise LockError(
            f"{package['name']} has no sha256 of {file_name(table)}, and would be built unseen",
            hint="lock it with a tool that writes hashes, as uv does",
        )
    part = f"#subdirectory={table['subdirectory']}" if table.get("subdirectory") else ""
    return f"{file.resolve().as_uri() if file else table['url']}{part} --hash=sha256:{digest}"


def _copy_source(name: str, source: Path, copy: Path) -> Path:
    """Copy a source tree.

    Building in place leaves folders behind, and takes into the wheel what an earlier build left.
    """
    if not source.is_dir():
        raise LockError(
            f"{name} was installed from {source}, which is gone",
            hint=f"install {name} again, from a folder or an index",
        )
    size = 0

    def ignored(folder: str, names: list[str]) -> set[str]:
        nonlocal size
        left_out = {each for each in names if _is_left_out(Path(folder, each), top=source)}
        files = (Path(folder, each) for each in names if each not in left_out)
        size += sum(file.stat().st_size for file in files if file.is_file())
        if size > _MAX_SOURCE:
            raise LockError(
                f"{name} is built from {source}, which holds more than {_MAX_SOURCE >> 30} GiB",
                hint="build its wheel yourself, and name the file in a requirements file",
            )
        return left_out

    shutil.copytree(source, copy, ignore=ignored, ignore_dangling_symlinks=True)
    _link_git(source, copy)
    return copy


def _is_left_out(path: Path, *, top: Path) -> bool:
    if path.name in _NEVER or path.name in _CACHES or path.suffix == ".egg-info":
        return True
    if path.name == "build" and path.parent == top:
        return (path / "lib").is_dir() or any(path.glob("bdist.*")) or any(path.glob("lib.*"))
    return (path / "pyvenv.cfg").exists() or (path / "conda-meta").is_dir()


def _link_git(source: Path, copy: Path) -> None:
    """Let the copy know its history: some build backends take the version from it."""
    git = source / ".git"
    if git.is_dir():
        (copy / ".git").write_text(f"gitdir: {git.resolve()}\n")
    elif git.is_file():
        place = git.read_text().partition("gitdir:")[2].strip()
        (copy / ".git").write_text(f"gitdir: {(source / place).resolve()}\n")


def repack(wheel: Path, out: Path) -> Path:
    """Write a wheel anew: members sorted, without times, owners, or a build's file modes."""
    target = out / wheel.name
    with (
        zipfile.ZipFile(wheel) as read,
        zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as write,
    ):
        for member in sorted(read.infolist(), key=lambda each: _record_last(each.filename)):
            if member.is_dir():
                continue
            info = zipfile.ZipInfo(member.filename, time.gmtime(EPOCH)[:6])
            executable = member.external_attr >> 16 & 0o100
            info.external_attr = (0o100755 if executable else 0o100644) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            info.create_system = 3
            write.writestr(info, read.read(member))
    return target


def _record_last(name: str) -> tuple[bool, str]:
    return name.endswith(".dist-info/RECORD"), name


def sha256_of_file(file: Path) -> str:
    """Return a file's SHA-256, in hex."""
    with file.open("rb") as opened:
        return sha256_hex(chunks_of(opened))


def check_hash(name: str, file: Path, hashes: Iterable[str]) -> str:
    """Return a file's digest; it must be one of ``hashes``, if there are any."""
    if not file.is_file():
        raise LockError(f"{name} is locked as {file}, which is not there")
    found, expected = sha256_of_file(file), list(hashes)
    if expected and found not in expected:
        raise LockError(
            f"{file.name} of {name} is not the file that was locked: "
            f"expected sha256 {expected[0]}, got {found}"
        )
    return found
