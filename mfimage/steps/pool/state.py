"""What Metaflow keeps in a process about the task it runs: put back between two items of a loop.

Metaflow runs one task in a process, and decorators keep what belongs to that task in themselves,
in their classes and in `current`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from metaflow.decorators import Decorator, flow_decorators
from metaflow.flowspec import FlowSpec, FlowStateItems
from metaflow.metaflow_current import current
from metaflow.parameters import Parameter

_ABSENT = object()


def remember(flow: Any) -> Callable[[], None]:
    """Return a function that puts back the state that a flow and Metaflow have now."""
    saved = [
        (each, {key: copied(value) for key, value in vars(each).items()}) for each in holders(flow)
    ]

    def restore() -> None:
        for holder, attributes in saved:
            present = dict(vars(holder))
            for key in present.keys() - attributes.keys():
                delattr(holder, key)
            for key, value in attributes.items():
                if present.get(key, _ABSENT) is not value:
                    setattr(holder, key, copied(value))

    return restore


def holders(flow: Any) -> list[Any]:
    """Return the objects and classes that hold state, each once."""
    found = {id(each): each for each in _holders(flow)}
    return list(found.values())


def _holders(flow: Any) -> Iterator[Any]:
    from metaflow.client import core
    from metaflow.system_context import system_context

    yield from (current, type(current), system_context, core)
    own = [
        each for each in type(flow).__mro__ if issubclass(each, FlowSpec) and each is not FlowSpec
    ]
    yield from own
    for cls in own:
        yield vars(cls)["_flow_state"]
        yield from (each for each in vars(cls).values() if isinstance(each, Parameter))
    for step in flow:
        yield step
        for decorator in (*step.decorators, *step.wrappers, *step.config_decorators):
            yield decorator
            yield from _classes(decorator)
    state = type(flow)._flow_state
    for decorator in (*flow_decorators(type(flow)), *state[FlowStateItems.FLOW_MUTATORS]):
        yield decorator
        yield from _classes(decorator)


def _classes(decorator: object) -> Iterator[type]:
    for cls in type(decorator).__mro__:
        if cls not in (object, Decorator) and cls.__module__ != "builtins":
            yield cls


def copied(value: Any) -> Any:
    """Return a copy of plain containers, and of those in them; anything else is itself."""
    if type(value) is dict:
        return {key: copied(each) for key, each in value.items()}
    if type(value) in (list, set):
        return type(value)(copied(each) for each in value)
    return value
