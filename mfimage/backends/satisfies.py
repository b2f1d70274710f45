"""Whether the running interpreter satisfies a function's lock."""

from __future__ import annotations

import functools
import importlib.metadata
import site
import sys
from pathlib import Path

from packaging.version import InvalidVersion, Version

from mfimage.capture.lock.pylock import read_lock
from mfimage.package.store import Package


def difference(package: Package, path: list[str] | None = None) -> str | None:
    """Return why this interpreter, which may have more, does not satisfy a lock; or None.

    ``path`` is where distributions are searched, by default ``sys.path``.
    """
    spec = package.spec.environment
    here = "{}.{}".format(*sys.version_info)
    if spec.python_minor != here:
        return f"this is Python {here}, and the lock is for {spec.python_minor}"
    for locked in read_lock(package.read(spec.lock)):
        found = installed_version(locked.name, path)
        if found is None:
            return f"{locked.name} {locked.version} is locked, and not installed here"
        if not equal_versions(found, locked.version):
            return f"{locked.name} {locked.version} is locked, and {found} is installed here"
    return None


def isolated_python(package: Package) -> Path | None:
    """Return this interpreter if it has mfimage and satisfies a lock without the caller's path."""
    sites = site.getsitepackages()
    has_mfimage = sys.executable and installed_version("mfimage", sites)
    return Path(sys.executable) if has_mfimage and not difference(package, sites) else None


def installed_version(name: str, path: list[str] | None = None) -> str | None:
    """Return the version of a distribution in this interpreter; None when it has none."""
    places = sys.path if path is None else path
    found = importlib.metadata.distributions(name=name, path=places)
    if path is not None:  # Metaflow's finder lists what a code package has, whatever the path
        found = (each for each in found if str(each.locate_file("")) in places)
    return next((each.version for each in found), None)


def equal_versions(one: str, other: str) -> bool:
    """Return whether two versions are the same, however they are written."""
    try:
        return one == other or Version(one) == Version(other)
    except InvalidVersion:
        return False


@functools.cache
def installed_size(name: str, version: str) -> int | None:
    """Return the bytes of a distribution that is installed here, by its own list of files."""
    try:
        found = importlib.metadata.distribution(name)
        if not equal_versions(found.version, version):
            return None
        lines = (found.read_text("RECORD") or "").splitlines()
    except (importlib.metadata.PackageNotFoundError, OSError, UnicodeError):
        return None
    # ``path,hash,size``; only the path may be quoted.
    sizes = [line.rpartition(",")[2] for line in lines]
    return sum(int(size) for size in sizes if size.isdecimal()) or None
