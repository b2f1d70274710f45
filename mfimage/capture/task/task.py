"""The task that a function is bound to, as binding needs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mfimage.capture.task.datastore import StoredArtifact, TaskStore, local_roots
from mfimage.capture.task.running import RunningStore, is_running, running_task
from mfimage.errors import TaskError


@dataclass(frozen=True, kw_only=True)
class TaskInfo:
    """A task that succeeded, or the one that runs now."""

    flow: str
    run: str
    step: str
    task: str
    store: TaskStore
    metadata: Mapping[str, str]

    @property
    def pathspec(self) -> str:
        """``Flow/run/step/task``."""
        return f"{self.flow}/{self.run}/{self.step}/{self.task}"

    @property
    def artifacts(self) -> Mapping[str, StoredArtifact]:
        """Its artifacts by name, without Metaflow's own, which start with ``_``."""
        return self.store.artifacts


def describe_task(task: Any, *, like: TaskInfo | None = None) -> TaskInfo:
    """Check that a Metaflow task succeeded, without unpickling, and find its artifacts."""
    # ``like`` is another task of the same flow, whose client of the datastore is used.
    running = running_task() if is_running(task.pathspec) else None
    task = running or task
    flow, run, step, task_id = task.pathspec.split("/")
    metadata = {key: str(value) for key, value in task.metadata_dict.items()}
    kind = RunningStore if running else TaskStore
    place = _datastore_of(task.pathspec, metadata)
    store = kind(task.pathspec, *place, like=like.store if like else None)
    if not store.succeeded():
        raise TaskError(f"task {task.pathspec} failed", hint="bind a task that succeeded")
    return TaskInfo(flow=flow, run=run, step=step, task=task_id, store=store, metadata=metadata)


def succeeded(task: Any) -> bool:
    """Return whether a Metaflow task succeeded."""
    try:
        describe_task(task)
    except TaskError:
        return False
    return True


def missing_artifact(task: TaskInfo, name: str) -> TaskError:
    """Return the error for an artifact that a task does not have."""
    names = ", ".join(sorted(task.artifacts)) or "none"
    if isinstance(task.store, RunningStore):
        return TaskError(
            f"the running task {task.pathspec} has no artifact {name!r} yet",
            hint=f"set self.{name} before the function is bound, or bind to the task of the step "
            f"that has it; so far there is: {names}",
        )
    return TaskError(f"task {task.pathspec} has no artifact {name!r}", hint=f"it has: {names}")


def _datastore_of(pathspec: str, metadata: Mapping[str, str]) -> tuple[str, str]:
    from metaflow.metaflow_config import DEFAULT_DATASTORE

    kind, root = metadata.get("ds-type", DEFAULT_DATASTORE), metadata.get("ds-root", "")
    if not root:
        reason = "its metadata does not say where its artifacts are"
        message = f"task {pathspec} has not finished: {reason}"
        raise TaskError(message, hint="wait for it, or name another")
    if kind == "local" and not Path(root).is_dir():
        root = next(iter(local_roots()), root)  # the project's folder was moved since the run
    return kind, root
