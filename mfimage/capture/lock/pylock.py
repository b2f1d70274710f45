"""``pylock.toml`` (PEP 751): reads those of any tool, writes one narrow form."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name

from mfimage.capture.lock import toml
from mfimage.capture.lock.indexes import without_credentials
from mfimage.capture.lock.platform import Platform
from mfimage.capture.lock.uv import NEVER_LOCKED
from mfimage.errors import LockError

WHEELS = "wheels/"


@dataclass(frozen=True, kw_only=True)
class WheelFile:
    """One wheel of a locked package."""

    name: str  # of the file
    sha256: str
    url: str | None = None  # None when it travels in the function package

    def to_toml(self) -> str:
        """Return the inline table."""
        place = f"url = {_quote(self.url)}" if self.url else f"path = {_quote(WHEELS + self.name)}"
        return f"{{ {place}, hashes = {{ sha256 = {_quote(self.sha256)} }} }}"


@dataclass(frozen=True, kw_only=True)
class LockedPackage:
    """One locked package."""

    name: str  # canonical
    version: str
    files: tuple[WheelFile, ...]  # those that fit the platform
    index: str | None = None  # that it was found on, if known

    @property
    def is_local(self) -> bool:
        """Whether its wheel travels in the function package."""
        return any(file.url is None for file in self.files)


def write_pylock(packages: Iterable[LockedPackage], platform: Platform) -> bytes:
    """Return a lock for one platform, sorted: the same packages give the same bytes."""
    lines = [
        'lock-version = "1.0"',
        f"environments = [{_quote(platform.environment)}]",
        f"requires-python = {_quote(f'=={platform.minor}.*')}",
        'created-by = "mfimage"',
    ]
    for package in sorted(packages, key=lambda each: each.name):
        lines += ["", "[[packages]]", f"name = {_quote(package.name)}"]
        lines += [f"version = {_quote(package.version)}"]
        lines += [f"index = {_quote(package.index)}"] if package.index else []
        files = sorted(package.files, key=lambda each: each.name)
        lines += ["wheels = [", *(f"    {file.to_toml()}," for file in files), "]"]
    return ("\n".join(lines) + "\n").encode()


def _quote(text: str) -> str:
    # TOML's basic strings are JSON's, except for the one control character that JSON allows.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def parse_pylock(text: str, *, where: str) -> dict[str, Any]:
    """Parse a lock."""
    try:
        parsed = toml.loads(text)
    except toml.TOMLDecodeError as error:
        raise LockError(f"{where}: not TOML: {error}") from None
    version = parsed.get("lock-version")
    if not isinstance(version, str) or not re.match(r"1\.", version):
        raise LockError(f"{where}: lock-version: expected 1.x, got {version!r}")
    packages = parsed.get("packages", [])
    if not isinstance(packages, list) or not all(
        isinstance(each, dict) and isinstance(each.get("name"), str) for each in packages
    ):
        raise LockError(f"{where}: packages: expected a list of tables, each with a name")
    return parsed


def select_packages(
    parsed: Mapping[str, Any], platform: Platform, *, where: str
) -> list[Mapping[str, Any]]:
    """Return the packages of a parsed lock that are installed on a platform."""
    _check_python(parsed.get("requires-python", ""), platform, where)
    environments = parsed.get("environments", [])
    if environments and not any(platform.holds(marker) for marker in environments):
        hint = "lock it for this platform, or ask for the platform that it is for"
        raise LockError(f"{where} is not for {platform}: {' or '.join(environments)}", hint=hint)
    groups = tuple(parsed.get("default-groups", ()))
    selected: dict[str, Mapping[str, Any]] = {}
    for package in parsed.get("packages", []):
        name = canonicalize_name(package["name"])
        marker = package.get("marker")
        if name in NEVER_LOCKED or (marker and not platform.holds(marker, groups=groups)):
            continue
        if name in selected:
            raise LockError(f"{where} locks {name} twice for {platform}")
        selected[name] = {**package, "name": name}
    return list(selected.values())


def _check_python(specifier: str, platform: Platform, where: str) -> None:
    try:
        versions = SpecifierSet(specifier)
    except InvalidSpecifier:
        message = f"{where}: requires-python: {specifier!r} is not a version specifier"
        raise LockError(message) from None
    # The patch version that an image has is not known yet: any will do.
    if not any(f"{platform.minor}.{patch}" in versions for patch in (0, 99)):
        message = f"{where} requires Python {specifier}, and the function runs on {platform.minor}"
        raise LockError(message, hint="bind with a Python that the lock is for")


def file_name(table: Mapping[str, Any]) -> str:
    """Return the file name of a ``wheels``, ``sdist`` or ``archive`` table."""
    if table.get("name"):
        return str(table["name"])
    place = table.get("path") or urlsplit(table.get("url", "")).path
    return unquote(str(place)).replace("\\", "/").rpartition("/")[2]


def index_of(url: str | None) -> str | None:
    """Return the URL of a package index as a lock has it; None for a local folder."""
    is_remote = url and urlsplit(url).scheme in ("http", "https")
    return without_credentials(url).rstrip("/") if url and is_remote else None


def read_lock(data: bytes) -> list[LockedPackage]:
    """Return the packages of a lock that ``write_pylock`` wrote."""
    where = "the function's lock"
    parsed = parse_pylock(data.decode(errors="replace"), where=where)
    try:
        return [
            LockedPackage(
                name=canonicalize_name(package["name"]),
                version=package["version"],
                files=tuple(
                    WheelFile(name=file_name(t), sha256=t["hashes"]["sha256"], url=t.get("url"))
                    for t in package["wheels"]
                ),
                index=package.get("index"),
            )
            for package in parsed.get("packages", [])
        ]
    except (KeyError, TypeError) as error:
        raise LockError(f"{where} is not one that mfimage wrote: {error}") from None
