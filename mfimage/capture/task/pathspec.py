"""``Flow[/run[/step[/task]]]`` -> a Metaflow task, looked up through Metaflow's client."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from mfimage.capture.task.task import succeeded
from mfimage.errors import TaskError

_EVERYWHERE = "search all namespaces with --namespace ''"


def find_task(text: str, *, namespace: str | None = None, wanted: Iterable[str] = ()) -> Any:
    """Return the Metaflow task that ``Flow[/run[/step[/task]]]`` names; namespace ``""`` is global.

    Without a run, it is of the latest successful one; without a step, of ``end``; without a task,
    the only one. When the default step lacks what is ``wanted``, the error says which have it.
    """
    parts = text.strip("/").split("/")
    if not 1 <= len(parts) <= 4 or not all(parts):
        hint = "write Flow, Flow/run, Flow/run/step or all four"
        raise TaskError(f"task {text!r} is not a pathspec", hint=hint)
    with _looking_in(namespace):
        step = _find_step(_find_run(parts), parts, list(wanted))
        return _find_task(step, parts)


def find_step(text: str, *, namespace: str | None = None) -> Any:
    """Return the Metaflow step that ``Flow/run/step`` names; namespace ``""`` is global."""
    parts = text.strip("/").split("/")
    with _looking_in(namespace):
        return _find_step(_find_run(parts), parts, [])


@contextmanager
def _looking_in(namespace: str | None) -> Iterator[None]:
    import metaflow
    from metaflow.exception import MetaflowUnknownUser

    try:
        before = metaflow.get_namespace()
    except MetaflowUnknownUser:
        # Metaflow does not accept root, as in a container or on a build machine, as a user.
        if namespace is None:
            message = "Metaflow does not know which user you are, so it has no namespace to search"
            raise TaskError(message, hint=f"set METAFLOW_USER, or {_EVERYWHERE}") from None
        before = None
    try:
        if namespace is not None:
            metaflow.namespace(namespace or None)
        yield
    finally:
        metaflow.namespace(before)


def _find_run(parts: list[str]) -> Any:
    import metaflow
    from metaflow.exception import MetaflowNamespaceMismatch, MetaflowNotFound

    pathspec = "/".join(parts[:2])
    namespace = metaflow.get_namespace()
    try:
        if len(parts) > 1:
            return metaflow.Run(pathspec)
        # Run.successful would unpickle.
        runs: Any = metaflow.Flow(parts[0])
        ended = ((run, run.end_task) for run in runs)
        found = next((run for run, end in ended if end is not None and succeeded(end)), None)
    except MetaflowNamespaceMismatch:
        hint = f"name the one it is in with --namespace, or {_EVERYWHERE}"
        raise TaskError(f"{pathspec} is not in the namespace {namespace!r}", hint=hint) from None
    except MetaflowNotFound:
        raise TaskError(
            f"no {'run' if len(parts) > 1 else 'flow'} {pathspec!r} in {metaflow.get_metadata()}",
            hint="run the flow first, or check METAFLOW_PROFILE and the folder you are in",
        ) from None
    if found is None:
        message = f"flow {parts[0]!r} has no successful run in the namespace {namespace!r}"
        raise TaskError(message, hint=f"finish a run, or {_EVERYWHERE}")
    return found


def _find_step(run: Any, parts: list[str], wanted: list[str]) -> Any:
    steps = {step.id: step for step in run}
    end = None if len(parts) > 2 else run.end_task
    name = parts[2] if len(parts) > 2 else end.parent.id if end else "end"
    if name not in steps:
        hint = f"it has: {', '.join(sorted(steps)) or 'none yet'}"
        raise TaskError(f"run {run.pathspec} has no step {name!r}", hint=hint)
    if len(parts) < 3:
        _check_artifacts(steps, name, wanted)
    return steps[name]


def _check_artifacts(steps: dict[str, Any], name: str, wanted: list[str]) -> None:
    """Name the steps that have the artifacts when the default one does not."""
    missing = [item for item in wanted if not _has(steps[name], item)]
    if not missing:
        return
    having = sorted(other for other in steps if all(_has(steps[other], item) for item in wanted))
    hint = "no step of this run has all that the function needs"
    if having:
        example = steps[having[0]].pathspec
        hint = f"these steps have all it needs: {', '.join(having)}; name one, as {example}"
    raise TaskError(f"{steps[name].pathspec} has no artifact {missing[0]!r}", hint=hint)


def _has(step: Any, name: str) -> bool:
    return any(name in (artifact.id for artifact in task) for task in step)


def _find_task(step: Any, parts: list[str]) -> Any:
    tasks = {task.id: task for task in step}
    shown = ", ".join(list(tasks)[:10])
    if len(parts) == 4:
        if parts[3] not in tasks:
            message = f"step {step.pathspec} has no task {parts[3]!r}"
            raise TaskError(message, hint=f"it has: {shown or 'none yet'}")
        return tasks[parts[3]]
    if len(tasks) != 1:
        example = f"{step.pathspec}/{next(iter(tasks), '')}"
        hint = f"name one of them, as {example} (there are: {shown})" if tasks else "run it first"
        raise TaskError(f"step {step.pathspec} has {len(tasks)} tasks", hint=hint)
    return next(iter(tasks.values()))
