"""The lock that an image installs: the requirements of the function and of its target.

It is stored beside the package, so that all builds from that root install the same::

    functions/<name>/<digest>/locks/<key>.json
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable
from typing import Any

from mfimage.errors import PackageError, StorageError
from mfimage.image.plan.options import BuildOptions, split_index
from mfimage.package.spec import sha256_digest
from mfimage.package.storage.cache import SCRATCH, cache_folder, remember
from mfimage.package.store import FILE_NAME, Package, package_name

_INDEX_VARIABLES = (
    "UV_DEFAULT_INDEX",
    "UV_INDEX",
    "UV_INDEX_URL",
    "UV_EXTRA_INDEX_URL",
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
)
Note = Callable[[str], None]


def target_lock(package: Package, options: BuildOptions, platform: str, note: Note) -> bytes:
    """Return the lock of an image for a platform: the stored one, else a new one."""
    # ``note`` is called with a line if the lock cannot be stored beside the package.
    asked = _asked(package, options, platform)
    kept = _kept(package, asked)
    if (lock := _read(package, kept, asked)) is not None:
        return lock
    # Variables name indexes too; they may contain credentials, so only a digest is kept.
    variables = [os.environ.get(variable) for variable in _INDEX_VARIABLES]
    cached = cache_folder() / "locks" / _digest([asked, variables])
    if cached.is_file() and not options.no_cache:
        lock = cached.read_bytes()
    else:
        lock = _solve(package, options, platform)
        remember(cached, lock)
    if SCRATCH.get():
        return lock
    _write(package, kept, asked, lock, note)
    # Another build may have stored one meanwhile: then that one counts.
    with contextlib.suppress(StorageError):
        return _read(package, kept, asked) or lock
    return lock


def _asked(package: Package, options: BuildOptions, platform: str) -> dict[str, Any]:
    environment = package.spec.environment
    return {
        "function_lock": environment.lock.digest,
        "requirements": list(options.image_target.requirements),
        "python": environment.python_minor,
        "platform": platform,
        "index_urls": [url for url in (options.index_url, *options.extra_index_urls) if url],
    }


def _kept(package: Package, asked: dict[str, Any]) -> str:
    """Return where a lock is stored: beside the package."""
    folder = package_name(package.spec).removesuffix(f"/{FILE_NAME}")
    return f"{folder}/locks/{_digest(asked)[:32]}.json"


def _digest(value: Any) -> str:
    return sha256_digest(json.dumps(value, sort_keys=True).encode()).removeprefix("sha256:")


def _read(package: Package, name: str, asked: dict[str, Any]) -> bytes | None:
    try:
        stored = json.loads(package.store.storage.read(name))
        lock: bytes = stored.pop("lock").encode()
        if stored == {**asked, "digest": sha256_digest(lock)}:
            return lock
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, AttributeError):
        pass
    where = package.store.storage.url(name)
    raise PackageError(f"{where}: damaged", hint="remove it: the next build locks again")


def _write(package: Package, name: str, asked: dict[str, Any], lock: bytes, note: Note) -> None:
    kept = {**asked, "digest": sha256_digest(lock), "lock": lock.decode()}
    data = json.dumps(kept, indent=1, sort_keys=True).encode()
    try:
        package.store.storage.write(name, io.BytesIO(data))
    except StorageError as error:
        note(f"the image's lock stays on this machine: {error.message}")


def _solve(package: Package, options: BuildOptions, platform: str) -> bytes:
    from mfimage.capture.lock.indexes import IndexOptions
    from mfimage.capture.lock.solve import lock_for_target

    environment = package.spec.environment
    return lock_for_target(
        package.read(environment.lock),
        extra=options.image_target.requirements,
        python=environment.python,
        platform=platform,
        index=IndexOptions(
            index_url=split_index(options.index_url)[1] if options.index_url else None,
            extra_index_urls=tuple(options.extra_index_urls),
        ),
    )
