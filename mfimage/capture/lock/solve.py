"""Solves requirements: exact versions, each with the hashes of its files."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from packaging.utils import parse_wheel_filename

from mfimage.capture.lock import pylock
from mfimage.capture.lock.indexes import OWN_CONFIGURATION, IndexOptions
from mfimage.capture.lock.notes import pin, read_log, solve_notes
from mfimage.capture.lock.platform import Platform
from mfimage.capture.lock.pylock import LockedPackage
from mfimage.capture.lock.settle import Lock, settle
from mfimage.capture.lock.uv import UvFailure, compile_pylock
from mfimage.errors import LockError
from mfimage.package.platforms import MACHINES

_FUNCTION_LOCK, _UV_LOCK = "the function's lock", "uv's lock"


def lock_requirements(
    requirements: Sequence[str],
    *,
    platform: Platform,
    wheels: Mapping[str, Path] = {},
    index: IndexOptions = OWN_CONFIGURATION,
    directory: Path | None = None,
    hashes: Mapping[str, frozenset[str]] = {},
) -> Lock:
    """Solve lines of a requirements file, once; the lock says who requires what."""
    # ``wheels``, by file name, are used for their distributions, and included. ``directory`` is
    # where relative paths start, and where uv looks for its configuration. ``hashes`` has, by
    # package name, the only files (sha256) that may be used.
    directory = directory or Path.cwd()
    lines = list(requirements)
    for file, path in wheels.items():
        lines.append(f"{parse_wheel_filename(file)[0]} @ {path.resolve().as_uri()}")
    solution = compile_pylock("\n".join(lines), platform=platform, directory=directory, index=index)
    parsed = pylock.parse_pylock(solution.pylock, where=_UV_LOCK)
    lock = settle(parsed, platform, base=directory, where=_UV_LOCK, index=index, hashes=hashes)
    packages = lock.packages
    notes = read_log(solution.log, packages)
    if notes is None:
        local = lock.wheels
        notes = solve_notes(packages, platform, wheels=local, index=index, directory=directory)
    return lock.with_notes(notes, platform)


def lock_for_target(
    function_lock: bytes,
    *,
    extra: Sequence[str],
    python: str,
    platform: str,
    index: IndexOptions = OWN_CONFIGURATION,
) -> bytes:
    """Add what a serving target needs to a function's lock."""
    # Every package of the function's lock stays as it is, to the byte, and so do wheels in the
    # function package. For another platform than the function's, the same versions are locked
    # again. The minor version of ``python`` must be that of the function's lock.
    wanted = Platform(python=python, name=platform)
    function_lock = relock(function_lock, wanted, index=index, directory=Path.cwd())
    return extend_lock(function_lock, extra, wanted, index=index, label="the target")


def extend_lock(
    data: bytes,
    extra: Sequence[str],
    platform: Platform,
    *,
    index: IndexOptions,
    label: str,
    directory: Path | None = None,
) -> bytes:
    """Add requirements to a lock; ``label`` says whose they are. See ``lock_for_target``."""
    directory = directory or Path.cwd()
    parsed = pylock.parse_pylock(data.decode(errors="replace"), where=_FUNCTION_LOCK)
    pylock.select_packages(parsed, platform, where=_FUNCTION_LOCK)
    if not extra:
        return data
    pinned = {package.name: package for package in pylock.read_lock(data)}
    with tempfile.TemporaryDirectory(prefix="mfimage-") as folder:
        pins = "\n".join(pin(package, stubs=Path(folder)) for package in pinned.values())
        text = "\n".join(extra)
        try:
            solution = compile_pylock(
                text, constraints=pins, platform=platform, directory=directory, index=index
            )
        except UvFailure as failure:
            message = f"{label} cannot be added to {_FUNCTION_LOCK}: {failure.message}"
            raise LockError(message, hint=failure.hint) from None
        solved = pylock.parse_pylock(solution.pylock, where=_UV_LOCK)
        lock = settle(solved, platform, base=directory, where=_UV_LOCK, index=index)
    for package in lock.packages:
        if package.name in pinned:
            _check_same(pinned[package.name], package)
        elif package.is_local:
            raise LockError(
                f"{label} needs {package.name}, which has no wheel for {platform} on the index",
                hint=f"lock it with the function: require {package.name} there",
            )
    added = [package for package in lock.packages if package.name not in pinned]
    return pylock.write_pylock([*pinned.values(), *added], platform)


