"""Which type hints have a JSON Schema, without pydantic.

A flow that imports a decorated function runs its steps where only Metaflow is installed.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import datetime
import enum
import sys
import types
import typing
import uuid
from typing import Any

_LEAVES = (
    str, int, float, bool, type(None), dict, list, tuple,
    datetime.datetime, datetime.date, datetime.time, uuid.UUID,
)  # fmt: skip
_CONTAINERS = (
    dict, list, tuple,
    collections.abc.Sequence, collections.abc.Mapping, collections.abc.MutableMapping,
    collections.abc.MutableSequence, collections.abc.Iterable,
)  # fmt: skip
_WRAPPERS = {"Required", "NotRequired", "ReadOnly", "Annotated", "Final"}


def refusal(hint: Any, _seen: frozenset[Any] = frozenset()) -> str | None:
    """Return the name of the part of ``hint`` that has no JSON form, or None when all has."""
    if hint is Any or hint is None or isinstance(hint, str | typing.ForwardRef | typing.TypeVar):
        return None  # names are resolved when the schema is made
    origin = typing.get_origin(hint)
    if origin is None:
        return _refuse_class(hint, _seen)
    args = typing.get_args(hint)
    if origin is typing.Literal:
        return None if all(map(_is_json_constant, args)) else name_of(hint)
    if origin is typing.Annotated or getattr(origin, "_name", "") in _WRAPPERS:
        args = args[:1]
    elif origin in (dict, collections.abc.Mapping, collections.abc.MutableMapping):
        if args and args[0] not in (str, Any) and not _is_string_like(args[0]):
            return f"{name_of(hint)} (keys must be str)"
    elif origin not in (typing.Union, types.UnionType, *_CONTAINERS):
        return _refuse_class(origin, _seen) and name_of(hint)
    return _first_refusal((arg for arg in args if arg is not ...), _seen)


def _first_refusal(hints: collections.abc.Iterable[Any], seen: frozenset[Any]) -> str | None:
    return next((found for hint in hints if (found := refusal(hint, seen))), None)


def _is_json_constant(value: Any) -> bool:
    return value is None or isinstance(value, str | int | enum.Enum)


def _is_string_like(hint: Any) -> bool:
    if typing.get_origin(hint) is typing.Literal:
        return all(isinstance(arg, str) for arg in typing.get_args(hint))
    return isinstance(hint, type) and issubclass(hint, str)


def _refuse_class(hint: Any, seen: frozenset[Any]) -> str | None:
    if hint in seen or hint in _LEAVES or hint in _CONTAINERS:
        return None
    if not isinstance(hint, type):
        # NewType and type aliases carry the real type, an alias maybe itself (JsonValue); others
        # are left to the schema.
        inner = getattr(hint, "__supertype__", None) or getattr(hint, "__value__", None)
        return refusal(inner, seen | {hint}) if inner is not None else None
    if hasattr(hint, "__get_pydantic_core_schema__") or issubclass(hint, enum.Enum):
        return None
    is_dict = hasattr(hint, "__required_keys__") and hasattr(hint, "__total__")
    if typing.is_typeddict(hint) or is_dict or dataclasses.is_dataclass(hint):
        try:
            members = typing.get_type_hints(hint, include_extras=True).values()
        except (NameError, TypeError):
            return None  # forward references: the schema will say
        return _first_refusal(members, seen | {hint})
    return name_of(hint)


def name_of(hint: Any) -> str:
    """Return how a user would write the hint."""
    if isinstance(hint, type) and typing.get_origin(hint) is None:
        module = "" if hint.__module__ == "builtins" else f"{hint.__module__}."
        return f"{module}{hint.__qualname__}"
    return str(hint).replace("typing.", "")


def resolve(fn: Any) -> dict[str, Any]:
    """Return a function's hints by parameter name; ``NameError`` for a name not defined (yet)."""
    return typing.get_type_hints(fn, include_extras=True)


def adaptable(hint: Any) -> Any:
    """Return ``hint`` with each ``typing.TypedDict`` in a form that pydantic takes.

    Before Python 3.12, pydantic knows only the one of ``typing_extensions``.
    """
    return hint if sys.version_info >= (3, 12) else _adapt(hint, {})


def _adapt(hint: Any, done: dict[Any, Any]) -> Any:
    if typing.is_typeddict(hint) and type(hint).__module__ == "typing":
        return done.get(hint) or _typed_dict(hint, done)
    args = typing.get_args(hint)
    if not args or typing.get_origin(hint) is typing.Literal:
        return hint
    if typing.get_origin(hint) is typing.Annotated:
        return typing.Annotated[(_adapt(args[0], done), *args[1:])]
    new = tuple(_adapt(arg, done) for arg in args)
    if all(a is b for a, b in zip(args, new, strict=True)):
        return hint
    origin: Any = typing.get_origin(hint)
    return typing.Union[new] if origin in (typing.Union, types.UnionType) else origin[new]  # noqa: UP007


def _typed_dict(hint: Any, done: dict[Any, Any]) -> Any:
    import typing_extensions as te

    members: dict[str, Any] = {}
    plain = typing.get_type_hints(hint)
    for name, marked in typing.get_type_hints(hint, include_extras=True).items():
        inner = _adapt(plain[name], {**done, hint: Any})
        members[name] = (
            te.Required[inner] if _required(hint, name, marked) else te.NotRequired[inner]
        )
    twin = typing.cast("Any", te.TypedDict)(hint.__name__, members)
    twin.__doc__, twin.__module__ = hint.__doc__, hint.__module__
    return twin


def _required(hint: Any, name: str, marked: Any) -> bool:
    # The marks win: Python before 3.12 misses them in __required_keys__ when hints are strings.
    mark = getattr(typing.get_origin(marked), "_name", None)
    if mark in ("Required", "NotRequired"):
        return bool(mark == "Required")
    return name in hint.__required_keys__
