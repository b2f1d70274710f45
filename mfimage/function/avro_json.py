"""Avro schema -> JSON Schema: what the values are that an explicit schema lets through."""

from __future__ import annotations

from typing import Any

from mfimage.function.avro_defaults import default_value
from mfimage.function.avro_types import NO_DEFAULT, Field, Type

_PLAIN: dict[str, dict[str, Any]] = {
    "null": {"type": "null"},
    "boolean": {"type": "boolean"},
    "int": {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1},
    "long": {"type": "integer"},
    "float": {"type": "number"},
    "double": {"type": "number"},
    "string": {"type": "string"},
    "bytes": {"type": "string", "format": "base64"},
    "fixed": {"type": "string", "format": "base64"},
}
_FORMATS = {
    "date": "date", "uuid": "uuid", "decimal": "decimal",
    "time-millis": "time", "time-micros": "time",
    "timestamp-millis": "date-time", "timestamp-micros": "date-time",
}  # fmt: skip


def json_schema_of(made: Type) -> dict[str, Any]:
    """Return the JSON Schema of a type's values."""
    defs: dict[str, Any] = {}
    schema = _schema(made, defs)
    return {**schema, "$defs": defs} if defs else schema


def _schema(made: Type, defs: dict[str, Any]) -> dict[str, Any]:
    if made.logical:
        form = _FORMATS.get(made.logical)
        return {"type": "string", "format": form} if form else {"type": "string"}
    if made.kind == "union":
        return {"anyOf": [_schema(branch, defs) for branch in made.branches]}
    if made.items is not None:
        key = "items" if made.kind == "array" else "additionalProperties"
        kind = "array" if made.kind == "array" else "object"
        return {"type": kind, key: _schema(made.items, defs)}
    if made.kind == "enum":
        return {"type": "string", "enum": list(made.symbols), "title": made.name}
    if made.kind != "record":
        return dict(_PLAIN[made.kind])
    if made.name not in defs:
        defs[made.name] = {}  # its fields may refer to it
        defs[made.name] = _record(made, defs)
    return {"$ref": f"#/$defs/{made.name}"}


def _member(each: Field, defs: dict[str, Any]) -> dict[str, Any]:
    if each.absent:
        rest = [_schema(branch, defs) for branch in each.type.branches if branch.kind != "null"]
        schema: dict[str, Any] = rest[0] if len(rest) == 1 else {"anyOf": rest}
    else:
        schema = _schema(each.type, defs)
        if each.json_default is not NO_DEFAULT:
            schema["default"] = each.json_default
        elif each.default is not NO_DEFAULT:
            schema["default"] = default_value(each.type, each.default)
    if each.doc:
        schema["description"] = each.doc
    return schema


def _record(made: Type, defs: dict[str, Any]) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    required = []
    for each in made.fields:
        properties[each.key] = _member(each, defs)
        if each.default is each.json_default is NO_DEFAULT and not each.absent:
            required.append(each.key)
    schema: dict[str, Any] = {
        "type": "object",
        "title": made.name,
        "properties": properties,
        "additionalProperties": False,
    }
    if required:
        schema["required"] = required
    return {**schema, "description": made.doc} if made.doc else schema
