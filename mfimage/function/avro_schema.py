"""JSON Schema, as pydantic makes it -> Avro schema.

A name that Avro does not allow is mapped, and its field keeps the real one as ``jsonName``. A
member that may be absent is a union with null, marked ``jsonAbsent``: null means absent. One that
may be null as well needs a default, ``jsonDefault``, because Avro has one null for both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from mfimage.errors import SchemaError, join_path

PRIMITIVES = ("null", "boolean", "int", "long", "float", "double", "bytes", "string")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
RECURSIVE = "recursive values can end the process in fastavro"
# A JSON Schema keyword: the Avro schema of what stands there.
GIVEN = "x-avro-schema"
_FORMATS: dict[str, Any] = {
    "date-time": {"type": "long", "logicalType": "timestamp-micros"},
    "date": {"type": "int", "logicalType": "date"},
    "time": {"type": "long", "logicalType": "time-micros"},
    "uuid": {"type": "string", "logicalType": "uuid"},
    "base64": "bytes",
}
_PLAIN = {"null": "null", "boolean": "boolean", "integer": "long", "number": "double",
          "string": "string"}  # fmt: skip
_CONSTANTS = {type(None): "null", bool: "boolean", int: "long", float: "double"}
_HINT = "give schema= (for results, output_schema=) to @avro_function"
_ANYTHING = "it allows any value"


def derive_schema(json_schema: Mapping[str, Any], *, name: str, root: str = "") -> Any:
    """Return the Avro schema of what a JSON Schema describes.

    Parameters
    ----------
    json_schema : mapping
        As pydantic makes it.
    name : str
        Name of a record that has no title.
    root : str
        Start of the paths in errors.

    Raises
    ------
    SchemaError
        Naming the path of what has no Avro schema.
    """
    deriver = _Deriver(json_schema)
    try:
        return deriver.derive(json_schema, root, str(json_schema.get("title", name)))
    except RecursionError:
        raise no_schema(root, "it is nested too deeply") from None


class _Deriver:
    def __init__(self, json_schema: Mapping[str, Any]) -> None:
        self._defs = json_schema.get("$defs", {})
        self._types: dict[str, Any] = {}
        self._open: set[str] = set()
        self._taken = {*PRIMITIVES, *_given_names(json_schema)}

    def derive(  # noqa: PLR0911  (one return per kind)
        self, plain: Any, path: str, name: str
    ) -> Any:
        if not isinstance(plain, Mapping):
            raise no_schema(path, _ANYTHING if plain is True else "it allows no value")
        if GIVEN in plain:
            return plain[GIVEN]
        if "$ref" in plain:
            return self._referred(plain["$ref"].removeprefix("#/$defs/"), path)
        for key in ("anyOf", "oneOf"):
            if key in plain:
                return _union([self.derive(each, path, name) for each in plain[key]], path)
        if len(plain.get("allOf", ())) == 1:
            return self.derive(plain["allOf"][0], path, name)
        if "const" in plain or "enum" in plain:
            return self._enum(plain.get("enum", [plain.get("const")]), path, name)
        kind = plain.get("type")
        if isinstance(kind, list):
            return _union([self.derive({**plain, "type": k}, path, name) for k in kind], path)
        if kind == "object":
            return self._object(plain, path, name)
        if kind == "array":
            return self._array(plain, path, name)
        if kind == "string":
            return _FORMATS.get(plain.get("format", ""), "string")
        if kind in _PLAIN:
            return _PLAIN[kind]
        raise no_schema(path, _ANYTHING)

    def _referred(self, key: str, path: str) -> Any:
        if key in self._types:
            return _by_name(self._types[key])
        if key not in self._defs:
            raise no_schema(path, f"there is no definition {key!r}")
        if key in self._open:
            raise no_schema(path, f"{key} contains itself, and {RECURSIVE}")
        plain = self._defs[key]
        self._open.add(key)
        title = str(plain.get("title", key)) if isinstance(plain, Mapping) else key
        self._types[key] = made = self.derive(plain, path, title)
        self._open.discard(key)
        return made

    def _object(self, plain: Mapping[str, Any], path: str, name: str) -> Any:
        values, patterns = plain.get("additionalProperties"), plain.get("patternProperties", {})
        if "properties" in plain:
            if values or patterns:
                raise no_schema(path, "it has named members and others of any name")
            return self._record(plain, path, name)
        if values is None and len(patterns) == 1:
            (values,) = patterns.values()
        if not isinstance(values, Mapping) or not values:
            raise no_schema(path, "it allows members of any name and type")
        return {"type": "map", "values": self.derive(values, f"{path}[...]", f"{name}_value")}

    def _record(self, plain: Mapping[str, Any], path: str, name: str) -> Any:
        made: dict[str, Any] = {"type": "record", "name": self._named(name)}
        if plain.get("description"):
            made["doc"] = plain["description"]
        made["fields"] = fields = []
        taken: set[str] = set()
        for key, member in plain["properties"].items():
            where = join_path(path, key) if path else key
            kind = self.derive(member, where, f"{made['name']}_{_valid(key)}")
            one = {"name": _unique(_valid(key), taken)}
            if one["name"] != key:
                one["jsonName"] = key
            required = key in plain.get("required", ())
            fields.append(
                {**one, **({"type": kind} if required else _optional(kind, member, where))}
            )
        return made

    def _array(self, plain: Mapping[str, Any], path: str, name: str) -> Any:
        parts = list(plain.get("prefixItems", ()))
        if plain.get("items", not parts) is not False and len(parts) != plain.get("maxItems"):
            parts.append(plain.get("items", True))
        made = [self.derive(each, f"{path}[]", f"{name}_item") for each in parts]
        if not made or set(map(str, made)) == {"null"}:
            raise no_schema(path, "it is a list of nothing")
        return {"type": "array", "items": _union(made, f"{path}[]")}

    def _enum(self, values: list[Any], path: str, name: str) -> Any:
        texts = list(dict.fromkeys(value for value in values if isinstance(value, str)))
        others = [value for value in values if not isinstance(value, str)]
        for value in others:
            if type(value) not in _CONSTANTS:
                raise no_schema(path, f"Avro has no constant {value!r}")
        kinds: list[Any] = [_CONSTANTS[type(value)] for value in others]
        if texts and all(map(NAME.fullmatch, texts)):
            kinds.insert(0, {"type": "enum", "name": self._named(name), "symbols": texts})
        elif texts:
            kinds.insert(0, "string")
        return _union(kinds, path)

    def _named(self, name: str) -> str:
        return _unique(_valid(name), self._taken)


def _by_name(made: Any) -> Any:
    """Return a type that was defined before: Avro defines a name once."""
    if isinstance(made, list):
        return [_by_name(each) for each in made]
    if not isinstance(made, dict):
        return made
    inner = {key: _by_name(made[key]) for key in ("items", "values") if key in made}
    return made.get("name", {**made, **inner})


def _given_names(plain: Any, inside: bool = False) -> set[str]:
    """Return the names that Avro schemas inside a JSON Schema define."""
    if isinstance(plain, Mapping):
        own = {str(plain["name"])} if inside and "name" in plain else set()
        return own.union(*(_given_names(v, inside or k == GIVEN) for k, v in plain.items()))
    if isinstance(plain, list):
        return set().union(*(_given_names(each, inside) for each in plain))
    return set()


def _optional(made: Any, member: Any, path: str) -> dict[str, Any]:
    """Return the type of a member that may be absent, and what absent means."""
    branches = made if isinstance(made, list) else [made]
    if "null" not in branches:
        return {"type": ["null", *branches], "default": None, "jsonAbsent": True}
    if not isinstance(member, Mapping) or "default" not in member:
        raise SchemaError(
            f"{path}: no Avro schema: it may be absent and may be null, and Avro has one null for "
            "both",
            hint=f"make it required, or give it a default; or {_HINT}",
        )
    if member["default"] is None:
        return {"type": made, "default": None}
    return {"type": made, "jsonDefault": member["default"]}


def _union(parts: Iterable[Any], path: str) -> Any:
    """Return one type for the values of several."""
    flat: list[Any] = []
    for part in parts:
        for each in part if isinstance(part, list) else [part]:
            names = [other["name"] for other in flat if isinstance(other, dict) and "name" in other]
            if each not in flat and each not in names:
                flat.append(each)
    # A union has one type of each kind: texts that would be two become plain strings.
    kinds = [_name_of(each) for each in flat]
    if "string" in flat or any(_is_text(e) and kinds.count(_name_of(e)) > 1 for e in flat):
        flat = [each for each in flat if not _is_text(each) and each != "string"]
        flat.append("string")
        kinds = [_name_of(each) for each in flat]
    for kind in kinds:
        if kinds.count(kind) > 1:
            raise no_schema(path, f"it is one of several kinds of {kind}; an Avro union has one")
    flat.sort(key=lambda each: each != "null")
    return flat if len(flat) > 1 else flat[0]


def _name_of(made: Any) -> str:
    return str(made.get("name", made["type"])) if isinstance(made, dict) else str(made)


def _is_text(made: Any) -> bool:
    return made == "bytes" or (isinstance(made, dict) and "logicalType" in made)


def _valid(name: str) -> str:
    """Return the nearest name that Avro allows."""
    made = re.sub(r"[^A-Za-z0-9_]", "_", name) or "_"
    return f"_{made}" if made[0].isdigit() else made


def _unique(name: str, taken: set[str]) -> str:
    """Return ``name``, with a number if it is taken, and take it."""
    made, number = name, 1
    while made in taken:
        number += 1
        made = f"{name}_{number}"
    taken.add(made)
    return made


def no_schema(path: str, reason: str) -> SchemaError:
    """Return the error for a part of a JSON Schema that has no Avro schema."""
    return SchemaError(f"{path or 'the value'}: no Avro schema: {reason}", hint=_HINT)
