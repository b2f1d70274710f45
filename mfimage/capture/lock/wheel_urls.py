"""Locks wheels that are named by URL."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from mfimage.capture.lock import pylock
from mfimage.capture.lock.indexes import IndexOptions, without_credentials
from mfimage.capture.lock.platform import Platform
from mfimage.capture.lock.uv import UvFailure, compile_pylock
from mfimage.errors import LockError

_Packages = Sequence[Mapping[str, Any]]
_ASKED_AT_ONCE = 4


class Wheel(NamedTuple):
    """A wheel by its URL."""

    name: str
    version: str
    url: str


def parse_wheels(urls: Iterable[str]) -> tuple[list[Wheel], list[str]]:
    """Return the wheels among URLs, and the other URLs."""
    wheels, others = [], []
    for url in urls:
        file = unquote(urlsplit(url).path).rpartition("/")[2]
        try:
            name, version, _, _ = parse_wheel_filename(file)
        except InvalidWheelFilename:
            others.append(url)
        else:
            wheels.append(Wheel(name, str(version), url))
    return wheels, others


def lock_urls(
    urls: Sequence[str], platform: Platform, *, index: IndexOptions, directory: Path
) -> dict[str, Any]:
    """Return a parsed lock that has exactly these wheels."""
    # The hash of a wheel is the one that its index lists for this URL; a wheel that no index lists
    # is downloaded once (uv caches it) and hashed.
    wheels, others = parse_wheels(urls)
    for wheel in wheels:
        file = pylock.file_name({"url": wheel.url})
        if not platform.fits(file):
            about = f"{wheel.name} {wheel.version}"
            raise LockError(f"{about} is {file}, which does not fit {platform}")

    def solve(lines: Iterable[str]) -> _Packages:
        solution = compile_pylock(
            "\n".join(lines), platform=platform, directory=directory, index=index, alone=True
        )
        return list(pylock.parse_pylock(solution.pylock, where="uv's lock").get("packages", ()))

    listed = {
        _bare(table["url"]): table
        for package in _look_up([f"{each.name}=={each.version}" for each in wheels], solve)
        for table in package.get("wheels", ())
        if table.get("url") and table.get("hashes", {}).get("sha256")
    }
    found = {wheel: listed.get(_bare(wheel.url)) for wheel in wheels}
    known = [
        {"name": wheel.name, "version": wheel.version, "wheels": [table]}
        for wheel, table in found.items()
        if table
    ]
    rest = [f"{wheel.name} @ {wheel.url}" for wheel, table in found.items() if not table]
    lines = [*rest, *others]
    return {"packages": [*known, *(solve(lines) if lines else ())]}


def _look_up(pins: Sequence[str], solve: Callable[[Iterable[str]], _Packages]) -> _Packages:
    """Return the packages that the indexes have."""
    try:
        return solve(pins)
    except UvFailure as failure:
        if not failure.is_unsolved:
            raise
        if len(pins) < 2:
            return []
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
        return list(chain(*pool.map(lambda pin: _look_up([pin], solve), pins)))


def _bare(url: str) -> str:
    return unquote(without_credentials(url).partition("#")[0])
