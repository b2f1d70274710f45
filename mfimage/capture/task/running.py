"""The task that is running now: its artifacts so far, as its datastore will keep them.

A function bound in a step gets what the step has set. Metaflow stores that when the step ends; here
it is stored at once, by Metaflow's own code and under its final key, so that each blob is written
once, and binding the finished task gives the same package.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

from mfimage.capture.task.datastore import StoredArtifact, TaskStore, describe_artifact
from mfimage.errors import TaskError


@dataclass(frozen=True, kw_only=True)
class RunningTask:
    """The running task as a ``metaflow.Task``, which needs a metadata service in a remote step."""

    pathspec: str
    metadata_dict: Mapping[str, str]


def running_task() -> RunningTask | None:
    """Return the task that this process runs, if it runs one."""
    from metaflow import current, metaflow_version

    pathspec = current.pathspec
    if not current.is_running_flow or pathspec is None:
        return None
    version, script = metaflow_version.get_version(), Path(sys.argv[0]).name
    known = {"user": current.username, "metaflow_version": version, "script-name": script}
    datastore = _running_flow()._datastore
    # A step run by `spin` reads the artifacts of earlier steps, and stores none.
    datastore = getattr(datastore, "orig_datastore", datastore)
    place = {"ds-type": datastore.TYPE, "ds-root": datastore.parent_datastore.datastore_root}
    return RunningTask(pathspec=pathspec, metadata_dict={**known, **_registered(pathspec), **place})


def _registered(pathspec: str) -> dict[str, str]:
    from metaflow import Metaflow
    from metaflow.exception import MetaflowException

    provider: Any = Metaflow().metadata
    try:
        found = provider.get_object("task", "metadata", None, None, *pathspec.split("/")) or []
    except MetaflowException:
        return {}
    latest = sorted(found, key=lambda each: each.get("ts_epoch") or 0)
    return {each["field_name"]: each["value"] for each in latest}


def is_running(pathspec: str) -> bool:
    """Return whether a task is the one that this process runs."""
    from metaflow import current

    return bool(current.is_running_flow) and current.pathspec == pathspec


class RunningStore(TaskStore):
    """The artifacts that the running task has so far."""

    def _open_task(self, run: str, step: str, task: str) -> None:
        from metaflow import current

        # Open for writing; it is never marked as done, so only blobs are written.
        self._task = self._flow.get_task_datastore(
            run, step, task, attempt=current.retry_count, mode="w"
        )
        flow = _running_flow()
        if flow._datastore is not None:  # what came from the steps before, and parameters
            self._task._objects.update(flow._datastore._objects)
            self._task._info.update(flow._datastore._info)
        given = getattr(flow._datastore, "spin_artifacts", {})
        self.artifacts = _SoFar(self, {**given, **_values(flow)})

    def succeeded(self) -> bool:
        """Return True: it has not failed yet."""
        return True

    def save(self, name: str, value: Any) -> None:
        """Store what the step has set."""
        try:
            self._task.save_artifacts([(name, value)])
        except Exception as error:
            raise TaskError(
                f"artifact {name!r} of the running task {self.pathspec} cannot be stored: {error}",
                hint="set what can be pickled",
            ) from error


class _SoFar(Mapping[str, StoredArtifact]):
    """Artifacts by name; one that the step has set is stored when it is asked for."""

    def __init__(self, store: RunningStore, values: dict[str, Any]) -> None:
        self._store, self._values = store, values
        stored = store._task._objects
        self._names = sorted({*values, *(name for name in stored if not name.startswith("_"))})

    def __getitem__(self, name: str) -> StoredArtifact:
        if name not in self._names:
            raise KeyError(name)
        if name in self._values:
            self._store.save(name, self._values.pop(name))
        task = self._store._task
        return describe_artifact(task._objects[name], task._info.get(name, {}))

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _running_flow() -> Any:
    """Return the flow object whose step runs."""
    from metaflow import FlowSpec, current

    # `current.graph` is made from it. Frames of another thread do not show it, and the oldest
    # Metaflow that we support has no `system_context`.
    found = (vars(type(current))["graph"].fget.__defaults__ or (None,))[0]
    if not isinstance(found, FlowSpec):
        message = f"the running task {current.pathspec} cannot be inspected with this Metaflow"
        raise TaskError(message, hint="bind in a later step, to the task of this one")
    return found


def _values(flow: Any) -> dict[str, Any]:
    """Return what Metaflow will store of a flow object when its step ends."""
    from metaflow import Parameter

    found = {}
    for name in dir(flow):
        if name.startswith("_") or name in flow._EPHEMERAL:
            continue
        if isinstance(getattr(type(flow), name, None), property):  # parameters are stored already
            continue
        value = getattr(flow, name)
        if not isinstance(value, MethodType | FunctionType | Parameter):
            found[name] = value
    return found
