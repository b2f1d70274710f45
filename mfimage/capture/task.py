"""Which task a function is bound to, read through Metaflow's client."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mfimage.errors import TaskError


@dataclass(frozen=True, kw_only=True)
class StoredArtifact:
    """Where the datastore keeps an artifact.

    Attributes
    ----------
    key : str
        Its key in the content-addressed store.
    encoding, type, info
        As in ``ArtifactRef``; ``encoding`` without the store's own compression.
    """

    key: str
    encoding: str
    type: str
    info: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class TaskInfo:
    """A finished task and what binding needs to know of it.

    Attributes
    ----------
    flow, run, step, task : str
        The four parts of its pathspec.
    datastore : str
        Type of its datastore, as ``local`` or ``s3``.
    root : str
        The datastore's root folder or URL.
    artifacts : mapping of name to StoredArtifact
        Without Metaflow's own, which start with ``_``.
    metadata : mapping of str to str
        The task's metadata fields.
    """

    flow: str
    run: str
    step: str
    task: str
    datastore: str
    root: str
    artifacts: Mapping[str, StoredArtifact]
    metadata: Mapping[str, str]

    @property
    def pathspec(self) -> str:
        """``Flow/run/step/task``."""
        return f"{self.flow}/{self.run}/{self.step}/{self.task}"


def find_task(text: str, *, namespace: str | None = None, wanted: Iterable[str] = ()) -> Any:
    """Return the Metaflow task that ``Flow[/run[/step[/task]]]`` means.

    Parameters
    ----------
    text : str
        A missing run is the latest successful one, a missing step ``end``, a missing task the
        only one.
    namespace : str, optional
        Metaflow's namespace to look in; ``""`` is the global one.
    wanted : iterable of str
        Artifacts that the task should have; the error names the steps that have them.

    Raises
    ------
    TaskError
        When there is no such task, or it is not the only one.
    """
    import metaflow

    parts = text.strip("/").split("/")
    if not 1 <= len(parts) <= 4 or not all(parts):
        raise TaskError(
            f"task {text!r} is no pathspec", hint="write Flow, Flow/run, Flow/run/step or all four"
        )
    before = metaflow.get_namespace()
    try:
        if namespace is not None:
            metaflow.namespace(namespace or None)
        run = _find_run(metaflow, parts)
        step = _find_step(run, parts, list(wanted))
        return step[parts[3]] if len(parts) == 4 else _only_task(step)
    except KeyError:
        raise TaskError(
            f"no task {text!r}", hint=f"look with: python FLOW.py logs {text}"
        ) from None
    finally:
        metaflow.namespace(before)


def _find_run(metaflow: Any, parts: list[str]) -> Any:
    from metaflow.exception import MetaflowNamespaceMismatch, MetaflowNotFound

    pathspec = "/".join(parts[:2])
    try:
        if len(parts) > 1:
            return metaflow.Run(pathspec)
        run = metaflow.Flow(parts[0]).latest_successful_run
    except MetaflowNamespaceMismatch:
        raise TaskError(
            f"{pathspec} is not in the namespace {metaflow.get_namespace()!r}",
            hint="name the one it is in with --namespace, or look everywhere with --namespace ''",
        ) from None
    except MetaflowNotFound:
        raise TaskError(
            f"no {'run' if len(parts) > 1 else 'flow'} {pathspec!r} in {metaflow.get_metadata()}",
            hint="run the flow first, or check METAFLOW_PROFILE and the folder you are in",
        ) from None
    if run is None:
        raise TaskError(
            f"flow {parts[0]!r} has no successful run in the namespace "
            f"{metaflow.get_namespace()!r}",
            hint="finish a run, or look everywhere with --namespace ''",
        )
    return run


def _find_step(run: Any, parts: list[str], wanted: list[str]) -> Any:
    name = parts[2] if len(parts) > 2 else "end"
    steps = {step.id: step for step in run}
    if name not in steps:
        raise TaskError(
            f"run {run.pathspec} has no step {name!r}",
            hint=f"it has: {', '.join(sorted(steps)) or 'none yet'}",
        )
    if len(parts) == 2 or len(parts) == 1:
        missing = [item for item in wanted if not _has(steps[name], item)]
        if missing:
            having = [s for s in steps if all(_has(steps[s], item) for item in wanted)]
            raise TaskError(
                f"{run.pathspec}/{name} has no artifact {missing[0]!r}",
                hint=f"these steps have it: {', '.join(sorted(having))}; name one, as "
                f"{run.pathspec}/{sorted(having)[0]}"
                if having
                else "no step of this run has it",
            )
    return steps[name]


def _has(step: Any, name: str) -> bool:
    return any(name in (artifact.id for artifact in task) for task in step)


def _only_task(step: Any) -> Any:
    tasks = list(step)
    if len(tasks) != 1:
        shown = ", ".join(task.id for task in tasks[:10])
        raise TaskError(
            f"step {step.pathspec} has {len(tasks)} tasks",
            hint=f"name one of them, as {step.pathspec}/{tasks[0].id} (there are: {shown})"
            if tasks
            else "run it first",
        )
    return tasks[0]


def describe_task(task: Any) -> TaskInfo:
    """Check that a Metaflow task finished well and say where its artifacts are.

    Raises
    ------
    TaskError
        When it is still running, or failed.
    """
    if not task.finished:
        raise TaskError(f"task {task.pathspec} has not finished", hint="wait, or name another")
    if not task.successful:
        raise TaskError(f"task {task.pathspec} failed", hint="bind a task that succeeded")
    flow, run, step, task_id = task.pathspec.split("/")
    metadata = {key: str(value) for key, value in task.metadata_dict.items()}
    kind, root = _datastore_of(task, metadata)
    store = flow_datastore(flow, kind, root).get_task_datastore(run, step, task_id)
    return TaskInfo(
        flow=flow,
        run=run,
        step=step,
        task=task_id,
        datastore=kind,
        root=root,
        artifacts=_artifacts(store),
        metadata=metadata,
    )


def _datastore_of(task: Any, metadata: Mapping[str, str]) -> tuple[str, str]:
    """Return type and root of a task's datastore."""
    from metaflow.metaflow_config import DEFAULT_DATASTORE

    kind, root = metadata.get("ds-type", DEFAULT_DATASTORE), metadata.get("ds-root", "")
    for artifact in task:
        location = str(artifact._object["location"])
        if location.startswith(":root:"):
            kind, root = str(artifact._object["ds_type"]), location.removeprefix(":root:")
            break
    if kind == "local" and not Path(root).is_dir():
        root = _local_root() or root  # the project's folder was moved since the run
    return kind, root


