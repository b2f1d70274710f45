"""The lock that an image installs: what the function needs and what its target needs.

It is kept beside the package, so that everybody who builds from that root installs the same::

    functions/<name>/<digest>/locks/<key>.json
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mfimage.errors import MfimageError, PackageError, StorageError
from mfimage.image.plan.options import BuildOptions, split_index
from mfimage.package.spec import sha256_digest
from mfimage.package.storage.cache import cache_folder, remember
from mfimage.package.store import FILE_NAME, Package, package_name

_INDEX_VARIABLES = (
    "UV_DEFAULT_INDEX",
    "UV_INDEX",
    "UV_INDEX_URL",
    "UV_EXTRA_INDEX_URL",
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
)
Say = Callable[[str], None]


def target_lock(package: Package, options: BuildOptions, platform: str, say: Say) -> bytes:
    """Return the lock of an image for a platform: the package's, else a new one.

    Parameters
    ----------
    package : Package
        The function.
    options : BuildOptions
        What was asked; its indexes are asked for what is not locked yet.
    platform : str
        As ``linux/amd64``.
    say : callable
        Told when the lock cannot be kept beside the package.

    Raises
    ------
    MfimageError
        When there is no solution, or what is kept is damaged.
    """
    asked = _asked(package, options, platform)
    kept = _beside(package, asked)
    if (lock := _read(package, kept, asked)) is not None:
        return lock
    cached = _cached(asked)
    if cached.is_file() and not options.no_cache:
        lock = cached.read_bytes()
    else:
        lock = _solve(package, options, platform)
        remember(cached, lock)
    _write(package, kept, asked, lock, say)
    # Somebody else may have kept another one meanwhile: that is everybody's then.
    with contextlib.suppress(StorageError):
        return _read(package, kept, asked) or lock
    return lock


def _asked(package: Package, options: BuildOptions, platform: str) -> dict[str, Any]:
    """Return what a lock answers, as it stands in the file."""
    environment = package.spec.environment
    return {
        "function_lock": environment.lock.digest,
        "requirements": list(options.requirements),
        "python": environment.python_minor,
        "platform": platform,
        "index_urls": [url for url in (options.index_url, *options.extra_index_urls) if url],
    }


def _beside(package: Package, asked: dict[str, Any]) -> str:
    folder = package_name(package.spec).removesuffix(f"/{FILE_NAME}")
    return f"{folder}/locks/{_digest(asked)[:32]}.json"


def _digest(value: Any) -> str:
    return sha256_digest(json.dumps(value, sort_keys=True).encode()).removeprefix("sha256:")


def _cached(asked: dict[str, Any]) -> Path:
    # Variables name indexes, too; only their digest is kept.
    variables = [os.environ.get(variable) for variable in _INDEX_VARIABLES]
    return cache_folder() / "locks" / _digest([asked, variables])


def _read(package: Package, name: str, asked: dict[str, Any]) -> bytes | None:
    try:
        plain = json.loads(package.store.storage.read(name))
        lock: bytes = plain.pop("lock").encode()
        digest = plain.pop("digest")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, AttributeError):
        raise _damaged(package, name) from None
    if plain != asked or digest != sha256_digest(lock):
        raise _damaged(package, name)
    return lock


def _damaged(package: Package, name: str) -> MfimageError:
    where = package.store.storage.url(name)
    return PackageError(f"{where}: damaged", hint="remove it: the next build locks anew")


def _write(package: Package, name: str, asked: dict[str, Any], lock: bytes, say: Say) -> None:
    kept = {**asked, "digest": sha256_digest(lock), "lock": lock.decode()}
    data = json.dumps(kept, indent=1, sort_keys=True).encode()
    try:
        package.store.storage.write(name, io.BytesIO(data))
    except StorageError as error:
        say(f"the target's lock stays on this machine: {error.message}")


def _solve(package: Package, options: BuildOptions, platform: str) -> bytes:
    from mfimage.capture.lock.solve import IndexOptions, lock_for_target

    environment = package.spec.environment
    return lock_for_target(
        package.read(environment.lock),
        extra=options.requirements,
        python=environment.python,
        platform=platform,
        index=IndexOptions(
            index_url=split_index(options.index_url)[1] if options.index_url else None,
            extra_index_urls=tuple(options.extra_index_urls),
        ),
    )
