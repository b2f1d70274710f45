"""The locks of several functions as one: each package as each function's lock has it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from mfimage.capture.lock.platform import Platform
from mfimage.capture.lock.pylock import LockedPackage, WheelFile, read_lock, write_pylock
from mfimage.errors import LockError

# Where the versions of a function are decided, by the source of its environment.
_DECIDED = {
    "requirements": "the requirements file",
    "pylock": "the pylock.toml",
    "uv.lock": "the uv.lock",
    "pypi": "the step's @pypi",
    "conda": "the step's @conda",
    "imports": "the environment at the binding",
}


@dataclass(frozen=True, kw_only=True)
class FunctionLock:
    """The lock of one of several functions; the last two are as in ``EnvironmentSpec``."""

    name: str
    data: bytes
    source: str
    reasons: Mapping[str, str]


def merge_locks(locks: Iterable[FunctionLock], platform: Platform) -> bytes:
    """Return one lock with the packages of all; refuse two versions of one package.

    Locks that are equal give the same bytes.
    """
    distinct: dict[bytes, FunctionLock] = {}
    for lock in locks:
        distinct.setdefault(lock.data, lock)
    if len(distinct) == 1:
        return next(iter(distinct))
    found: dict[str, tuple[FunctionLock, LockedPackage]] = {}
    for data, lock in distinct.items():
        for package in read_lock(data):
            owner, known = found.setdefault(package.name, (lock, package))
            if known != package:
                _check_version(owner, known, lock, package)
                files = _merged_files(owner, known, lock, package)
                found[package.name] = owner, replace(known, files=files)
    return write_pylock([package for _, package in found.values()], platform)


def _check_version(
    one: FunctionLock, known: LockedPackage, other: FunctionLock, package: LockedPackage
) -> None:
    if known.version == package.version:
        return
    where = " or ".join(f"{_place(lock)} ({_reason(lock, package.name)})" for lock in (one, other))
    raise LockError(
        f"{package.name}: {one.name} has {known.version}, {other.name} has {package.version}: "
        "functions in one image share its packages",
        hint=f"loosen {package.name} in {where} and bind again, or build an image of each",
    )


def _place(lock: FunctionLock) -> str:
    return f"{_DECIDED.get(lock.source, lock.source)} of {lock.name}"


def _reason(lock: FunctionLock, package: str) -> str:
    return lock.reasons.get(package, f"from {lock.source}")


def _merged_files(
    one: FunctionLock, known: LockedPackage, other: FunctionLock, package: LockedPackage
) -> tuple[WheelFile, ...]:
    files = {file.name: file for file in known.files}
    for file in package.files:
        same = files.setdefault(file.name, file)
        if same.sha256 != file.sha256 or known.is_local != package.is_local:
            raise LockError(
                f"{package.name} {package.version}: {one.name} and {other.name} have different "
                f"files of it: sha256 {same.sha256[:12]} and {file.sha256[:12]} of {file.name}",
                hint="bind both again in one place, so that both have the same",
            )
    return tuple(files.values())
