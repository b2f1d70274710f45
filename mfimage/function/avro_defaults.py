"""Avro's defaults of fields -> the JSON values that they mean."""

from __future__ import annotations

from typing import Any

from mfimage.errors import SchemaError
from mfimage.function.avro_texts import Misfit, text_of
from mfimage.function.avro_types import NO_DEFAULT, Type

_KINDS: dict[str, tuple[type, ...]] = {
    "null": (type(None),), "boolean": (bool,), "int": (int,), "long": (int,),
    "float": (int, float), "double": (int, float), "string": (str,), "bytes": (str,),
    "fixed": (str,), "enum": (str,), "array": (list,), "map": (dict,), "record": (dict,),
}  # fmt: skip


def default_value(made: Type, default: Any) -> Any:
    """Return the JSON value of a default as schemas have it: bytes as text, dates as days.

    Raises
    ------
    SchemaError
        When it is no value of the type.
    """
    if made.kind == "union":
        return _of_union(made, default)
    if not _is(default, made.kind):
        raise SchemaError(f"Avro schema: the default {default!r} is no {made.name or made.kind}")
    if made.kind == "record":
        return {
            each.key: _member(each.name, each.type, default, each.default)
            for each in made.fields
            if each.default is not NO_DEFAULT or each.name in default
        }
    if made.items is not None:
        items = made.items
        if isinstance(default, list):
            return [default_value(items, each) for each in default]
        return {key: default_value(items, each) for key, each in default.items()}
    return _leaf(made, default)


def _is(default: Any, kind: str) -> bool:
    is_bool = isinstance(default, bool)
    return isinstance(default, _KINDS[kind]) and is_bool == (kind == "boolean")


def _member(name: str, made: Type, record: Any, default: Any) -> Any:
    return default_value(made, record.get(name, default))


def _of_union(made: Type, default: Any) -> Any:
    for branch in made.branches:
        try:
            return default_value(branch, default)
        except SchemaError:
            continue
    raise SchemaError(f"Avro schema: the default {default!r} is in no branch of its union")


def _leaf(made: Type, default: Any) -> Any:
    text = text_of(made)
    try:
        raw = default.encode("latin-1") if made.kind in ("bytes", "fixed") else default
        if text is not None:
            return text.read(raw)
    except (Misfit, UnicodeEncodeError) as error:
        raise SchemaError(f"Avro schema: the default {default!r}: {error}") from None
    if made.kind == "enum" and default not in made.symbols:
        raise SchemaError(f"Avro schema: the default {default!r} is no symbol of {made.name}")
    return default
