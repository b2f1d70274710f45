"""What Metaflow resolved for the task by ``@pypi`` or ``@conda``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from mfimage.capture.code.code_package import read_code_package
from mfimage.capture.environment.sources import conda
from mfimage.capture.environment.sources.base import Environment, Maker, Request
from mfimage.capture.environment.sources.conda import Resolution
from mfimage.capture.lock.settle import Lock
from mfimage.capture.lock.wheel_urls import lock_urls, parse_wheels
from mfimage.capture.task.datastore import local_roots
from mfimage.capture.task.task import TaskInfo
from mfimage.errors import LockError, TaskError
from mfimage.package.archive import members

# The field of a task's metadata that says which environment it ran in.
_FIELD = "conda_env_prefix"


def find(request: Request) -> Callable[[], Environment] | None:
    """Find what was resolved for the task."""
    resolution = request.resolution()
    return partial(_describe, request, resolution) if resolution else None


def _describe(request: Request, resolution: Resolution) -> Environment:
    """Lock its versions; ``@pypi``'s wheels as they are, where they fit the platform."""
    kind = f"@{resolution.kind}"
    maker = request.read(python=resolution.python)
    lock = _lock(maker, resolution, where=f"the step's {kind}")
    maker.check(lock, f"the step's {kind}", remedy="it, and run the flow again")
    return maker.environment(lock, resolution.kind, otherwise=f"resolved by {kind}")


def _lock(maker: Maker, resolution: Resolution, *, where: str) -> Lock:
    index, project = maker.request.index, maker.request.project
    if resolution.kind == "conda":
        packages = resolution.packages
        pins = conda.require_wheels(packages, maker.platform, index=index, directory=project)
        return maker.lock_pins(pins)
    if resolution.platform == conda.PLATFORMS[maker.platform.name]:
        parsed = lock_urls(resolution.urls, maker.platform, index=index, directory=project)
        return maker.noted(maker.settle(parsed, base=project, where=where))
    wheels, others = parse_wheels(resolution.urls)
    return maker.lock_pins([*(f"{each.name}=={each.version}" for each in wheels), *others])


def find_resolution(task: TaskInfo, *, platform: str) -> Resolution | None:
    """Return what was resolved for a task; None when it ran in no environment of its own."""
    prefix = task.metadata.get(_FIELD)
    if not prefix:
        return None
    graph = task.store.constant("_graph_info") or {}
    ran_on, environment = (prefix.rstrip("/").split("/"))[-2:]
    requested = _requested(graph, task.step)
    read = partial(conda.read_manifest, environment=environment, ran_on=ran_on, platform=platform)
    for data in _manifests(task):
        if found := read(data, requested=requested):
            return found
    raise LockError(
        f"task {task.pathspec} ran in the environment {environment} of @pypi or @conda, and no "
        "conda.manifest says what is in it, neither in its code package nor beside the datastore",
        hint="bind where the flow was run, or name the environment with environment=",
    )


def _manifests(task: TaskInfo) -> Iterator[bytes]:
    from metaflow.plugins.pypi import MAGIC_FILE

    # Its path in the code package depends on the version of Metaflow.
    data = None
    with suppress(TaskError):  # it is gone; the manifest may also be beside the datastore
        data = read_code_package(task)
    if data is not None:
        for name, content, _ in members(data, where=f"the code package of {task.pathspec}"):
            if PurePosixPath(name).name == MAGIC_FILE:
                yield content
    roots = [task.store.root] if task.store.kind == "local" else []
    for root in dict.fromkeys([*roots, *local_roots()]):
        file = Path(root, task.flow, MAGIC_FILE)
        if file.is_file():
            yield file.read_bytes()


def _requested(graph: Mapping[str, Any], step: str) -> Collection[str]:
    """Return the packages that the decorators of a step and of its flow name."""
    own = graph.get("steps", {}).get(step, {}).get("decorators", ())
    decorators = [*own, *graph.get("decorators", ())]
    return {
        name
        for each in decorators
        if str(each.get("name", "")).startswith("conda")
        for name in each.get("attributes", {}).get("packages") or ()
    }
