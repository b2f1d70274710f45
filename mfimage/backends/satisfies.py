"""Whether the running interpreter is the environment that a function is locked to."""

from __future__ import annotations

import importlib.metadata
import sys

from packaging.version import InvalidVersion, Version

from mfimage.capture.lock.pylock import LockedPackage, read_lock
from mfimage.package.store import Package


def difference(package: Package) -> str | None:
    """Return how the running interpreter differs from a function's lock; None if it does not.

    It does not when it has the same minor and every locked distribution at its version; what it
    has beside them does not count.
    """
    spec = package.spec.environment
    here = "{}.{}".format(*sys.version_info)
    if spec.python_minor != here:
        return f"this is Python {here}, and the lock is for {spec.python_minor}"
    for locked in read_lock(package.read(spec.lock)):
        found = _installed(locked.name)
        if found is None:
            return f"{locked.name} {locked.version} is locked, and not installed here"
        if not _same(found, locked):
            return f"{locked.name} {locked.version} is locked, and {found} is installed here"
    return None


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _same(found: str, locked: LockedPackage) -> bool:
    try:
        return found == locked.version or Version(found) == Version(locked.version)
    except InvalidVersion:
        return False
