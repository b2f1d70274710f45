"""Avro schemas as JSON values -> checked and linked types.

Plain Python: a flow that imports a decorated function runs its steps where fastavro is not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from mfimage.errors import SchemaError
from mfimage.function.avro_types import NAME, NO_DEFAULT, PRIMITIVES, Field, Type

_FULL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")
# Others, as Avro wants it, are passed over: the value is the plain type's.
_LOGICAL = {
    "int": ("date", "time-millis"),
    "long": (
        "time-micros", "timestamp-millis", "timestamp-micros",
        "local-timestamp-millis", "local-timestamp-micros",
    ),
    "string": ("uuid",),
    "bytes": ("decimal",),
    "fixed": ("decimal", "uuid"),
}  # fmt: skip
# Python turns no more digits into an integer.
_MAX_PRECISION = 4000


def plain_schema(schema: Any) -> Any:
    """Return a schema as a JSON value: of a dict, a list, JSON text, or what fastavro parsed.

    Raises
    ------
    SchemaError
        When it is none of them.
    """
    if isinstance(schema, str) and schema not in PRIMITIVES:
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise SchemaError(f"Avro schema: not JSON: {error}") from None
    try:
        # A copy: what is done to the original later is not done to the function.
        return _without_marks(json.loads(json.dumps(_without_marks(schema))))
    except (TypeError, ValueError, RecursionError):
        raise SchemaError(
            f"Avro schema: expected a dict, a list or JSON text, got {schema!r}"[:200]
        ) from None


def _without_marks(schema: Any) -> Any:
    """Drop what fastavro notes in a schema that it has parsed: no part of the schema."""
    if not isinstance(schema, Mapping):
        return schema
    return {key: value for key, value in schema.items() if not str(key).startswith("__")}


def parse_schema(schema: Any) -> Type:
    """Check a schema, given as a JSON value, and link its names.

    Raises
    ------
    SchemaError
        Naming the place that is wrong.
    """
    try:
        return _Parser().whole(schema)
    except RecursionError:
        raise SchemaError("Avro schema: nested too deeply") from None


class _Parser:
    def __init__(self) -> None:
        self._named: dict[str, Type] = {}
        self._arrays: list[tuple[str, Type]] = []

    def whole(self, schema: Any) -> Type:
        made = self.parse(schema, "schema", "")
        for path, items in self._arrays:
            if _takes_nothing(items):
                # A few bytes could claim any number of them.
                raise _wrong(path, "the array's items are always empty")
        return made

    def parse(  # noqa: PLR0911  (one return per kind)
        self, schema: Any, path: str, space: str
    ) -> Type:
        if isinstance(schema, list):
            return self._union(schema, path, space)
        if isinstance(schema, str):
            return self._reference(schema, path, space)
        if not isinstance(schema, dict):
            raise _wrong(path, f"expected a type, got {schema!r}")
        kind = schema.get("type")
        if kind in ("record", "error", "enum", "fixed"):
            return self._definition(schema, path, space)
        if kind == "array":
            return Type(kind="array", items=self._items(schema, "items", path, space))
        if kind == "map":
            return Type(kind="map", items=self._items(schema, "values", path, space))
        if kind in PRIMITIVES:
            return _with_logical(Type(kind=kind), schema, path)
        if kind is None:
            raise _wrong(path, "it has no 'type'")
        return self.parse(kind, path, space)  # {"type": {"type": ...}}, as many write it

    def _items(self, schema: dict[str, Any], key: str, path: str, space: str) -> Type:
        if key not in schema:
            raise _wrong(path, f"it has no {key!r}")
        items = self.parse(schema[key], f"{path}.{key}", space)
        if key == "items":
            self._arrays.append((path, items))
        return items

    def _reference(self, name: str, path: str, space: str) -> Type:
        if name in PRIMITIVES:
            return Type(kind=name)
        for full in (f"{space}.{name}", name) if space and "." not in name else (name,):
            if full in self._named:
                return self._named[full]
        raise _wrong(path, f"there is no type {name!r}")

    def _union(self, schema: list[Any], path: str, space: str) -> Type:
        if not schema:
            raise _wrong(path, "a union of nothing")
        branches = tuple(
            self.parse(each, f"{path}[{index}]", space) for index, each in enumerate(schema)
        )
        labels = [branch.name or branch.kind for branch in branches]
        for label in labels:
            if label == "union":
                raise _wrong(path, "a union directly in a union")
            if labels.count(label) > 1:
                raise _wrong(path, f"the union has {label} twice")
        return Type(kind="union", branches=branches)

    def _definition(self, schema: dict[str, Any], path: str, space: str) -> Type:
        full, space = _full_name(schema, path, space)
        if full in self._named:
            raise _wrong(path, f"{full!r} is defined twice")
        kind = "record" if schema["type"] == "error" else schema["type"]
        made = Type(kind=kind, name=full, doc=str(schema.get("doc", "")))
        self._named[full] = made
        if kind == "enum":
            made.symbols = _symbols(schema, path)
        elif kind == "fixed":
            made.size = schema.get("size", -1)
            if type(made.size) is not int or made.size < 0:
                raise _wrong(path, f"size: expected a number of bytes, got {schema.get('size')!r}")
            _with_logical(made, schema, path)
        else:
            self._fields(made, schema, path, space)
        return made

    def _fields(self, record: Type, schema: dict[str, Any], path: str, space: str) -> None:
        fields = schema.get("fields")
        if not isinstance(fields, list):
            raise _wrong(path, "a record has 'fields', a list")
        for plain in fields:
            name = plain.get("name") if isinstance(plain, dict) else None
            if not isinstance(name, str) or not NAME.fullmatch(name):
                raise _wrong(path, f"{name!r} is no name of a field")
            if "type" not in plain:
                raise _wrong(f"{path}.{name}", "it has no 'type'")
            made = self.parse(plain["type"], f"{path}.{name}", space)
            record.fields.append(_field(plain, name, made, f"{path}.{name}"))
        for label, names in (
            ("fields", [each.name for each in record.fields]),
            ("jsonName", [each.key for each in record.fields]),
        ):
            twice = [name for name in names if names.count(name) > 1]
            if twice:
                raise _wrong(path, f"{label}: {twice[0]!r} is there twice")


def _field(plain: dict[str, Any], name: str, made: Type, path: str) -> Field:
    key, absent = plain.get("jsonName", name), plain.get("jsonAbsent", False)
    if not isinstance(key, str):
        raise _wrong(path, f"jsonName: expected a string, got {key!r}")
    if absent is not False and not (absent is True and made.is_nullable and len(made.branches) > 1):
        raise _wrong(path, "jsonAbsent: true is for a union with null")
    return Field(
        name=name,
        key=key,
        type=made,
        default=plain.get("default", NO_DEFAULT),
        json_default=plain.get("jsonDefault", NO_DEFAULT),
        absent=absent,
        doc=str(plain.get("doc", "")),
    )


def _full_name(schema: dict[str, Any], path: str, space: str) -> tuple[str, str]:
    """Return a definition's full name, and the name space of what is inside it."""
    name = schema.get("name")
    if not isinstance(name, str) or not _FULL_NAME.fullmatch(name):
        raise _wrong(path, f"{name!r} is no name of a type")
    if "." not in name:
        space = schema.get("namespace", space)
        if not isinstance(space, str) or (space and not _FULL_NAME.fullmatch(space)):
            raise _wrong(path, f"namespace: {space!r} is none")
        name = f"{space}.{name}" if space else name
    if name in PRIMITIVES:
        raise _wrong(path, f"{name!r} is a type of Avro's own")
    return name, name.rpartition(".")[0]


