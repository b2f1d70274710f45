"""``pylock.toml`` (PEP 751): any that a tool wrote is read, one narrow form of it is written."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name

from mfimage.capture.lock.indexes import without_credentials
from mfimage.capture.lock.platform import Target
from mfimage.capture.lock.uv import NEVER_LOCKED
from mfimage.errors import LockError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

WHEELS = "wheels/"


@dataclass(frozen=True, kw_only=True)
class WheelFile:
    """One wheel of a locked package.

    Attributes
    ----------
    name : str
        File name.
    sha256 : str
        Hex digest.
    url : str or None
        Where to get it; None when it travels in the function package.
    """

    name: str
    sha256: str
    url: str | None = None

    def to_toml(self) -> str:
        """Return the inline table."""
        place = f"url = {_quote(self.url)}" if self.url else f"path = {_quote(WHEELS + self.name)}"
        return f"{{ {place}, hashes = {{ sha256 = {_quote(self.sha256)} }} }}"


@dataclass(frozen=True, kw_only=True)
class Package:
    """One locked package.

    Attributes
    ----------
    name : str
        Canonical name.
    version : str
        Exact version.
    files : tuple of WheelFile
        The wheels that fit the target.
    index : str or None
        The package index that it was found on, as far as that is known.
    """

    name: str
    version: str
    files: tuple[WheelFile, ...]
    index: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether its wheel travels in the function package."""
        return any(file.url is None for file in self.files)


def write_pylock(packages: Iterable[Package], target: Target) -> bytes:
    """Return the bytes of a lock for one target: sorted, and the same for the same packages."""
    lines = [
        'lock-version = "1.0"',
        f"environments = [{_quote(target.environment)}]",
        f"requires-python = {_quote(f'=={target.minor}.*')}",
        'created-by = "mfimage"',
    ]
    for package in sorted(packages, key=lambda each: each.name):
        lines += ["", "[[packages]]", f"name = {_quote(package.name)}"]
        lines += [f"version = {_quote(package.version)}"]
        lines += [f"index = {_quote(package.index)}"] if package.index else []
        lines += ["wheels = ["]
        files = sorted(package.files, key=lambda each: each.name)
        lines += [f"    {file.to_toml()}," for file in files]
        lines += ["]"]
    return ("\n".join(lines) + "\n").encode()


def _quote(text: str) -> str:
    # TOML's basic strings are JSON's, but for the one control character that JSON leaves.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def parse_pylock(text: str, *, where: str) -> dict[str, Any]:
    """Return the plain form of a lock.

    Raises
    ------
    LockError
        When it is no lock, or one of a newer format.
    """
    try:
        plain = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise LockError(f"{where}: not TOML: {error}") from None
    version = plain.get("lock-version")
    if not isinstance(version, str) or not re.match(r"1\.", version):
        raise LockError(f"{where}: lock-version: expected 1.x, got {version!r}")
    if not _are_tables(plain.get("packages", [])):
        raise LockError(f"{where}: packages: expected a list of tables, each with a name")
    return plain


def _are_tables(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(each, dict) and isinstance(each.get("name"), str) for each in value
    )


def select_packages(
    plain: Mapping[str, Any], target: Target, *, where: str
) -> list[Mapping[str, Any]]:
    """Return the plain packages of a lock that are installed on a target, by canonical name.

    Raises
    ------
    LockError
        When the lock is for another Python or platform, or names a package twice.
    """
    _check_python(plain.get("requires-python", ""), target, where)
    environments = plain.get("environments", [])
    if environments and not any(target.holds(marker) for marker in environments):
        raise LockError(
            f"{where} is not for {target}: {' or '.join(environments)}",
            hint="lock it for this platform, or ask for the platform that it is for",
        )
    groups = tuple(plain.get("default-groups", ()))
    selected: dict[str, Mapping[str, Any]] = {}
    for package in plain.get("packages", []):
        name = canonicalize_name(package["name"])
        marker = package.get("marker")
        if name in NEVER_LOCKED or (marker and not target.holds(marker, groups=groups)):
            continue
        if name in selected:
            raise LockError(f"{where} locks {name} twice for {target}")
        selected[name] = {**package, "name": name}
    return list(selected.values())


def _check_python(specifier: str, target: Target, where: str) -> None:
    try:
        versions = SpecifierSet(specifier)
    except InvalidSpecifier:
        raise LockError(f"{where}: requires-python: {specifier!r} is no specifier") from None
    # Any patch version of the minor will do: which one an image has is not known yet.
    if not any(f"{target.minor}.{patch}" in versions for patch in (0, 99)):
        raise LockError(
            f"{where} requires Python {specifier}, and the function runs on {target.minor}",
            hint="bind with a Python that the lock is for",
        )


def file_name(table: Mapping[str, Any]) -> str:
    """Return the file name of a ``wheels``, ``sdist`` or ``archive`` table."""
    if table.get("name"):
        return str(table["name"])
    place = table.get("path") or urlsplit(table.get("url", "")).path
    return unquote(str(place)).replace("\\", "/").rpartition("/")[2]


def index_of(url: str | None) -> str | None:
    """Return the URL of a package index as a lock has it; None for one on this machine's disk."""
    is_remote = url is not None and urlsplit(url).scheme in ("http", "https")
    return without_credentials(url).rstrip("/") if url and is_remote else None


def read_lock(data: bytes) -> list[Package]:
    """Return the packages of a lock that ``write_pylock`` wrote.

    Raises
    ------
    LockError
        When it is not one.
    """
    where = "the function's lock"
    plain = parse_pylock(data.decode(errors="replace"), where=where)
    try:
        return [
            Package(
                name=canonicalize_name(package["name"]),
                version=package["version"],
                files=tuple(_read_file(table) for table in package["wheels"]),
                index=package.get("index"),
            )
            for package in plain.get("packages", [])
        ]
    except (KeyError, TypeError) as error:
        raise LockError(f"{where} is not one that mfimage wrote: {error}") from None


def _read_file(table: Mapping[str, Any]) -> WheelFile:
    return WheelFile(name=file_name(table), sha256=table["hashes"]["sha256"], url=table.get("url"))
