"""A lock for one platform, from any tool's: wheels that fit, each with its hash.

What is on no index, or has no wheel there, is built from its source, to the same bytes every time.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import weakref
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from packaging.utils import parse_wheel_filename

from mfimage.capture.lock import pylock
from mfimage.capture.lock.history import give_history
from mfimage.capture.lock.indexes import OWN_CONFIGURATION, IndexOptions, without_credentials
from mfimage.capture.lock.notes import Note
from mfimage.capture.lock.platform import Platform
from mfimage.capture.lock.pylock import LockedPackage, WheelFile, file_name
from mfimage.capture.lock.uv import build_directory, build_requirement
from mfimage.errors import LockError
from mfimage.files import EPOCH, chunks_of, sha256_hex

_BUILDS_AT_ONCE = 2


@dataclass(frozen=True, kw_only=True)
class Lock:
    """A solved environment."""

    # ``pylock.toml`` for one Python and platform: sorted, without times, local paths or
    # credentials; the same packages give the same bytes.
    data: bytes
    # File name -> wheel on this machine, for packages that are on no index: ``wheels/<file name>``
    # in the lock. Wheels built for the lock are deleted with the mapping.
    wheels: Mapping[str, Path] = field(default_factory=dict)
    notes: Mapping[str, Note] = field(default_factory=dict)

    @property
    def packages(self) -> list[LockedPackage]:
        """The locked packages."""
        return pylock.read_lock(self.data)

    def with_notes(self, notes: Mapping[str, Note], platform: Platform) -> Lock:
        """Return the same lock with notes; it names the index of each package that has one."""
        packages = self.packages
        for i, each in enumerate(packages):
            if each.name in notes and not (each.is_local or each.index):
                packages[i] = replace(each, index=notes[each.name].index)
        return replace(self, data=pylock.write_pylock(packages, platform), notes=notes)


class _BuiltWheels(dict[str, Path]):
    """Wheels of a lock; those built for it are deleted with this."""


def settle(
    parsed: Mapping[str, Any],
    platform: Platform,
    *,
    base: Path,
    where: str,
    index: IndexOptions = OWN_CONFIGURATION,
    hashes: Mapping[str, frozenset[str]] = {},  # of a package: the only files that may be used
) -> Lock:
    """Turn any tool's lock, whose relative paths start at ``base``, into one for a platform."""
    selected = pylock.select_packages(parsed, platform, where=where)
    built = Path(tempfile.mkdtemp(prefix="mfimage-wheels-"))
    settler = _Settler(platform=platform, base=base, built=built, index=index, hashes=hashes)
    try:
        with ThreadPoolExecutor(_BUILDS_AT_ONCE) as pool:
            settled = list(pool.map(settler.settle, selected))
    except BaseException:
        shutil.rmtree(built, ignore_errors=True)
        raise
    found = _BuiltWheels(pair for _, local in settled for pair in sorted(local.items()))
    weakref.finalize(found, shutil.rmtree, built, ignore_errors=True)
    data = pylock.write_pylock([package for package, _ in settled], platform)
    return Lock(data=data, wheels=found)


