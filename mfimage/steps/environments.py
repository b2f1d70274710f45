"""Declared environments, solved once on this machine: their locks and wheels are kept."""

from __future__ import annotations

import json
from pathlib import Path

from mfimage.package.spec import BlobRef, EnvironmentSpec
from mfimage.package.storage.cache import SCRATCH, cache_folder, remember
from mfimage.package.store import PackageStore
from mfimage.steps.declared import Declared

_FOLDER = "steps"


def step_store() -> PackageStore:
    """Return the root with the blobs of steps: in the cache."""
    return PackageStore((SCRATCH.get() or cache_folder()) / _FOLDER)


def solved(declared: Declared, store: PackageStore, *, fresh: bool = False) -> EnvironmentSpec:
    """Return an environment with its lock and wheels in ``store``; ``fresh`` solves it again."""
    digest = declared.digest.removeprefix("sha256:")
    path = cache_folder() / _FOLDER / "environments" / f"{digest}.json"
    if not fresh and (known := _known(path, store)):
        return known
    lock = declared.lock()
    made = EnvironmentSpec(
        python=declared.python,
        platform=declared.platform,
        source=declared.source,
        lock=store.put_bytes(lock.data),
        wheels={name: store.put_file(file) for name, file in lock.wheels.items()},
    )
    remember(path, json.dumps(made.to_dict()).encode())
    return made


def _known(path: Path, store: PackageStore) -> EnvironmentSpec | None:
    try:
        found = json.loads(path.read_bytes())
        found["lock"] = BlobRef(**found["lock"])
        found["wheels"] = {name: BlobRef(**ref) for name, ref in found["wheels"].items()}
        made = EnvironmentSpec(**found)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    refs = (made.lock, *made.wheels.values())
    return made if all(store.holds(ref) for ref in refs) else None
