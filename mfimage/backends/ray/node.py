"""A function on a node of a Ray cluster: in the actor's process, or in one of its own."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Protocol

from mfimage.backends.code_cache import code_folder
from mfimage.backends.satisfies import difference
from mfimage.errors import BackendError, FunctionError, LockError, MfimageError, PackageError
from mfimage.package.spec import BlobRef, FunctionSpec, parse_spec
from mfimage.package.storage.cache import cache_folder, make_once
from mfimage.package.store import Package, PackageStore, blob_name, open_package
from mfimage.runtime.worker.exceptions import describe, rebuild
from mfimage.runtime.worker.frames import BATCH, CALL, DIED, FAILURE, PARTS, join_parts

logger = logging.getLogger("mfimage")
READY, FAILED, NEEDS = "ready", "failed", "needs"
_LONGEST = (1 << 32) - 1


class Runner(Protocol):
    """What runs the function: ``FunctionActor`` in this process, or ``Bridge``."""

    @property
    def data(self) -> str:
        """Name of the function's first parameter."""

    def answer(self, kind: int, payload: bytes) -> tuple[int, bytes]:
        """Return the answer to a frame, as a kind and a payload."""


class Bridge:
    """The function in an interpreter of its own, where this one is not what it is locked to."""

    def __init__(self, package: Package, start_timeout: float) -> None:
        from mfimage.backends.process.backend import ProcessOptions, launch_of
        from mfimage.backends.process.pool import WorkerPool

        self._pool = WorkerPool(launch_of(package, ProcessOptions(start_timeout=start_timeout)), 1)
        worker = self._pool.take()
        assert worker is not None
        self.data = worker.data or ""
        self._pool.give_back(worker)

    def answer(self, kind: int, payload: bytes) -> tuple[int, bytes]:
        """Return its answer; ``DIED`` when its process did."""
        try:
            frame = self._pool.call(kind, payload)
        except BackendError as error:
            return DIED, describe(error)
        return frame.kind, frame.payload


