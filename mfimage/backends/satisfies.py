"""Whether the running interpreter satisfies a function's lock."""

from __future__ import annotations

import importlib.metadata
import site
import sys
from collections.abc import Sequence
from pathlib import Path

from packaging.version import InvalidVersion, Version

from mfimage.capture.lock.pylock import read_lock
from mfimage.package.store import Package


def difference(package: Package, path: Sequence[str] | None = None) -> str | None:
    """Return why this interpreter, which may have more, does not satisfy a lock; or None.

    ``path`` is where distributions are searched, by default ``sys.path``.
    """
    spec = package.spec.environment
    here = "{}.{}".format(*sys.version_info)
    if spec.python_minor != here:
        return f"this is Python {here}, and the lock is for {spec.python_minor}"
    for locked in read_lock(package.read(spec.lock)):
        found = _installed(locked.name, sys.path if path is None else path)
        if found is None:
            return f"{locked.name} {locked.version} is locked, and not installed here"
        if not _equal(found, locked.version):
            return f"{locked.name} {locked.version} is locked, and {found} is installed here"
    return None


def isolated_python(package: Package) -> Path | None:
    """Return this interpreter if it satisfies a lock, and has mfimage, also without this path."""
    sites = site.getsitepackages()
    if not sys.executable or difference(package, sites) or not _installed("mfimage", sites):
        return None
    return Path(sys.executable)


def _installed(name: str, path: Sequence[str]) -> str | None:
    found = importlib.metadata.distributions(name=name, path=list(path))
    return next((each.version for each in found), None)


def _equal(found: str, locked: str) -> bool:
    try:
        return found == locked or Version(found) == Version(locked)
    except InvalidVersion:
        return False
