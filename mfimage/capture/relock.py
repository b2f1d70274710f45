"""A function's lock for another platform: the same versions, the wheels that fit there."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mfimage.capture import pylock
from mfimage.capture.indexes import IndexOptions
from mfimage.capture.notes import lock_notes
from mfimage.capture.pins import pin
from mfimage.capture.pylock import Package
from mfimage.capture.settle import Lock, settle
from mfimage.capture.target import PLATFORMS, Target
from mfimage.capture.uv import compile_pylock
from mfimage.capture.uv_errors import Unsolved
from mfimage.errors import LockError

_WHERE = "the function's lock"
_NO_WHEEL = "this platform and Python, and no source to build one"


def relock(data: bytes, target: Target, *, index: IndexOptions, directory: Path) -> bytes:
    """Return a function's lock for a target; as it is when it is for that already.

    Parameters
    ----------
    data : bytes
        The lock of a function package.
    target : Target
        What it shall be for; its Python must be the lock's.
    index, directory
        As in ``lock_requirements``; the indexes that the lock names are asked, too.

    Raises
    ------
    LockError
        Naming what has no wheel for the target.
    """
    plain = pylock.parse_pylock(data.decode(errors="replace"), where=_WHERE)
    original = _target_of(plain.get("environments", ()), target)
    if original is None or original.platform == target.platform:
        return data
    pylock.select_packages(plain, original, where=_WHERE)
    job = _Job(
        packages={package.name: package for package in pylock.read_lock(data)},
        original=original,
        target=target,
        directory=directory,
    )
    return pylock.write_pylock(job.solve(index), target)


def _target_of(environments: Sequence[str], target: Target) -> Target | None:
    each = (replace(target, platform=platform) for platform in PLATFORMS)
    return next((found for found in each if found.environment in environments), None)


@dataclass(frozen=True, kw_only=True)
class _Job:
    packages: Mapping[str, Package]
    original: Target
    target: Target
    directory: Path

    def solve(self, index: IndexOptions) -> list[Package]:
        for package in self.packages.values():
            self._check_travelling(package)
        failure = Unsolved("")
        for options in self._indexes(index):
            try:
                return self._attempt(self._roots(options), options)
            except Unsolved as error:
                failure = error
        raise LockError(
            f"the function is locked for {self.original.platform}: "
            f"{failure.message.replace(_NO_WHEEL, str(self.target))}",
            hint=f"build for {self.original.platform}, or bind with versions that both have",
        )

    def _check_travelling(self, package: Package) -> None:
        if package.is_local and not any(self.target.fits(file.name) for file in package.files):
            raise LockError(
                f"{package.files[0].name} travels with the function, and does not fit "
                f"{self.target}",
                hint=f"build for {self.original.platform}, or bind for {self.target.platform}",
            )

    def _roots(self, index: IndexOptions) -> list[Package]:
        """Return the packages that no other requires: those may be for one platform alone."""
        lock = Lock(data=pylock.write_pylock(self.packages.values(), self.original))
        notes = lock_notes(lock, self.original, index=index, directory=self.directory)
        return [
            package
            for package in self.packages.values()
            if package.name not in notes or not notes[package.name].requirers
        ]

    def _indexes(self, index: IndexOptions) -> Iterator[IndexOptions]:
        """Yield which indexes to ask: as configured, with those that the lock names.

        What most packages came from stands in for the default index only if that does not do: it
        may be a mirror that is not to be reached from here.
        """
        known = index.urls(os.environ, self.directory)
        named = [each.index for each in self.packages.values() if each.index]
        common = [url for url, _ in Counter(named).most_common()]
        extra = [url for url in reversed(common[1:]) if url not in known]
        yield index.with_extra(extra)
        if common and common[0] not in known:
            yield index.with_extra([*extra, common[0]])

    def _attempt(self, roots: Sequence[Package], index: IndexOptions) -> list[Package]:
        with tempfile.TemporaryDirectory(prefix="mfimage-") as folder:
            pins = {
                package.name: pin(package, stubs=Path(folder)) for package in self.packages.values()
            }
            text = compile_pylock(
                "\n".join(pins[package.name] for package in roots),
                constraints="\n".join(pins.values()),
                target=self.target,
                directory=self.directory,
                index=index,
                builds=False,
            )
            plain = pylock.parse_pylock(text, where="uv's lock")
            lock = settle(plain, self.target, base=self.directory, where="uv's lock", index=index)
        return [self._kept(package) for package in lock.packages]

    def _kept(self, found: Package) -> Package:
        known = self.packages.get(found.name)
        if known is None:
            return found
        return known if known.is_local else replace(found, index=known.index)
