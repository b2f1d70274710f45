"""Exact versions, each with the hashes of its files: ``pylock.toml`` (PEP 751), solved by uv."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from packaging.utils import parse_wheel_filename

from mfimage.capture import pylock
from mfimage.capture.indexes import OWN_CONFIGURATION, IndexOptions
from mfimage.capture.pins import pin
from mfimage.capture.pylock import Package
from mfimage.capture.relock import relock
from mfimage.capture.settle import Lock, settle
from mfimage.capture.target import Target
from mfimage.capture.uv import compile_pylock
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
