"""Any tool's lock, made one for a target: wheels that fit, each with its hash."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.utils import parse_wheel_filename

from mfimage.capture.lock import pylock, wheels
from mfimage.capture.lock.indexes import OWN_CONFIGURATION, IndexOptions, without_credentials
from mfimage.capture.lock.platform import Target
from mfimage.capture.lock.pylock import Package, WheelFile
from mfimage.errors import LockError

_BUILDS_AT_ONCE = 2


@dataclass(frozen=True, kw_only=True)
class Lock:
    """A solved environment.

    Attributes
    ----------
    data : bytes
        ``pylock.toml`` for one Python and platform: sorted, without times, local paths or
        credentials; the same packages give the same bytes.
    wheels : mapping of str to Path
        File name -> wheel on this machine, for what is on no index. The lock has it as
        ``wheels/<file name>``. Those that were built for it are deleted with the mapping.
    """

    data: bytes
    wheels: Mapping[str, Path] = field(default_factory=dict)

    @property
    def packages(self) -> list[Package]:
        """What is locked."""
        return pylock.read_lock(self.data)


class _BuiltWheels(dict[str, Path]):
    """Wheels of a lock; what was built for it is deleted with this."""


def settle(
    plain: Mapping[str, Any],
    target: Target,
    *,
    base: Path,
    where: str,
    index: IndexOptions = OWN_CONFIGURATION,
    hashes: Mapping[str, frozenset[str]] = {},
) -> Lock:
    """Make any tool's lock one for a target: wheels that fit, each with its hash.

    Parameters
    ----------
    plain : mapping
        A parsed ``pylock.toml``.
    target : Target
        What it is for.
    base : Path
        Where its relative paths start.
    where : str
        What to call it in messages.
    index : IndexOptions
        Where build requirements come from.
    hashes : mapping of name to frozenset of str
        The only files (sha256) that are to be had of these packages.
    """
    selected = pylock.select_packages(plain, target, where=where)
    built = Path(tempfile.mkdtemp(prefix="mfimage-wheels-"))
    settler = _Settler(target=target, base=base, built=built, index=index, hashes=hashes)
    try:
        with ThreadPoolExecutor(_BUILDS_AT_ONCE) as pool:
            settled = list(pool.map(settler.settle, selected))
    except BaseException:
        shutil.rmtree(built, ignore_errors=True)
        raise
    found = _BuiltWheels(pair for _, local in settled for pair in sorted(local.items()))
    weakref.finalize(found, shutil.rmtree, built, ignore_errors=True)
    data = pylock.write_pylock([package for package, _ in settled], target)
    return Lock(data=data, wheels=found)


@dataclass(frozen=True, kw_only=True)
class _Settler:
    target: Target
    base: Path
    built: Path
    index: IndexOptions
    hashes: Mapping[str, frozenset[str]]

    def settle(self, plain: Mapping[str, Any]) -> tuple[Package, dict[str, Path]]:
        """Return a package, and those of its wheels that are on this machine."""
        tables = [*plain.get("wheels", ()), *filter(None, [plain.get("archive")])]
        fitting = [table for table in tables if self.target.fits(pylock.file_name(table))]
        if not fitting:
            return self._build(plain)
        name, local = plain["name"], {}
        files = []
        for table in fitting:
            path = wheels.local_file(table, self.base)
            if path is None:
                files.append(self._remote(name, table))
            else:
                local[path.name] = path
                digest = wheels.check_hash(name, path, _sha256(table))
                files.append(WheelFile(name=path.name, sha256=digest))
        version = plain.get("version") or str(parse_wheel_filename(files[0].name)[1])
        files = self._allowed(name, version, files)
        index = None if local else pylock.index_of(plain.get("index"))
        return Package(name=name, version=version, files=tuple(files), index=index), local

    def _remote(self, name: str, table: Mapping[str, Any]) -> WheelFile:
        file = pylock.file_name(table)
        digests = _sha256(table)
        if not digests:
            raise LockError(
                f"{name}: the lock has no sha256 of {file}",
                hint="lock it with a tool that writes hashes, as uv does",
            )
        url = without_credentials(table["url"])
        return WheelFile(name=file, sha256=digests[0], url=url)

    def _build(self, plain: Mapping[str, Any]) -> tuple[Package, dict[str, Path]]:
        name, version = plain["name"], plain.get("version", "")
        if not wheels.is_buildable(plain):
            raise LockError(
                f"{name} {version} has no wheel for {self.target}",
                hint="choose a version that has one, or another platform or Python",
            )
        self._allowed(name, version, [_source(table) for table in (plain.get("sdist"),) if table])
        wheel = wheels.build_wheel(
            plain, self.built, base=self.base, target=self.target, index=self.index
        )
        file = WheelFile(name=wheel.name, sha256=wheels.sha256_of_file(wheel))
        version = str(parse_wheel_filename(wheel.name)[1])
        return Package(name=name, version=version, files=(file,)), {wheel.name: wheel}

    def _allowed(self, name: str, version: str, files: list[WheelFile]) -> list[WheelFile]:
        if name not in self.hashes or not files:
            return files
        allowed = [file for file in files if file.sha256 in self.hashes[name]]
        if not allowed:
            raise LockError(
                f"{name} {version}: none of the hashes that are required is that of "
                f"{files[0].name} (sha256 {files[0].sha256})",
                hint=f"require the hash of a file for {self.target}, or none",
            )
        return allowed


def _sha256(table: Mapping[str, Any]) -> list[str]:
    digest = table.get("hashes", {}).get("sha256")
    return [digest] if digest else []


def _source(table: Mapping[str, Any]) -> WheelFile:
    return WheelFile(name=pylock.file_name(table), sha256="".join(_sha256(table)))