def _check_same(pinned: LockedPackage, found: LockedPackage) -> None:
    known = {file.name: file.sha256 for file in pinned.files}
    for file in found.files:
        if not pinned.is_local and known.get(file.name, file.sha256) != file.sha256:
            raise LockError(
                f"{pinned.name} {pinned.version}: {file.name} has sha256 {file.sha256} on the "
                f"index, and {known[file.name]} in {_FUNCTION_LOCK}",
                hint="the file was replaced on the index: find out why, or bind the function again",
            )


# A function's lock for another platform: the same versions, the wheels that fit there.


def relock(data: bytes, platform: Platform, *, index: IndexOptions, directory: Path) -> bytes:
    """Return a function's lock for a platform; unchanged when it is for that already."""
    parsed = pylock.parse_pylock(data.decode(errors="replace"), where=_FUNCTION_LOCK)
    environments = parsed.get("environments", ())
    each = (replace(platform, name=name) for name in MACHINES)
    original = next((found for found in each if found.environment in environments), None)
    if original is None or original.name == platform.name:
        return data
    pylock.select_packages(parsed, original, where=_FUNCTION_LOCK)
    packages = {package.name: package for package in pylock.read_lock(data)}
    job = _Relock(packages=packages, original=original, platform=platform, directory=directory)
    return pylock.write_pylock(job.solve(index), platform)


@dataclass(frozen=True, kw_only=True)
class _Relock:
    packages: Mapping[str, LockedPackage]
    original: Platform
    platform: Platform
    directory: Path

    def solve(self, index: IndexOptions) -> list[LockedPackage]:
        for package in self.packages.values():
            names = [file.name for file in package.files]
            if package.is_local and not any(map(self.platform.fits, names)):
                message = f"{names[0]} is in the function package, and does not fit {self.platform}"
                hint = f"build for {self.original.name}, or bind for {self.platform.name}"
                raise LockError(message, hint=hint)
        failure: UvFailure | None = None
        for options in self._indexes(index):
            try:
                return self._attempt(options)
            except UvFailure as error:
                if not error.is_unsolved:
                    raise
                failure = error
        assert failure is not None
        raise LockError(
            f"the function is locked for {self.original.name}, and its versions cannot be locked "
            f"for {self.platform}: {failure.message}",
            hint=f"build for {self.original.name}, or bind with versions that both have",
        )

    def _indexes(self, index: IndexOptions) -> Iterator[IndexOptions]:
        """Yield which indexes to ask: as configured, with those that the lock names."""
        # The one that most packages came from replaces the default index only in the second
        # attempt: it may be a mirror that cannot be reached from here.
        known = index.urls(os.environ, self.directory)
        named = [each.index for each in self.packages.values() if each.index]
        common = [url for url, _ in Counter(named).most_common()]
        extra = [url for url in reversed(common[1:]) if url not in known]
        yield index.with_extra(extra)
        if common and common[0] not in known:
            yield index.with_extra([*extra, common[0]])

    def _attempt(self, index: IndexOptions) -> list[LockedPackage]:
        packages = list(self.packages.values())
        notes = solve_notes(packages, self.original, index=index, directory=self.directory)
        # Those that others require are left to the solver: they may be for one platform only.
        required = {name for name, note in notes.items() if note.requirers}
        with tempfile.TemporaryDirectory(prefix="mfimage-") as folder:
            pins = {each.name: pin(each, stubs=Path(folder)) for each in packages}
            solution = compile_pylock(
                "\n".join(text for name, text in pins.items() if name not in required),
                constraints="\n".join(pins.values()),
                platform=self.platform,
                directory=self.directory,
                index=index,
                builds=False,
            )
            parsed = pylock.parse_pylock(solution.pylock, where=_UV_LOCK)
            lock = settle(parsed, self.platform, base=self.directory, where=_UV_LOCK, index=index)
        locked = []
        for found in lock.packages:
            known = self.packages.get(found.name, found)
            locked.append(known if known.is_local else replace(found, index=known.index))
        return locked
