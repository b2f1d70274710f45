"""What Metaflow resolved for the task by ``@pypi`` or ``@conda``."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mfimage.capture.code.code_package import read_code_package
from mfimage.capture.environment.sources.base import Environment, Maker, Request
from mfimage.capture.environment.sources.conda import (
    PLATFORMS,
    Resolution,
    read_manifest,
    require_wheels,
)
from mfimage.capture.lock.solve import Lock
from mfimage.capture.lock.wheel_urls import lock_urls, parse_wheels
from mfimage.capture.task.datastore import local_roots
from mfimage.capture.task.task import TaskInfo
from mfimage.errors import LockError, TaskError
from mfimage.package.archive import members

# The field of a task's metadata that says which environment it ran in.
_FIELD = "conda_env_prefix"


def find(request: Request) -> Resolved | None:
    """Find what was resolved for the task."""
    resolution = request.resolution()
    return Resolved(resolution=resolution) if resolution else None


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A resolved environment."""

    resolution: Resolution

    def describe(self, request: Request) -> Environment:
        """Lock its versions; ``@pypi``'s wheels as they are, where they fit the platform."""
        kind = f"@{self.resolution.kind}"
        maker = request.read(python=self.resolution.python)
        lock = self._lock(maker, where=f"the step's {kind}")
        maker.check(lock, f"the step's {kind}", remedy="it, and run the flow again")
        return maker.environment(lock, self.resolution.kind, otherwise=f"resolved by {kind}")

    def _lock(self, maker: Maker, *, where: str) -> Lock:
        resolution, index, project = self.resolution, maker.request.index, maker.request.project
        if resolution.kind == "conda":
            packages = resolution.packages
            return maker.lock_pins(
                require_wheels(packages, maker.platform, index=index, directory=project)
            )
        if resolution.platform == PLATFORMS[maker.platform.name]:
            parsed = lock_urls(resolution.urls, maker.platform, index=index, directory=project)
            return maker.noted(maker.settle(parsed, base=project, where=where))
        wheels, others = parse_wheels(resolution.urls)
        return maker.lock_pins([*(wheel.pin for wheel in wheels), *others])


def find_resolution(task: TaskInfo, *, platform: str) -> Resolution | None:
    """Return what was resolved for a task; None when it ran in no environment of its own.

    The manifest is in the task's code package, or beside a local datastore.
    """
    prefix = task.metadata.get(_FIELD)
    if not prefix:
        return None
    graph = task.store.constant("_graph_info") or {}
    ran_on, environment = (prefix.rstrip("/").split("/"))[-2:]
    for data in _manifests(task):
        found = read_manifest(
            data,
            environment=environment,
            ran_on=ran_on,
            platform=platform,
            requested=_requested(graph, task.step),
        )
        if found:
            return found
    raise LockError(
        f"task {task.pathspec} ran in the environment {environment} of @pypi or @conda, and no "
        "conda.manifest says what is in it, neither in its code package nor beside the datastore",
        hint="bind where the flow was run, or name the environment with environment=",
    )


def _manifests(task: TaskInfo) -> Iterator[bytes]:
    yield from _packaged(task)
    roots = [task.store.root] if task.store.kind == "local" else []
    for root in dict.fromkeys([*roots, *local_roots()]):
        file = Path(root, task.flow, _name())
        if file.is_file():
            yield file.read_bytes()


def _name() -> str:
    from metaflow.plugins.pypi import MAGIC_FILE

    return str(MAGIC_FILE)


def _packaged(task: TaskInfo) -> Iterator[bytes]:
    try:
        data = read_code_package(task)
    except TaskError:
        return  # it is gone; the manifest may also be beside the datastore
    if data is None:
        return
    # Its path in the package depends on the version of Metaflow.
    for name, content, _ in members(data, where=f"the code package of {task.pathspec}"):
        if PurePosixPath(name).name == _name():
            yield content


def _requested(graph: Mapping[str, Any], step: str) -> Collection[str]:
    """Return the packages that the decorators of a step and of its flow name."""
    decorators = [
        *graph.get("steps", {}).get(step, {}).get("decorators", ()),
        *graph.get("decorators", ()),
    ]
    return {
        name
        for each in decorators
        if str(each.get("name", "")).startswith("conda")
        for name in each.get("attributes", {}).get("packages") or ()
    }
