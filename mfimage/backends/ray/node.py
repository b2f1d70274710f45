"""A function on a node of a Ray cluster: in the actor's process, or in one beside it."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from mfimage.backends.code_cache import code_folder
from mfimage.backends.satisfies import difference
from mfimage.errors import (
    BackendError,
    FunctionError,
    InputError,
    LockError,
    MfimageError,
    PackageError,
)
from mfimage.function import json as json_values
from mfimage.package.spec import BlobRef, FunctionSpec, parse_spec
from mfimage.package.storage.cache import cache_folder, make_once
from mfimage.package.store import Package, PackageStore, blob_name, open_package
from mfimage.runtime.layout import function_folder
from mfimage.runtime.loading.loader import load_function
from mfimage.runtime.ray_worker import FunctionActor
from mfimage.runtime.worker.exceptions import describe, rebuild
from mfimage.runtime.worker.frames import BATCH, CALL, DIED, FAILURE, PARTS, join_parts
from mfimage.runtime.worker.process import show_logs

logger = logging.getLogger("mfimage")
READY, FAILED, NEEDS_BLOBS = "ready", "failed", "needs"
_MAX_MICROS = (1 << 32) - 1


class FunctionWorker:
    """As ``FunctionActor``, in a worker process: for a node that does not satisfy the lock."""

    def __init__(self, package: Package, start_timeout: float) -> None:
        from mfimage.backends.process.environments import worker_launch
        from mfimage.backends.process.pool import WorkerPool

        launch = worker_launch(package, timeout=None, start_timeout=start_timeout)
        self._pool = WorkerPool(launch, 1)
        self.data = self._pool.data()

    def answer(self, kind: int, payload: bytes) -> tuple[int, bytes]:
        """Return the reply to a frame; ``DIED`` when the process did."""
        try:
            frame = self._pool.call(kind, payload)
        except BackendError as error:
            return DIED, describe(error)
        return frame.kind, frame.payload


class RayNode:
    """What an actor does; ``ActorSet`` makes its configuration."""

    def __init__(self, config: bytes) -> None:
        self._config = json.loads(config)
        self._function: FunctionActor | FunctionWorker | None = None
        self._failure: bytes | None = None
        self.name = str(json.loads(self._config["spec"])["name"])

    @property
    def is_loaded(self) -> bool:
        """Whether ``load`` has loaded the function."""
        return self._function is not None

    def load(self, blobs: Mapping[str, Any] | None) -> bytes:
        """Load the function if it is not loaded, from ``blobs`` if given; return JSON."""
        try:
            if self._function is None:
                show_logs(self._config["log_level"])
                self._function = self._open(blobs)
        except _Unreadable as error:
            return json.dumps({"status": NEEDS_BLOBS, "why": str(error)}).encode()
        except BaseException as error:  # noqa: BLE001  (raised by the caller)
            self._failure = describe(_explain(error))
            return json.dumps({"status": FAILED, "error": self._failure.decode()}).encode()
        return json.dumps({"status": READY, "data": self._function.data}).encode()

    def answer(self, kind: int, payload: bytes, size: int = 0) -> tuple[int, int, bytes]:
        """Return a reply's kind, microseconds and payload; ``size``: records at a time, 0: all."""
        if self._function is None:
            return DIED, 0, self._failure or describe(BackendError(f"{self.name} is not loaded"))
        began = perf_counter_ns()
        if size and kind == BATCH and payload.count(b"\n") >= size:
            found, reply = _in_parts(self._function, payload, size)
        else:
            found, reply = self._function.answer(kind, payload)
        return found, min((perf_counter_ns() - began) // 1000, _MAX_MICROS), reply

    def value(self, record: Any, *, is_json: bool) -> Any:
        """Return the result for one record as a value; exceptions can be pickled."""
        if not is_json:
            root = self._function.data if self._function else ""
            record = json_values.dumps(record, root=root, error=InputError)
        kind, _, reply = self.answer(CALL, record)
        if kind in (FAILURE, DIED):
            raise _portable(rebuild(reply))
        return json_values.loads(reply)

    def _open(self, blobs: Mapping[str, Any] | None) -> FunctionActor | FunctionWorker:
        config = self._config
        spec = parse_spec(config["spec"].encode(), where=config["reference"])
        if config["placement"] == "image":
            return _of_image(spec)
        package = find_package(spec, config["reference"], blobs)
        try:
            reason = difference(package)
        except LockError as error:
            reason = f"its lock cannot be read: {error}"
        if reason is not None:
            logger.info("%s runs in an interpreter of its own: %s", spec.name, reason)
            return FunctionWorker(package, config["start_timeout"])
        code = code_folder(package)
        live = load_function(spec, code=code, read_blob=package.read, dedicated=True)
        return FunctionActor.of(live)


def _of_image(spec: FunctionSpec) -> FunctionActor:
    actor = FunctionActor()
    if actor.digest != spec.digest:
        raise BackendError(
            f"{function_folder()} on node {os.uname().nodename} has {actor.name} "
            f"{actor.digest[:19]}, expected {spec.name} {spec.digest[:19]}",
            hint="start the node's Ray from the image of the same function, or omit "
            "placement='image'",
        )
    return actor


def _in_parts(
    function: FunctionActor | FunctionWorker, payload: bytes, size: int
) -> tuple[int, bytes]:
    lines = payload.split(b"\n")
    parts = []
    for place in range(0, len(lines), size):
        part = function.answer(BATCH, b"\n".join(lines[place : place + size]))
        if part[0] == DIED:
            return part
        parts.append(part)
    return PARTS, join_parts(parts)


class _Unreadable(Exception):
    """The package cannot be read on this node."""


def find_package(spec: FunctionSpec, reference: str, blobs: Mapping[str, Any] | None) -> Package:
    """Return a package that this node can read: at its reference, or made of ``blobs``."""
    if blobs is not None:
        return _unpack(spec, blobs)
    try:
        package = open_package(reference)
        package.read(spec.code)  # a root may be incomplete, as on a disk that was copied
    except (MfimageError, OSError, ImportError) as error:
        raise _Unreadable(f"{type(error).__name__}: {error}") from error
    if package.spec.digest != spec.digest:
        raise _Unreadable(f"{reference} is another package here")
    return package


def all_blobs(spec: FunctionSpec) -> dict[str, BlobRef]:
    """Return a package's blobs by their hexadecimal digest."""
    environment = spec.environment
    refs = [spec.code, environment.lock, *environment.wheels.values(), *spec.artifacts.values()]
    return {ref.hex: ref for ref in refs}


def _unpack(spec: FunctionSpec, blobs: Mapping[str, Any]) -> Package:
    """Return the package in the cache of this node, where the first actor stores it."""

    def fill(fresh: Path) -> None:
        import ray

        store = PackageStore(fresh)
        for name, ref in all_blobs(spec).items():
            if store.put_bytes(ray.get(blobs[name])).hex != ref.hex:
                raise PackageError(f"{spec.name}: blob {name} arrived damaged")
        store.write(spec)

    def is_whole(root: Path) -> bool:
        # By size: contents are verified where they are read.
        files = {root / blob_name(ref): ref.size for ref in all_blobs(spec).values()}
        return all(file.is_file() and file.stat().st_size == files[file] for file in files)

    digest = spec.digest.removeprefix("sha256:")
    root = make_once(cache_folder() / "ray" / "packages" / digest, fill, is_whole)
    return open_package(PackageStore(root).write(spec))


def _explain(error: BaseException) -> BaseException:
    """Say on which node a module is missing: the caller may have it."""
    if isinstance(error, ModuleNotFoundError):
        return BackendError(
            f"node {os.uname().nodename} has no module {error.name!r}, which mfimage needs there",
            hint="install mfimage on the cluster's nodes, or run them from the function's image",
        )
    return error


def _portable(error: Exception) -> Exception:
    """Return an exception that can be unpickled wherever mfimage is installed."""
    kind = type(error)
    if kind.__module__.partition(".")[0] in ("builtins", "mfimage"):
        return error
    portable = FunctionError.like(kind.__module__, kind.__qualname__, str(error))
    portable.__cause__ = error.__cause__
    return portable
