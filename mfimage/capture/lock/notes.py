"""Requirements that hold locked packages at their versions."""

from __future__ import annotations

import re
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from packaging.utils import canonicalize_name

from mfimage.capture.lock import pylock, uv
from mfimage.capture.lock.indexes import IndexOptions
from mfimage.capture.lock.platform import Target
from mfimage.capture.lock.pylock import Package
from mfimage.capture.lock.settle import Lock
from mfimage.errors import LockError


def pin(package: Package, wheels: Mapping[str, Path] = {}, *, stubs: Path) -> str:
    """Return the requirement for just this package.

    A wheel that travels in a function package is on no index. Where it is not at hand either, an
    empty one stands for it: what it requires is in the function's lock, pinned.

    Parameters
    ----------
    package : Package
        What is locked.
    wheels : mapping of str to Path
        Wheels that are on this machine, by file name.
    stubs : Path
        A folder for empty wheels, which must be there as long as the requirement is used.
    """
    if not package.is_local:
        return f"{package.name}=={package.version}"
    here = [wheels[file.name] for file in package.files if file.name in wheels]
    wheel = here[0] if here else _stub(package, stubs)
    return f"{package.name} @ {wheel.resolve().as_uri()}"


def _stub(package: Package, folder: Path) -> Path:
    name = package.name.replace("-", "_")
    stub = folder / f"{name}-{package.version}-py3-none-any.whl"
    info = f"{name}-{package.version}.dist-info"
    with zipfile.ZipFile(stub, "w") as write:
        about = f"Metadata-Version: 2.1\nName: {package.name}\nVersion: {package.version}\n"
        write.writestr(f"{info}/METADATA", about)
        write.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n")
        write.writestr(f"{info}/RECORD", "")
    return stub


# What uv notes beside each package that it solves: which others require it, and its index.

_PACKAGE = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)\s*(?:\[.*\])?\s*(?:==|@)")
_COMMENT = re.compile(r"\s+#\s*(?P<kind>via|from)?\s*(?P<value>\S.*)?")


@dataclass(frozen=True, kw_only=True)
class Note:
    """What is known of a package: the names of those that require it, and its index's URL."""

    requirers: tuple[str, ...] = ()
    index: str | None = None


def lock_notes(
    lock: Lock, target: Target, *, index: IndexOptions, directory: Path
) -> dict[str, Note]:
    """Return a note on each package of a lock; none when its versions are not to be had again.

    Parameters
    ----------
    lock : Lock
        Its packages are looked up by name and version; wheels that travel are read, if there.
    target : Target
        What it is for.
    index, directory
        As in ``lock_requirements``.
    """
    with tempfile.TemporaryDirectory(prefix="mfimage-") as folder:
        pins = [pin(package, lock.wheels, stubs=Path(folder)) for package in lock.packages]
        try:
            text = uv.compile_notes(
                "\n".join(pins), target=target, directory=directory, index=index
            )
        except LockError:
            return {}
    return parse_notes(text)


def project_notes(project: Path, *, index: IndexOptions) -> dict[str, Note]:
    """Return a note on each package of a project's ``uv.lock``."""
    return parse_notes(uv.export_notes(project, index=index))


def parse_notes(text: str) -> dict[str, Note]:
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
        # A file that names it, as "-r requirements.txt", is no package.
        elif kind == "via" and value and not value.startswith("-"):
            who = canonicalize_name(value.partition(" ")[0])
            found[name] = replace(found[name], requirers=(*found[name].requirers, who))
    return found


def with_indexes(lock: Lock, notes: Mapping[str, Note], target: Target) -> Lock:
    """Return a lock that says of each package on which index it was found."""
    packages: Iterable[Package] = (_noted(package, notes) for package in lock.packages)
    return replace(lock, data=pylock.write_pylock(packages, target))


def _noted(package: Package, notes: Mapping[str, Note]) -> Package:
    if package.is_local or package.index or package.name not in notes:
        return package
    return replace(package, index=notes[package.name].index)
