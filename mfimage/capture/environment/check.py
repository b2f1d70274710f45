"""Refuses an environment that lacks what code and artifacts import."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from mfimage.capture.code.imports import Asked, Imports, module_names
from mfimage.capture.environment.installed import Installed
from mfimage.capture.lock.pylock import LockedPackage
from mfimage.capture.lock.settle import Lock
from mfimage.capture.lock.wheel_contents import holds_module, wheel_files
from mfimage.errors import LockError

_READS_AT_ONCE = 8


def check_imports(
    imports: Imports, lock: Lock, *, where: str, remedy: str, environment: Mapping[str, str]
) -> None:
    """Refuse a lock that certainly lacks a distribution that the function imports."""
    missing = _missing(imports, lock, environment)
    if not missing:
        return
    asks = ", ".join(f"{each.module} ({each.reason})" for each in missing)
    owners = [imports.installed.owners(each.module, each.origins) for each in missing]
    names = dict.fromkeys(
        " or ".join(owner.name for owner in found) or f"what provides {each.module.split('.')[0]}"
        for each, found in zip(missing, owners, strict=True)
    )
    message = f"{where} lacks what the function imports: {asks}"
    raise LockError(message, hint=f"add {', '.join(names)} to {remedy}")


def _missing(imports: Imports, lock: Lock, environment: Mapping[str, str]) -> list[Asked]:
    # An import that may fail, or may never run, needs nothing, and a locked distribution whose
    # files cannot be listed may have any module.
    packages = {package.name: package for package in lock.packages}
    first: dict[str, Asked] = {}
    for asked in imports.asked:
        if asked.certain and not asked.optional:
            first.setdefault(asked.module, asked)
    here = imports.installed
    suspects = [asked for asked in first.values() if not _is_locked(asked, packages, here)]
    if not suspects:
        return []
    # The interpreter knows the modules of what it has in the same version.
    unknown = [
        each
        for each in packages.values()
        if each.name not in here or here[each.name].version != each.version
    ]
    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        read = partial(wheel_files, local=lock.wheels, environment=environment)
        contents = list(pool.map(read, unknown))
    return [
        asked
        for asked in suspects
        if not any(files is None or holds_module(files, asked.module) for files in contents)
    ]


def _is_locked(asked: Asked, packages: Mapping[str, LockedPackage], installed: Installed) -> bool:
    owners = installed.owners(asked.module, asked.origins)
    if any(owner.name in packages for owner in owners):
        return True
    # A folder that several distributions fill belongs to none of them.
    if not owners and installed.is_namespace(asked.module):
        return True
    return not module_names(asked.module).isdisjoint(packages)
