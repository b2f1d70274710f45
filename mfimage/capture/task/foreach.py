"""The tasks of a foreach step, each by its value: all of them, or what is wrong with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from mfimage.capture.task.pathspec import find_step
from mfimage.capture.task.task import TaskInfo, describe_task
from mfimage.errors import TaskError
from mfimage.package.spec import VALUE

_NAMED = 3  # of the tasks in an error
_BETWEEN = "."  # the values of nested foreaches
_RULE = "letters, digits, _, - and ., at most 63, not starting with - or ."


def foreach_tasks(text: str, *, namespace: str | None = None) -> dict[str, TaskInfo]:
    """Return the tasks of ``Flow/run/step``, whose step runs in a foreach, by the foreach's value.

    In nested foreaches, a value is that of each, outermost first, with dots between them.
    """
    if text.strip("/").count("/") != 2:
        raise TaskError(f"foreach: {text!r} is not a step", hint="write Flow/run/step")
    step = find_step(text, namespace=namespace)
    found = list(_described(list(step), text))
    frames = {info.pathspec: info.store.foreach_stack() for info in found}
    for info in found:
        if not frames[info.pathspec]:
            raise TaskError(
                f"foreach: {text} does not run in a foreach",
                hint="name a step that does, or leave out --foreach",
            )
    found.sort(key=lambda info: [frame.index for frame in frames[info.pathspec]])
    _check_whole(text, list(frames.values()))
    named = [(_value(frames[info.pathspec], info), info) for info in found]
    _check_values(text, named)
    return dict(named)


def _described(tasks: Sequence[Any], text: str) -> Iterator[TaskInfo]:
    """Yield the tasks, all of which must have succeeded."""
    faults = []
    info: TaskInfo | None = None
    for task in tasks:
        try:
            yield (info := describe_task(task, like=info))
        except TaskError as error:
            faults.append(error.message)
    if faults or not tasks:
        more = f" (and {len(faults) - _NAMED} more)" if len(faults) > _NAMED else ""
        raise TaskError(
            f"foreach: of the {len(tasks)} tasks of {text}, {len(faults)} cannot be bound: "
            f"{'; '.join(faults[:_NAMED])}{more}",
            hint="wait for the run, or resume it: every task must have succeeded",
        )


def _check_whole(text: str, stacks: Sequence[Sequence[Any]]) -> None:
    """Refuse a foreach of which tasks have not started."""
    counts = Counter(tuple(frame.index for frame in stack[:-1]) for stack in stacks)
    for stack in stacks:
        count, splits = counts[tuple(frame.index for frame in stack[:-1])], stack[-1].num_splits
        if splits is not None and count != splits:
            raise TaskError(
                f"foreach: {text} has {count} of {splits} tasks", hint="wait for the run to finish"
            )


def _value(stack: Sequence[Any], info: TaskInfo) -> str:
    from metaflow.metaflow_config import MAXIMUM_FOREACH_VALUE_CHARS

    values = [frame.value for frame in stack]
    if None in values:
        raise TaskError(
            f"foreach: task {info.pathspec} does not record its value",
            hint="run the flow with METAFLOW_INCLUDE_FOREACH_STACK=1 and a newer Metaflow, or bind "
            "each task by --name",
        )
    for value in values:
        if len(value) >= MAXIMUM_FOREACH_VALUE_CHARS:
            raise TaskError(
                f"foreach: the value {value!r} of {info.pathspec} may be cut: Metaflow records "
                f"{MAXIMUM_FOREACH_VALUE_CHARS} characters",
                hint="run the flow with METAFLOW_MAXIMUM_FOREACH_VALUE_CHARS=64, or bind each task "
                "by --name",
            )
    return _BETWEEN.join(values)


def _check_values(text: str, named: Sequence[tuple[str, TaskInfo]]) -> None:
    bad = [f"{value!r} of {info.pathspec}" for value, info in named if not VALUE.fullmatch(value)]
    if bad:
        more = f" (and {len(bad) - _NAMED} more)" if len(bad) > _NAMED else ""
        raise TaskError(
            f"foreach: a value names a path of the server, and these cannot: "
            f"{', '.join(bad[:_NAMED])}{more}",
            hint=f"{_RULE}; or bind each task by --name",
        )
    known: dict[str, TaskInfo] = {}
    for value, info in named:
        other = known.setdefault(value, info)
        if other is not info:
            raise TaskError(
                f"foreach: {other.pathspec} and {info.pathspec} of {text} have the same value "
                f"{value!r}",
                hint="make the values of the foreach different, or bind each task by --name",
            )
