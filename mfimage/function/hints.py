"""Which type hints have a JSON Schema, without pydantic.

A flow that imports a decorated function runs its steps where only Metaflow is installed.
"""

from __future__ import annotations

import dataclasses
import enum
import sys
import types
import typing
from collections.abc import Iterable
from typing import Any

# By name, as importing all of them would take long; a submodule counts as its package.
_MAPPINGS = {
    "builtins.dict", "collections.Mapping", "collections.MutableMapping",
    "collections.OrderedDict", "collections.defaultdict", "collections.Counter",
}  # fmt: skip
_CONTAINERS = _MAPPINGS | {
    "builtins.list", "builtins.tuple", "builtins.set", "builtins.frozenset", "collections.deque",
    "collections.Sequence", "collections.MutableSequence", "collections.Iterable",
    "collections.Set", "collections.MutableSet",
}  # fmt: skip
_LEAVES = _CONTAINERS | {
    "builtins.str", "builtins.int", "builtins.float", "builtins.bool", "builtins.NoneType",
    "re.Pattern",
}  # fmt: skip
_MODULES = {"datetime", "uuid", "decimal", "fractions", "zoneinfo", "pathlib", "ipaddress"}
_WRAPPERS = {"Required", "NotRequired", "ReadOnly", "Final"}


def refusal(  # noqa: PLR0911  (one per kind)
    hint: Any, _seen: frozenset[Any] = frozenset()
) -> str | None:
    """Return the name of the part of ``hint`` that has no JSON form, or None when all has."""
    if hint is Any or hint is None or isinstance(hint, str | typing.ForwardRef | typing.TypeVar):
        return None  # names are resolved when the schema is made
    origin = typing.get_origin(hint)
    if origin is None:
        return _refuse_class(hint, _seen)
    args = typing.get_args(hint)
    if origin is typing.ClassVar or _has_own_schema(hint):
        return None
    if origin is typing.Literal:
        return None if all(map(_is_json_constant, args)) else name_of(hint)
    if origin is typing.Annotated or getattr(origin, "_name", "") in _WRAPPERS:
        args = args[:1]
    elif _label(origin) in _MAPPINGS:
        if args and not _is_string_like(args[0]):
            return f"{name_of(hint)} (keys must be str)"
    elif origin not in (typing.Union, types.UnionType) and _label(origin) not in _CONTAINERS:
        return _refuse_class(origin, _seen) and name_of(hint)
    return _first_refusal((arg for arg in args if arg is not ...), _seen)


def _first_refusal(hints: Iterable[Any], seen: frozenset[Any]) -> str | None:
    return next((found for hint in hints if (found := refusal(hint, seen))), None)


def _has_own_schema(hint: Any) -> bool:
    """Return whether pydantic is told how to read and write a type, as in ``Base64Bytes``."""
    marks = getattr(hint, "__metadata__", ())
    return any(hasattr(each, "__get_pydantic_core_schema__") for each in marks)


def _label(kind: Any) -> str:
    module = getattr(kind, "__module__", None) or ""
    return f"{module.partition('.')[0]}.{getattr(kind, '__name__', '')}"


def _is_json_constant(value: Any) -> bool:
    return value is None or isinstance(value, str | int | enum.Enum)


def _is_string_like(hint: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return all(isinstance(arg, str) for arg in args)
    if origin is typing.Annotated:
        return _is_string_like(args[0])
    if origin in (typing.Union, types.UnionType):
        return all(map(_is_string_like, args))
    inner = _inner(hint)
    if inner is not None:
        return _is_string_like(inner)
    return not isinstance(hint, type) or issubclass(hint, str)


def _inner(hint: Any) -> Any:
    """Return the type that a NewType or an alias names."""
    return getattr(hint, "__supertype__", None) or getattr(hint, "__value__", None)


def _refuse_class(hint: Any, seen: frozenset[Any]) -> str | None:
    label = _label(hint)
    if hint in seen or label in _LEAVES or label.partition(".")[0] in _MODULES:
        return None
    if not isinstance(hint, type):
        # An alias may name itself (JsonValue); other forms are left to the schema.
        inner = _inner(hint)
        return refusal(inner, seen | {hint}) if inner is not None else None
    if hasattr(hint, "__get_pydantic_core_schema__") or issubclass(hint, enum.Enum):
        return None
    is_dict = hasattr(hint, "__required_keys__") and hasattr(hint, "__total__")
    is_tuple = issubclass(hint, tuple) and hasattr(hint, "_fields")
    if typing.is_typeddict(hint) or is_dict or is_tuple or dataclasses.is_dataclass(hint):
        try:
            members = typing.get_type_hints(hint, include_extras=True).values()
        except (NameError, TypeError):
            return None  # forward references: the schema will say
        return _first_refusal(members, seen | {hint})
    return name_of(hint)


def name_of(hint: Any) -> str:
    """Return how a user would write the hint: the same on every Python."""
    if hint is None or hint is type(None):
        return "None"
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(name_of, args))
    if origin in (dict, list, set, tuple):
        names = ("..." if arg is ... else name_of(arg) for arg in args)
        return f"{name_of(origin)}[{', '.join(names)}]"
    if isinstance(hint, type) and origin is None:
        module = "" if hint.__module__ == "builtins" else f"{hint.__module__}."
        return f"{module}{hint.__qualname__}"
    return str(hint).replace("typing.", "")


def resolve(fn: Any) -> dict[str, Any]:
    """Return a function's hints by parameter name; ``NameError`` for a name not defined (yet)."""
    if sys.version_info < (3, 11) and isinstance(fn, types.FunctionType):
        # It would add None to the hint of a parameter whose default is None.
        bare = types.SimpleNamespace(__annotations__=fn.__annotations__)
        return typing.get_type_hints(bare, fn.__globals__, include_extras=True)
    return typing.get_type_hints(fn, include_extras=True)