class RayNode:
    """What an actor does.

    Parameters
    ----------
    config : bytes
        JSON: ``spec``, ``reference``, ``placement``, ``log_level``, ``start_timeout``.
    """

    def __init__(self, config: bytes) -> None:
        self._config = json.loads(config)
        self._runner: Runner | None = None
        self._failure: bytes | None = None
        self.name = str(json.loads(self._config["spec"])["name"])

    @property
    def is_loaded(self) -> bool:
        """Whether ``load`` has loaded the function."""
        return self._runner is not None

    def load(self, blobs: Mapping[str, Any] | None) -> bytes:
        """Load the function unless that was done; return JSON that tells how it went.

        Parameters
        ----------
        blobs : mapping of str to ObjectRef, or None
            The package's blobs, when they are known to be needed.
        """
        from mfimage.runtime.worker.process import show_logs

        try:
            if self._runner is None:
                show_logs(self._config["log_level"])
                self._runner = self._open(blobs)
        except _Unreachable as error:
            return json.dumps({"status": NEEDS, "why": str(error)}).encode()
        except BaseException as error:  # noqa: BLE001  (the caller raises it)
            self._failure = describe(_explained(error))
            return json.dumps({"status": FAILED, "error": self._failure.decode()}).encode()
        return json.dumps({"status": READY, "data": self._runner.data}).encode()

    def answer(self, kind: int, payload: bytes, size: int = 0) -> tuple[int, int, bytes]:
        """Return the answer to a frame: its kind, the microseconds it took, its payload.

        Parameters
        ----------
        size : int
            How many records the function gets at a time; 0: all.
        """
        if self._runner is None:
            return DIED, 0, self._failure or describe(BackendError(f"{self.name} is not loaded"))
        began = perf_counter_ns()
        if size and kind == BATCH and payload.count(b"\n") >= size:
            found, answer = _in_parts(self._runner, payload, size)
        else:
            found, answer = self._runner.answer(kind, payload)
        return found, min((perf_counter_ns() - began) // 1000, _LONGEST), answer

    def value(self, record: Any, *, is_json: bool) -> Any:
        """Return the result for one record as a value, or raise what can be sent anywhere."""
        from mfimage.errors import InputError
        from mfimage.function import json as json_values

        if not is_json:
            root = self._runner.data if self._runner else ""
            record = json_values.dumps(record, root=root, error=InputError)
        kind, _, answer = self.answer(CALL, record)
        if kind in (FAILURE, DIED):
            raise _portable(rebuild(answer))
        return json_values.loads(answer)

    def _open(self, blobs: Mapping[str, Any] | None) -> Runner:
        from mfimage.runtime.loading.loader import load_function
        from mfimage.runtime.ray_worker import FunctionActor

        config = self._config
        spec = parse_spec(config["spec"].encode(), where=config["reference"])
        if config["placement"] == "image":
            return self._of_image(spec)
        package = find_package(spec, config["reference"], blobs)
        reason = _difference(package)
        if reason is not None:
            logger.info("%s runs in an interpreter of its own: %s", spec.name, reason)
            return Bridge(package, config["start_timeout"])
        read_blob = package.read
        code = code_folder(package)
        live = load_function(spec, code=code, read_blob=read_blob, dedicated=True)
        return FunctionActor.of(live)

    def _of_image(self, spec: FunctionSpec) -> Runner:
        from mfimage.runtime.layout import function_folder
        from mfimage.runtime.ray_worker import FunctionActor

        actor = FunctionActor()
        if actor.digest != spec.digest:
            raise BackendError(
                f"{function_folder()} on node {os.uname().nodename} holds {actor.name} "
                f"{actor.digest[:19]}, and {spec.name} {spec.digest[:19]} is wanted",
                hint="start the node's Ray from the image of the same function, or leave out "
                "placement='image'",
            )
        return actor


def _in_parts(runner: Runner, payload: bytes, size: int) -> tuple[int, bytes]:
    lines = payload.split(b"\n")
    parts = []
    for place in range(0, len(lines), size):
        part = runner.answer(BATCH, b"\n".join(lines[place : place + size]))
        if part[0] == DIED:
            return part
        parts.append(part)
    return PARTS, join_parts(parts)


class _Unreachable(Exception):
    """The package cannot be read on this node."""


def _difference(package: Package) -> str | None:
    try:
        return difference(package)
    except LockError as error:
        return f"its lock cannot be read: {error}"


def find_package(spec: FunctionSpec, reference: str, blobs: Mapping[str, Any] | None) -> Package:
    """Return a package that this node can read: at its reference, or out of ``blobs``.

    Raises
    ------
    _Unreachable
        When there are no blobs, and nothing that can be read at the reference.
    """
    if blobs is not None:
        return _unpacked(spec, blobs)
    try:
        package = open_package(reference)
        package.read(spec.code)  # a root may be there by half, as on a disk that was copied
    except (MfimageError, OSError, ImportError) as error:
        raise _Unreachable(f"{type(error).__name__}: {error}") from error
    if package.spec.digest != spec.digest:
        raise _Unreachable(f"{reference} is another package here")
    return package


def all_blobs(spec: FunctionSpec) -> dict[str, BlobRef]:
    """Return a package's blobs by their hexadecimal digest."""
    environment = spec.environment
    refs = [spec.code, environment.lock, *environment.wheels.values(), *spec.artifacts.values()]
    return {ref.hex: ref for ref in refs}


def _unpacked(spec: FunctionSpec, blobs: Mapping[str, Any]) -> Package:
    """Return the package, in the cache of this node: the first actor puts it there."""

    def fill(fresh: Path) -> None:
        import ray

        store = PackageStore(fresh)
        for name, ref in all_blobs(spec).items():
            found = store.put_bytes(ray.get(blobs[name]))
            if found.hex != ref.hex:
                raise PackageError(f"{spec.name}: blob {name} did not arrive as it was sent")
        store.write(spec)

    def is_whole(root: Path) -> bool:
        # By their sizes: whoever reads one verifies it.
        files = {root / blob_name(ref): ref.size for ref in all_blobs(spec).values()}
        return all(file.is_file() and file.stat().st_size == files[file] for file in files)

    digest = spec.digest.removeprefix("sha256:")
    root = make_once(cache_folder() / "ray" / "packages" / digest, fill, is_whole)
    store = PackageStore(root)
    return open_package(store.write(spec))


def _explained(error: BaseException) -> BaseException:
    """Say where what is missing is missing: the caller may have it."""
    if isinstance(error, ModuleNotFoundError):
        return BackendError(
            f"node {os.uname().nodename} has no module {error.name!r}, which mfimage needs there",
            hint="install mfimage on the cluster's nodes, or run them from the function's image",
        )
    return error


def _portable(error: Exception) -> Exception:
    """Return an exception that can be unpickled wherever mfimage is."""
    kind = type(error)
    if kind.__module__.partition(".")[0] in ("builtins", "mfimage"):
        return error
    cause = error.__cause__
    error = FunctionError.like(kind.__module__, kind.__qualname__, str(error))
    error.__cause__ = cause
    return error
