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
from typing import TYPE_CHECKING, Any

from mfimage.errors import PackageError, StorageError
from mfimage.image.plan.options import BuildOptions, split_index
from mfimage.image.plan.subject import BuildSource
from mfimage.package.spec import sha256_digest
from mfimage.package.storage.cache import SCRATCH, cache_folder, remember

if TYPE_CHECKING:
    from mfimage.capture.lock.indexes import IndexOptions

_INDEX_VARIABLES = (
    "UV_DEFAULT_INDEX",
    "UV_INDEX",
    "UV_INDEX_URL",
    "UV_EXTRA_INDEX_URL",
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
)
Note = Callable[[str], None]


def target_lock(source: BuildSource, options: BuildOptions, platform: str, note: Note) -> bytes:
    """Return the lock of an image for a platform: the stored one, else a new one."""
    # ``note`` is called with a line if the lock cannot be stored beside the package.
    asked = _asked(source, options, platform)
    kept = _kept(source, asked)
    if (lock := _read(source, kept, asked)) is not None:
        return lock
    # Variables name indexes too; they may contain credentials, so only a digest is kept.
    variables = [os.environ.get(variable) for variable in _INDEX_VARIABLES]
    cached = cache_folder() / "locks" / _digest([asked, variables])
    if cached.is_file() and not options.no_cache:
        lock = cached.read_bytes()
    else:
        lock = _solve(source, options, platform)
        remember(cached, lock)
    if SCRATCH.get():
        return lock
    _write(source, kept, asked, lock, note)
    # Another build may have stored one meanwhile: then that one counts.
    with contextlib.suppress(StorageError):
        return _read(source, kept, asked) or lock
    return lock


def _asked(source: BuildSource, options: BuildOptions, platform: str) -> dict[str, Any]:
    environment = source.subject.environment
    return {
        "function_lock": environment.lock.digest,
        "requirements": list(options.image_target.requirements),
        "python": environment.python_minor,
        "platform": platform,
        "index_urls": [url for url in (options.index_url, *options.extra_index_urls) if url],
    }


def _kept(source: BuildSource, asked: dict[str, Any]) -> str:
    """Return where a lock is stored: beside the package."""
    return f"{source.folder}/locks/{_digest(asked)[:32]}.json"


def _digest(value: Any) -> str:
    return sha256_digest(json.dumps(value, sort_keys=True).encode()).removeprefix("sha256:")


def _read(source: BuildSource, name: str, asked: dict[str, Any]) -> bytes | None:
    try:
        stored = json.loads(source.store.storage.read(name))
        lock: bytes = stored.pop("lock").encode()
        if stored == {**asked, "digest": sha256_digest(lock)}:
            return lock
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, AttributeError):
        pass
    where = source.store.storage.url(name)
    raise PackageError(f"{where}: damaged", hint="remove it: the next build locks again")


def _write(source: BuildSource, name: str, asked: dict[str, Any], lock: bytes, note: Note) -> None:
    kept = {**asked, "digest": sha256_digest(lock), "lock": lock.decode()}
    data = json.dumps(kept, indent=1, sort_keys=True).encode()
    try:
        source.store.storage.write(name, io.BytesIO(data))
    except StorageError as error:
        note(f"the image's lock stays on this machine: {error.message}")


def _solve(source: BuildSource, options: BuildOptions, platform: str) -> bytes:
    from mfimage.capture.lock.solve import lock_for_target

    environment = source.subject.environment
    return lock_for_target(
        source.read_lock(),
        extra=options.image_target.requirements,
        python=environment.python,
        platform=platform,
        index=index_options(options),
    )


def index_options(options: BuildOptions) -> IndexOptions:
    """Return the indexes that are asked when a lock is solved."""
    from mfimage.capture.lock.indexes import IndexOptions

    return IndexOptions(
        index_url=split_index(options.index_url)[1] if options.index_url else None,
        extra_index_urls=tuple(options.extra_index_urls),
    )