@dataclass(frozen=True, kw_only=True)
class _Settler:
    platform: Platform
    base: Path
    built: Path
    index: IndexOptions
    hashes: Mapping[str, frozenset[str]]

    def settle(self, package: Mapping[str, Any]) -> tuple[LockedPackage, dict[str, Path]]:
        """Return a package, and its wheels that are on this machine."""
        tables = [*package.get("wheels", ()), *filter(None, [package.get("archive")])]
        fitting = [table for table in tables if self.platform.fits(file_name(table))]
        if not fitting:
            return self._build(package)
        name, local, files = package["name"], {}, []
        for table in fitting:
            path = _local_file(table, self.base)
            if path is None:
                files.append(_remote_file(name, table))
            else:
                local[path.name] = path
                files.append(WheelFile(name=path.name, sha256=_checked_hash(name, path, table)))
        version = package.get("version") or str(parse_wheel_filename(files[0].name)[1])
        files = self._allowed(name, version, files)
        index = None if local else pylock.index_of(package.get("index"))
        return LockedPackage(name=name, version=version, files=tuple(files), index=index), local

    def _build(self, package: Mapping[str, Any]) -> tuple[LockedPackage, dict[str, Path]]:
        name, version = package["name"], package.get("version", "")
        if not any(package.get(kind) for kind in _SOURCES):
            hint = "choose a version that has one, or another platform or Python"
            raise LockError(f"{name} {version} has no wheel for {self.platform}", hint=hint)
        if sdist := package.get("sdist"):
            source = WheelFile(name=file_name(sdist), sha256=_sha256(sdist) or "")
            self._allowed(name, version, [source])
        with tempfile.TemporaryDirectory(prefix="mfimage-build-") as work:
            wheel = _repack(self._build_wheel(package, Path(work)), self.built)
        file = WheelFile(name=wheel.name, sha256=_sha256_of_file(wheel))
        version = str(parse_wheel_filename(wheel.name)[1])
        return LockedPackage(name=name, version=version, files=(file,)), {wheel.name: wheel}

    def _build_wheel(self, package: Mapping[str, Any], work: Path) -> Path:
        name, platform = package["name"], self.platform
        if directory := package.get("directory"):
            path = self.base / directory["path"] / directory.get("subdirectory", "")
            source = Path(os.path.abspath(path))  # noqa: PTH100
            copy = _copy_source(name, source, work / "tree")
            try:
                built = build_directory(copy, work / "out", platform=platform, index=self.index)
            except LockError as error:
                message = error.message.replace(str(copy), str(source))
                raise LockError(message, hint=error.hint) from None
        else:
            requirement = f"{name} @ {_source_url(package, self.base)}"
            built = build_requirement(name, requirement, work, platform=platform, index=self.index)
        if not platform.fits(built.name):
            misfit = f"{built.name}, which does not fit {platform}"
            hint = f"build it on {platform}, and name the wheel in a requirements file"
            raise LockError(f"{name} is on no index and was built as {misfit}", hint=hint)
        return built

    def _allowed(self, name: str, version: str, files: list[WheelFile]) -> list[WheelFile]:
        if name not in self.hashes or not files:
            return files
        allowed = [file for file in files if file.sha256 in self.hashes[name]]
        if not allowed:
            raise LockError(
                f"{name} {version}: none of the hashes that are required is that of "
                f"{files[0].name} (sha256 {files[0].sha256})",
                hint=f"require the hash of a file for {self.platform}, or none",
            )
        return allowed


def _sha256(table: Mapping[str, Any]) -> str | None:
    digest: str | None = table.get("hashes", {}).get("sha256")
    return digest


def _remote_file(name: str, table: Mapping[str, Any]) -> WheelFile:
    file, digest = file_name(table), _sha256(table)
    if not digest:
        message = f"{name}: the lock has no sha256 of {file}"
        raise LockError(message, hint="lock it with a tool that writes hashes, as uv does")
    return WheelFile(name=file, sha256=digest, url=without_credentials(table["url"]))


# Wheels built from source.

_SOURCES = ("directory", "vcs", "archive", "sdist")
_MAX_SOURCE = 1 << 30
_NEVER = {"__pycache__", "node_modules", ".git", ".hg", ".tox", ".nox", ".metaflow", ".mfimage"}
_CACHES = {".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis"}


def _local_file(table: Mapping[str, Any], base: Path) -> Path | None:
    """Return the file on this machine that a ``wheels`` or ``archive`` table names, if any."""
    if table.get("path"):
        return Path(base, table["path"])
    url = urlsplit(table.get("url", ""))
    return Path(unquote(url.path)) if url.scheme == "file" else None


