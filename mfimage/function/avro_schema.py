"""JSON Schema, as pydantic makes it -> Avro schema.

Names that are none in Avro are mapped, and a field says what it is called in JSON: ``jsonName``.
A member that may be absent is a union with null, marked ``jsonAbsent``: null is absent. One that
may be null as well needs a default, ``jsonDefault``, for Avro has one null for both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from mfimage.errors import SchemaError
from mfimage.function.avro_parse import parse_schema
from mfimage.function.avro_types import NAME, PRIMITIVES
from mfimage.function.json_values import join

_FORMATS: dict[str, Any] = {
    "date-time": {"type": "long", "logicalType": "timestamp-micros"},
    "date": {"type": "int", "logicalType": "date"},
    "time": {"type": "long", "logicalType": "time-micros"},
    "uuid": {"type": "string", "logicalType": "uuid"},
    "base64": "bytes",
}
_PLAIN = {"null": "null", "boolean": "boolean", "integer": "long", "number": "double",
          "string": "string"}  # fmt: skip
_HINT = "give schema= (for results, output_schema=) to @avro_function"
_ANYTHING = "anything is welcome there"
# A keyword of JSON Schema: the Avro schema, given outright, of what stands there.
GIVEN = "x-avro-schema"


def derive_schema(json_schema: Mapping[str, Any], *, name: str, root: str = "") -> Any:
    """Return the Avro schema of what a JSON Schema describes.

    Parameters
    ----------
    json_schema : mapping
        As pydantic makes it.
    name : str
        What a record is called that has no title.
    root : str
        What paths in errors start with.

    Raises
    ------
    SchemaError
        Naming the path of what has no Avro schema.
    """
    deriver = _Deriver(json_schema.get("$defs", {}))
    try:
        deriver.reserved |= _names_given(json_schema)
        made = deriver.derive(json_schema, root, str(json_schema.get("title", name)))
        laid = _laid_out(made, deriver.definitions, set())
        _check(laid, root)
        return laid
    except RecursionError:
        raise _none(root, "it is nested too deeply") from None


def _check(schema: Any, root: str) -> None:
    """Refuse a schema that is not read: of a list of empty records, say."""
    try:
        parse_schema(schema)
    except SchemaError as error:
        raise _none(root, error.message.removeprefix("Avro ")) from None


class _Deriver:
    """Makes types that refer to records and enums by name, and their definitions."""

    def __init__(self, defs: Mapping[str, Any]) -> None:
        self._defs = defs
        self._made: dict[str, Any] = {}
        self._under_way: set[str] = set()
        self.definitions: dict[str, dict[str, Any]] = {}
        self.reserved: set[str] = set(PRIMITIVES)

    def derive(  # noqa: PLR0911  (one return per kind)
        self, plain: Any, path: str, name: str
    ) -> Any:
        """Return the type of a part of the JSON Schema."""
        if not isinstance(plain, Mapping):
            raise _none(path, _ANYTHING if plain is True else "nothing is welcome there")
        if GIVEN in plain:
            return plain[GIVEN]
        if "$ref" in plain:
            return self._referred(plain["$ref"], path)
        for key in ("anyOf", "oneOf"):
            if key in plain:
                parts = plain[key]
                return _union([self.derive(each, path, name) for each in parts], path)
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
        raise _none(path, _ANYTHING)

    def _referred(self, reference: str, path: str) -> Any:
        key = reference.removeprefix("#/$defs/")
        if key in self._made:
            return self._made[key]
        if key not in self._defs:
            raise _none(path, f"{reference!r} leads nowhere")
        if key in self._under_way:
            raise _none(path, f"{key} holds itself, and is no record")
        plain = self._defs[key]
        name = str(plain.get("title", key)) if isinstance(plain, Mapping) else key
        if _is_record(plain):
            # Before its fields: they may refer to it.
            self._made[key] = self._named(name)
            return self._record(plain, path, self._made[key])
        self._under_way.add(key)
        self._made[key] = self.derive(plain, path, name)
        self._under_way.discard(key)
        return self._made[key]

    def _object(self, plain: Mapping[str, Any], path: str, name: str) -> Any:
        if _is_record(plain):
            return self._record(plain, path, self._named(name))
        values = plain.get("additionalProperties")
        patterns = list(plain.get("patternProperties", {}).values())
        if values is None and len(patterns) == 1:
            values = patterns[0]
        if not isinstance(values, Mapping) or not values:
            raise _none(path, "members of any name and kind are welcome there")
        items = self.derive(values, f"{path}[...]", f"{name}_value")
        return {"type": "map", "values": items}

    def _record(self, plain: Mapping[str, Any], path: str, name: str) -> str:
        if plain.get("additionalProperties") or plain.get("patternProperties"):
            raise _none(path, "it has members of its own and of any name")
        required = plain.get("required", ())
        fields: list[dict[str, Any]] = []
        self.definitions[name]["fields"] = fields
        taken: set[str] = set()
        for key, member in plain["properties"].items():
            where = join(path, key) if path else key
            field = {"name": _unique(_valid(key), taken)}
            if field["name"] != key:
                field["jsonName"] = key
            made = self.derive(member, where, f"{name}_{_valid(key)}")
            extra = {"type": made} if key in required else _optional(made, member, where)
            fields.append({**field, **extra})
        if plain.get("description"):
            self.definitions[name]["doc"] = plain["description"]
        return name

    def _array(self, plain: Mapping[str, Any], path: str, name: str) -> Any:
        parts = list(plain.get("prefixItems", ()))
        if plain.get("items", not parts) is not False and len(parts) != plain.get("maxItems"):
            parts.append(plain.get("items", True))
        made = [self.derive(each, f"{path}[]", f"{name}_item") for each in parts]
        if not made or set(map(str, made)) == {"null"}:
            raise _none(path, "it is a list of nothing")
        return {"type": "array", "items": _union(made, f"{path}[]")}

    def _enum(self, values: list[Any], path: str, name: str) -> Any:
        texts = [value for value in values if isinstance(value, str)]
        others = [_kind_of(value, path) for value in values if not isinstance(value, str)]
        if texts and all(NAME.fullmatch(text) for text in texts):
            made = self._named(name)
            symbols = list(dict.fromkeys(texts))
            self.definitions[made] = {"type": "enum", "name": made, "symbols": symbols}
            return _union([made, *others], path)
        return _union([*(["string"] if texts else []), *others], path)

    def _named(self, name: str) -> str:
        made = _unique(_valid(name), {*self.reserved, *self.definitions})
        self.definitions[made] = {"type": "record", "name": made}
        return made


def _names_given(plain: Any) -> set[str]:
    """Return the names of types that schemas given outright define."""
    if isinstance(plain, Mapping):
        if GIVEN in plain:
            return _names(plain[GIVEN])
        plain = list(plain.values())
    parts = plain if isinstance(plain, list) else []
    return set().union(*map(_names_given, parts))


def _names(made: Any) -> set[str]:
    if isinstance(made, Mapping):
        inner = _names(list(made.values()))
        return {*inner, str(made["name"])} if "name" in made else inner
    return set().union(*map(_names, made)) if isinstance(made, list) else set()


def _is_record(plain: Any) -> bool:
    return isinstance(plain, Mapping) and plain.get("type") == "object" and "properties" in plain


def _kind_of(value: Any, path: str) -> str:
    if value is None:
        return "null"
    for kind, name in ((bool, "boolean"), (int, "long"), (float, "double")):
        if isinstance(value, kind):
            return name
    raise _none(path, f"{value!r} is a constant that Avro has not")


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
    """Return one type for values of any of several."""
    flat: list[Any] = []
    for part in parts:
        for each in part if isinstance(part, list) else [part]:
            if each not in flat:
                flat.append(each)
    # A union has one type of each kind: texts that would be two are plain texts.
    kinds = [_kind(each) for each in flat]
    if "string" in flat or any(_is_text(e) and kinds.count(_kind(e)) > 1 for e in flat):
        flat = [each for each in flat if not _is_text(each) and each != "string"]
        flat.append("string")
        kinds = [_kind(each) for each in flat]
    for kind in kinds:
        if kinds.count(kind) > 1:
            raise _none(path, f"it is one of several kinds of {kind}, and an Avro union has one")
    flat.sort(key=lambda each: each != "null")
    return flat if len(flat) > 1 else flat[0]


def _kind(made: Any) -> str:
    return str(made["type"]) if isinstance(made, dict) else str(made)


def _is_text(made: Any) -> bool:
    return made == "bytes" or (isinstance(made, dict) and "logicalType" in made)


def _valid(name: str) -> str:
    """Return the nearest name that Avro takes."""
    made = re.sub(r"[^A-Za-z0-9_]", "_", name) or "_"
    return f"_{made}" if made[0].isdigit() else made


def _unique(name: str, taken: set[str]) -> str:
    """Return ``name``, with a number behind it when it is taken; it is taken then."""
    made, number = name, 1
    while made in taken:
        number += 1
        made = f"{name}_{number}"
    taken.add(made)
    return made


def _laid_out(made: Any, definitions: Mapping[str, Any], seen: set[str]) -> Any:
    """Put each definition where its name stands first, as Avro wants it."""
    if isinstance(made, list):
        return [_laid_out(each, definitions, seen) for each in made]
    if isinstance(made, str):
        if made not in definitions or made in seen:
            return made
        seen.add(made)
        return _laid_out(definitions[made], definitions, seen)
    inner = {key: made[key] for key in ("items", "values") if key in made}
    laid = {key: _laid_out(each, definitions, seen) for key, each in inner.items()}
    if "fields" in made:
        laid["fields"] = [
            {**each, "type": _laid_out(each["type"], definitions, seen)} for each in made["fields"]
        ]
    return {**made, **laid}


def _none(path: str, reason: str) -> SchemaError:
    return SchemaError(f"{path or 'the value'}: no Avro schema: {reason}", hint=_HINT)