def _local_root() -> str | None:
    from metaflow.plugins.datastores.local_storage import LocalStorage

    found = LocalStorage.get_datastore_root_from_config(lambda *_: None, create_on_absent=False)
    return str(found) if found else None


def flow_datastore(flow: str, kind: str, root: str) -> Any:
    """Open a flow's datastore, of any type that this Metaflow knows."""
    from metaflow.datastore.flow_datastore import FlowDataStore
    from metaflow.plugins import DATASTORES

    for storage in DATASTORES:
        if kind == storage.TYPE:
            return FlowDataStore(flow, None, storage_impl=storage, ds_root=root)
    raise TaskError(
        f"datastore {kind!r} is not known here", hint="install the Metaflow extension that has it"
    )


def _artifacts(store: Any) -> dict[str, StoredArtifact]:
    found = {}
    for name, key in store._objects.items():
        if name.startswith("_"):
            continue
        info = store._info.get(name, {})
        found[name] = StoredArtifact(
            key=key,
            encoding=str(info.get("encoding", "pickle-v2")).removeprefix("gzip+"),
            type=_type_name(str(info.get("type", "object"))),
            info=info.get("serializer_info", {}),
        )
    return found


def _type_name(text: str) -> str:
    """``list`` of ``<class 'list'>``."""
    return text.removeprefix("<class '").removesuffix("'>")