def _source_url(package: Mapping[str, Any], base: Path) -> str:
    """Return the URL of a source, with its hash, as a requirement names it."""
    name = package["name"]
    if vcs := package.get("vcs"):
        if vcs.get("type") != "git":
            raise LockError(f"{name} comes from {vcs.get('type')!r}; only git is supported")
        place = vcs.get("url") or (base / vcs["path"]).resolve().as_uri()
        part = f"#subdirectory={vcs['subdirectory']}" if vcs.get("subdirectory") else ""
        return f"git+{place}@{vcs['commit-id']}{part}"
    table = package.get("archive") or package["sdist"]
    file, digest = _local_file(table, base), _sha256(table)
    if not digest:
        raise LockError(
            f"{name} has no sha256 of {file_name(table)} in the lock, and would be built "
            "unverified",
            hint="lock it with a tool that writes hashes, as uv does",
        )
    part = f"#subdirectory={table['subdirectory']}" if table.get("subdirectory") else ""
    return f"{file.resolve().as_uri() if file else table['url']}{part} --hash=sha256:{digest}"


def _copy_source(name: str, source: Path, work: Path) -> Path:
    """Copy a source tree: a build in place leaves folders behind, which the next one takes in."""
    if not source.is_dir():
        message = f"{name} was installed from {source}, which is gone"
        raise LockError(message, hint=f"install {name} again, from a folder or an index")
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

    top = next((each for each in (source, *source.parents) if (each / ".git").exists()), None)
    copy = work / source.relative_to(top or source.parent)
    shutil.copytree(source, copy, ignore=ignored, ignore_dangling_symlinks=True)
    # Some build backends read what is above: a version in the repository's history, a README, a
    # neighbour that is required by path.
    links = list[Path]()
    above, folder = source, copy
    while folder != work:
        above, folder = above.parent, folder.parent
        with suppress(PermissionError):
            for entry in above.iterdir():
                link = folder / entry.name
                if entry.name.startswith(".git") and entry.is_file():
                    shutil.copyfile(entry, link)  # git reads no links
                elif entry.name not in _NEVER and not link.exists():
                    link.symlink_to(entry)
                    links.append(link)
    if top:
        give_history(work, top, links)
    return copy


def _is_left_out(path: Path, *, top: Path) -> bool:
    if path.name in _NEVER or path.name in _CACHES or path.suffix == ".egg-info":
        return True
    if path.name == "build" and path.parent == top:
        return (path / "lib").is_dir() or any(path.glob("bdist.*")) or any(path.glob("lib.*"))
    return (path / "pyvenv.cfg").exists() or (path / "conda-meta").is_dir()


def _repack(wheel: Path, out: Path) -> Path:
    """Rewrite a wheel: members sorted, without times, owners, or the file modes of a build."""
    repacked = out / wheel.name
    with (
        zipfile.ZipFile(wheel) as read,
        zipfile.ZipFile(repacked, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as write,
    ):
        members = [member for member in read.infolist() if not member.is_dir()]
        # RECORD is last.
        members.sort(key=lambda each: (each.filename.endswith(".dist-info/RECORD"), each.filename))
        for member in members:
            info = zipfile.ZipInfo(member.filename, time.gmtime(EPOCH)[:6])
            executable = member.external_attr >> 16 & 0o100
            info.external_attr = (0o100755 if executable else 0o100644) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            info.create_system = 3
            write.writestr(info, read.read(member))
    return repacked


def _sha256_of_file(file: Path) -> str:
    with file.open("rb") as opened:
        return sha256_hex(chunks_of(opened))


def _checked_hash(name: str, file: Path, table: Mapping[str, Any]) -> str:
    """Return a file's digest; it must be the one that the lock has, if it has one."""
    if not file.is_file():
        raise LockError(f"{name} is locked as {file}, which does not exist")
    found, expected = _sha256_of_file(file), _sha256(table)
    if expected and found != expected:
        raise LockError(
            f"{file.name} of {name} is not the file that was locked: "
            f"expected sha256 {expected}, got {found}"
        )
    return found
