"""Finds what Metaflow resolved for a task by ``@pypi`` or ``@conda``."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from mfimage.capture.code.code_package import read_code_package
from mfimage.capture.environment.conda import Resolution, read_manifest
from mfimage.capture.task.datastore import local_roots
from mfimage.capture.task.task import TaskInfo
from mfimage.errors import LockError, TaskError
from mfimage.package.archive import members

# The field of a task's metadata that says which environment it ran in.
FIELD = "conda_env_prefix"


def find_resolution(
    task: TaskInfo, *, platform: str, graph: Mapping[str, Any] = {}
) -> Resolution | None:
    """Return what was resolved for a task; None when it ran in no environment of its own.

    It stands in the manifest inside the task's code package, else in the one that Metaflow keeps
    beside a local datastore.

    Parameters
    ----------
    task : TaskInfo
        The task; its metadata has the environment's id.
    platform : str
        What the environment is wanted for.
    graph : mapping
        The task's artifact ``_graph_info``, if it has one: which packages its step names.

    Raises
    ------
    LockError
        When no manifest knows the environment.
    """
    prefix = task.metadata.get(FIELD)
    if not prefix:
        return None
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
        return  # it is gone; the manifest may also stand beside the datastore
    if data is None:
        return
    # Where it stands inside has changed between versions of Metaflow.
    for name, content, _ in members(data, where=f"the code package of {task.pathspec}"):
        if PurePosixPath(name).name == _name():
            yield content


def _requested(graph: Mapping[str, Any], step: str) -> Collection[str]:
    """Return the packages that a step's decorators name, and its flow's."""
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
