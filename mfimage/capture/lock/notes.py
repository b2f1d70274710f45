"""What uv says of each package that it solved: who requires it, and the index it is on."""

from __future__ import annotations

import re
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from packaging.utils import canonicalize_name

from mfimage.capture.lock import pylock, uv
from mfimage.capture.lock.indexes import IndexOptions
from mfimage.capture.lock.platform import Platform
from mfimage.capture.lock.pylock import LockedPackage
from mfimage.errors import LockError


@dataclass(frozen=True, kw_only=True)
class Note:
    """What is known of a package: the names of its requirers, sorted, and its index's URL."""

    requirers: tuple[str, ...] = ()
    index: str | None = None


# From uv's log of the solve.

_EDGE = re.compile(
    r"Adding transitive dependency for (?P<name>[\w.-]+)(?:\[[^]]*\])?==(?P<version>[^\s:]+).*?: "
    r"(?P<other>[A-Za-z0-9][\w.-]*)"
)
_ROOT = re.compile(r"Adding direct dependency: (?P<name>[A-Za-z0-9][\w.-]*)")
_PAGE = re.compile(r"(?:No cache entry|Found \w+ response) for: (?P<index>\S+)/(?P<name>[^/\s]+)/$")


def read_log(log: str, packages: Sequence[LockedPackage]) -> dict[str, Note] | None:
    """Return a note on each package, from uv's log; None when it does not say enough."""
    # It does not when uv read pages of several indexes for a package, or words its log otherwise
    # than the versions that we know.
    versions = {package.name: package.version for package in packages}
    requirers: dict[str, set[str]] = defaultdict(set)
    pages: dict[str, set[str]] = defaultdict(set)
    explained: set[str] = set()
    for line in log.splitlines():
        if edge := _EDGE.search(line):
            name, other = canonicalize_name(edge["name"]), canonicalize_name(edge["other"])
            # Versions that were tried and dropped are in the log, too.
            if versions.get(name) == edge["version"] and name != other:
                requirers[other].add(name)
                explained.add(other)
        elif root := _ROOT.search(line):
            explained.add(canonicalize_name(root["name"]))
        elif page := _PAGE.search(line):
            pages[canonicalize_name(page["name"])].add(page["index"])
    remote = [package.name for package in packages if not package.is_local]
    if not explained.issuperset(versions) or any(len(pages[name]) != 1 for name in remote):
        return None
    found = {name: pylock.index_of(next(iter(pages[name]), None)) for name in versions}
    return {
        name: Note(requirers=tuple(sorted(requirers[name])), index=index)
        for name, index in found.items()
    }


# From comments in requirements, as uv writes them.

_PACKAGE = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)\s*(?:\[.*\])?\s*(?:==|@)")
_COMMENT = re.compile(r"\s+#\s*(?P<kind>via|from)?\s*(?P<value>\S.*)?")


def solve_notes(
    packages: Sequence[LockedPackage],
    platform: Platform,
    *,
    wheels: Mapping[str, Path] = {},
    index: IndexOptions,
    directory: Path,
) -> dict[str, Note]:
    """Return a note on each package, from a solve of its own; none when that fails."""
    with tempfile.TemporaryDirectory(prefix="mfimage-") as folder:
        pins = [pin(package, wheels, stubs=Path(folder)) for package in packages]
        lines = "\n".join(pins)
        try:
            text = uv.compile_notes(lines, platform=platform, directory=directory, index=index)
        except LockError:
            return {}
    return parse_comments(text)


def parse_comments(text: str) -> dict[str, Note]:
    """Read requirements with comments below each, as uv writes them."""
    found: dict[str, Note] = {}
    name = kind = ""
    for line in text.splitlines():
        package = _PACKAGE.match(line)
        if package:
            name, kind = canonicalize_name(package["name"]), ""
            found[name] = Note()
        comment = _COMMENT.fullmatch(line)
        if not comment or not name:
            continue
        kind, value = comment["kind"] or kind, comment["value"]
        if kind == "from" and value:
            found[name] = replace(found[name], index=pylock.index_of(value))
        # A file that names it, as "-r requirements.txt", is not a package.
        elif kind == "via" and value and not value.startswith("-"):
            requirer = canonicalize_name(value.partition(" ")[0])
            found[name] = replace(found[name], requirers=(*found[name].requirers, requirer))
    return found


def pin(package: LockedPackage, wheels: Mapping[str, Path] = {}, *, stubs: Path) -> str:
    """Return the requirement for exactly this package."""
    if not package.is_local:
        return f"{package.name}=={package.version}"
    # A wheel that travels in a function package is on no index. Where it is not on this machine
    # either, an empty one stands for it: what it requires is in the function's lock, pinned.
    here = [wheels[file.name] for file in package.files if file.name in wheels]
    wheel = here[0] if here else _stub(package, stubs)
    return f"{package.name} @ {wheel.resolve().as_uri()}"


def _stub(package: LockedPackage, folder: Path) -> Path:
    name = package.name.replace("-", "_")
    stub = folder / f"{name}-{package.version}-py3-none-any.whl"
    info = f"{name}-{package.version}.dist-info"
    with zipfile.ZipFile(stub, "w") as write:
        metadata = f"Metadata-Version: 2.1\nName: {package.name}\nVersion: {package.version}\n"
        write.writestr(f"{info}/METADATA", metadata)
        write.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n")
        write.writestr(f"{info}/RECORD", "")
    return stub
