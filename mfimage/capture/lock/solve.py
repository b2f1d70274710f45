"""Exact versions, each with the hashes of its files: ``pylock.toml`` (PEP 751), solved by uv."""

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
from mfimage.capture.lock.notes import lock_notes, pin
from mfimage.capture.lock.platform import PLATFORMS, Target
from mfimage.capture.lock.pylock import Package
from mfimage.capture.lock.settle import Lock, settle
from mfimage.capture.lock.uv import Unsolved, compile_pylock
from mfimage.errors import LockError

__all__ = ["IndexOptions", "Lock", "extend_lock", "lock_for_target", "lock_requirements"]

_FUNCTION_LOCK, _UV_LOCK = "the function's lock", "uv's lock"


def lock_requirements(
    requirements: Sequence[str],
    *,
    python: str,
    platform: str,
    wheels: Mapping[str, Path] = {},
    index: IndexOptions = OWN_CONFIGURATION,
    directory: Path | None = None,
    hashes: Mapping[str, frozenset[str]] = {},
) -> Lock:
    """Solve requirements.

    Parameters
    ----------
    requirements : sequence of str
        Lines of a requirements file, ``-r file`` and ``-c file`` among them.
    python : str
        Version to solve for; only its minor counts.
    platform : str
        ``linux/amd64`` or ``linux/arm64``, whatever this machine is.
    wheels : mapping of str to Path
        Wheels to use for the distributions that they are of, and to carry along.
    index : IndexOptions
        Which package indexes to ask.
    directory : Path, optional
        Where relative paths start, and where uv looks for its configuration; the current folder
        when it is not given.
    hashes : mapping of name to frozenset of str
        The only files (sha256) that are to be had of these packages.

    Raises
    ------
    LockError
        When there is no solution (it names who disagrees), an index cannot be reached, or
        something can be had neither as a wheel nor built into one.
    """
    target = Target(python=python, platform=platform)
    directory = directory or Path.cwd()
    lines = [*requirements, *(_requirement_of(file, path) for file, path in wheels.items())]
    text = compile_pylock("\n".join(lines), target=target, directory=directory, index=index)
    plain = pylock.parse_pylock(text, where=_UV_LOCK)
    return settle(plain, target, base=directory, where=_UV_LOCK, index=index, hashes=hashes)


def _requirement_of(file: str, path: Path) -> str:
    return f"{parse_wheel_filename(file)[0]} @ {path.resolve().as_uri()}"


def lock_for_target(
    function_lock: bytes,
    *,
    extra: Sequence[str],
    python: str,
    platform: str,
    index: IndexOptions = OWN_CONFIGURATION,
) -> bytes:
    """Add what a serving target needs to a function's lock.

    Every package of the function's lock stays as it is, to the byte; wheels that travel in the
    function package too. For another platform than the function's the same versions are locked
    anew.

    Parameters
    ----------
    function_lock : bytes
        The lock of a function package.
    extra : sequence of str
        Requirements of the target, as ``fastapi>=0.115``.
    python, platform : str
        As in ``lock_requirements``; the minor must be that of the function's lock.
    index : IndexOptions
        Which package indexes to ask.

    Raises
    ------
    LockError
        When the target needs other versions than the function (it names both), an index has
        another file under the name of a locked one (it names both hashes), or something has no
        wheel for the platform.
    """
    target = Target(python=python, platform=platform)
    function_lock = relock(function_lock, target, index=index, directory=Path.cwd())
    return extend_lock(function_lock, extra, target, index=index, label="the target")


def extend_lock(
    data: bytes,
    extra: Sequence[str],
    target: Target,
    *,
    index: IndexOptions,
    label: str,
    directory: Path | None = None,
) -> bytes:
    """Add requirements to a lock; ``label`` says whose they are. See ``lock_for_target``."""
    directory = directory or Path.cwd()
    plain = pylock.parse_pylock(data.decode(errors="replace"), where=_FUNCTION_LOCK)
    pylock.select_packages(plain, target, where=_FUNCTION_LOCK)
    pinned = {package.name: package for package in pylock.read_lock(data)}
    with tempfile.TemporaryDirectory(prefix="mfimage-") as folder:
        pins = "\n".join(pin(package, stubs=Path(folder)) for package in pinned.values())
        text = _compile_extra(extra, pins, target, directory=directory, index=index, label=label)
        solved = pylock.parse_pylock(text, where=_UV_LOCK)
        lock = settle(solved, target, base=directory, where=_UV_LOCK, index=index)
    for package in lock.packages:
        if package.name in pinned:
            _check_same(pinned[package.name], package)
        elif package.is_local:
            raise LockError(
                f"{label} needs {package.name}, which has no wheel for {target} on the index",
                hint=f"lock it with the function: require {package.name} there",
            )
    added = [package for package in lock.packages if package.name not in pinned]
    return pylock.write_pylock([*pinned.values(), *added], target)


def _compile_extra(
    extra: Sequence[str],
    pins: str,
    target: Target,
    *,
    directory: Path,
    index: IndexOptions,
    label: str,
) -> str:
    try:
        return compile_pylock(
            "\n".join(extra), constraints=pins, target=target, directory=directory, index=index
        )
    except LockError as error:
        message = error.message.replace(
            "the requirements have", f"what {label} needs and {_FUNCTION_LOCK} have"
        )
        raise LockError(message, hint=error.hint) from None


def _check_same(pinned: Package, found: Package) -> None:
    known = {file.name: file.sha256 for file in pinned.files}
    for file in found.files:
        if not pinned.is_local and known.get(file.name, file.sha256) != file.sha256:
            raise LockError(
                f"{pinned.name} {pinned.version}: {file.name} has sha256 {file.sha256} on the "
                f"index, and {known[file.name]} in the function's lock",
                hint="somebody replaced the file: find out who, or bind the function again",
            )


# A function's lock for another platform: the same versions, the wheels that fit there.

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