def _symbols(schema: dict[str, Any], path: str) -> tuple[str, ...]:
    symbols = schema.get("symbols")
    if not isinstance(symbols, list) or not symbols:
        raise _wrong(path, "an enum has 'symbols', a list")
    for symbol in symbols:
        if not isinstance(symbol, str) or not NAME.fullmatch(symbol):
            raise _wrong(path, f"{symbol!r} is no name of a symbol")
        if symbols.count(symbol) > 1:
            raise _wrong(path, f"the symbol {symbol!r} is there twice")
    return tuple(symbols)


def _with_logical(made: Type, schema: dict[str, Any], path: str) -> Type:
    logical = schema.get("logicalType")
    if logical not in _LOGICAL.get(made.kind, ()):
        return made
    if logical == "uuid" and made.kind == "fixed" and made.size != 16:
        return made
    if logical == "decimal":
        made.precision, made.scale = schema.get("precision", 0), schema.get("scale", 0)
        whole = type(made.precision) is int and type(made.scale) is int
        if not whole or not 0 < made.precision <= _MAX_PRECISION:
            raise _wrong(path, f"precision: expected 1 to {_MAX_PRECISION}, got {made.precision!r}")
        if not 0 <= made.scale <= made.precision:
            raise _wrong(path, f"scale: expected 0 to {made.precision}, got {made.scale!r}")
    made.logical = logical
    return made


def _takes_nothing(made: Type, above: tuple[Type, ...] = ()) -> bool:
    """Tell whether values of a type are written as no bytes at all."""
    if made.kind == "record" and made not in above:
        return all(_takes_nothing(each.type, (*above, made)) for each in made.fields)
    return made.kind == "null" or (made.kind == "fixed" and not made.size)


def _wrong(path: str, message: str) -> SchemaError:
    return SchemaError(f"Avro {path}: {message}")
