"""Avro schemas from JSON Schemas, and JSON values to and from the data that fastavro encodes.

fastavro is optional and imported where it is used: a flow that imports a decorated function runs
its steps where only Metaflow is installed.

fastavro works by a schema of ours, ``native``: fields have their JSON names, named types are
inlined, and a logical type of ours turns what it has read into the JSON value. What is decoded is
validated by the function's hints, like every record; here are the guards that fastavro lacks.
fastavro 1.9.7, 1.10.0, 1.12.0 and 1.13.1 were tried.
"""

from __future__ import annotations

import base64
import contextlib
import decimal
import functools
import hashlib
import importlib
import io
import itertools
import json
import re
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

from mfimage import errors
from mfimage.errors import Fault, InputError, OutputError, SchemaError, ValueFault, join_path

GIVEN = "x-avro-schema"  # a JSON Schema keyword: the Avro schema of what stands there
_PRIMITIVES = ("null", "boolean", "int", "long", "float", "double", "bytes", "string")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FULL_NAME = re.compile(rf"{_NAME.pattern}(\.{_NAME.pattern})*")
_MARK = "mfimage-json"
_DATE_OR_TIME = re.compile(r"\d\d(:|\d\d-)", re.ASCII)  # pydantic takes numbers, too
_MAX_JSON_DEPTH, _MAX_PARTS, _MAX_BLOCK, _MAX_CODECS = 400, 10_000, 1 << 30, 64
# fastavro's C code has no limit for the depth of recursive values.
_RECURSIVE = "contains itself, and recursive values can end the process in fastavro"


@functools.cache
def _fastavro() -> Any:
    try:
        import fastavro
    except ImportError:
        hint = "pip install 'mfimage[avro]'"
        raise errors.SerializerError("avro: fastavro is not installed here", hint=hint) from None
    for kind in ("int", "long", "bytes", "fixed", "record"):
        fastavro.read.LOGICAL_READERS[f"{kind}-{_MARK}"] = _read_native
        if kind != "record":
            fastavro.write.LOGICAL_WRITERS[f"{kind}-{_MARK}"] = _write_text
    return fastavro


def _read_native(raw: Any, native: Any, _: Any = None) -> Any:
    return native["read"](raw)


def _write_text(value: Any, native: Any) -> Any:
    return native["write"](value) if isinstance(value, str) else value


# JSON Schema, as pydantic makes it -> Avro schema

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


def avro_schema(json_schema: Mapping[str, Any], *, name: str, root: str = "") -> Any:
    """Return the Avro schema of what a JSON Schema describes; ``SchemaError`` by path.

    A name that Avro does not allow is mapped, and its field keeps the real one as ``jsonName``. A
    member that may be absent is a union with null, marked ``jsonAbsent``: null means absent. One
    that may be null as well needs a default, ``jsonDefault``: Avro has one null for both.

    ``name`` is for a record without a title, and paths in errors start with ``root``.
    """
    try:
        derive = _Deriver(json_schema).derive
        made = derive(json_schema, root, str(json_schema.get("title", name)))
        _Compiler(made)
    except RecursionError:
        raise _no_schema(root, "it is nested too deeply") from None
    except SchemaError as error:
        if error.hint is None:
            raise _no_schema(root, error.message.removeprefix("Avro ")) from None
        raise
    return made


def _no_schema(path: str, reason: str) -> SchemaError:
    return SchemaError(f"{path or 'the value'}: no Avro schema: {reason}", hint=_HINT)


class _Deriver:
    def __init__(self, json_schema: Mapping[str, Any]) -> None:
        self._defs = json_schema.get("$defs", {})
        self._types: dict[str, Any] = {}
        self._open: set[str] = set()
        text = json.dumps(json_schema) if json_schema else ""
        given = re.findall(r'"name": "([\w.]+)"', text) if GIVEN in text else ()
        self._taken = {*_PRIMITIVES, *given}

    def derive(self, plain: Any, path: str, name: str) -> Any:  # noqa: PLR0911  (one per kind)
        if not isinstance(plain, Mapping):
            raise _no_schema(path, "it allows any value" if plain is True else "it allows no value")
        if GIVEN in plain:
            return plain[GIVEN]
        if "$ref" in plain:
            return self._referred(plain["$ref"].removeprefix("#/$defs/"), path)
        kind = plain.get("type")
        choices = plain.get("anyOf", plain.get("oneOf"))
        if isinstance(kind, list):
            choices = [{**plain, "type": each} for each in kind]
        if choices is not None:
            return _union([self.derive(each, path, name) for each in choices], path)
        if len(plain.get("allOf", ())) == 1:
            return self.derive(plain["allOf"][0], path, name)
        if "const" in plain or "enum" in plain:
            return self._enum(plain.get("enum", [plain.get("const")]), path, name)
        if kind == "object":
            return self._object(plain, path, name)
        if kind == "array":
            return self._array(plain, path, name)
        if kind not in _PLAIN:
            raise _no_schema(path, "it allows any value")
        return _FORMATS.get(plain.get("format", ""), kind) if kind == "string" else _PLAIN[kind]

    def _referred(self, key: str, path: str) -> Any:
        if key in self._types:
            return _by_name(self._types[key])
        if key not in self._defs or key in self._open:
            no = f"there is no definition {key!r}"
            raise _no_schema(path, f"{key} {_RECURSIVE}" if key in self._open else no)
        plain = self._defs[key]
        self._open.add(key)
        title = str(plain.get("title", key)) if isinstance(plain, Mapping) else key
        self._types[key] = made = self.derive(plain, path, title)
        self._open.discard(key)
        return made

    def _object(self, plain: Mapping[str, Any], path: str, name: str) -> Any:
        values, patterns = plain.get("additionalProperties"), plain.get("patternProperties", {})
        if "properties" not in plain:
            if values is None and len(patterns) == 1:
                (values,) = patterns.values()
            if not isinstance(values, Mapping) or not values:
                raise _no_schema(path, "it allows members of any name and type")
            return {"type": "map", "values": self.derive(values, f"{path}[...]", f"{name}_value")}
        if values or patterns:
            raise _no_schema(path, "it has named members and others of any name")
        name = _named(name, self._taken)
        doc = {"doc": plain["description"]} if plain.get("description") else {}
        fields: list[Any] = []
        taken: set[str] = set()
        for key, member in plain["properties"].items():
            where = join_path(path, key) if path else key
            kind = self.derive(member, where, f"{name}_{key}")
            mapped = _named(key, taken)
            field = {"name": mapped} if mapped == key else {"name": mapped, "jsonName": key}
            required = key in plain.get("required", ())
            fields.append(field | ({"type": kind} if required else _optional(kind, member, where)))
        return {"type": "record", "name": name, **doc, "fields": fields}

    def _array(self, plain: Mapping[str, Any], path: str, name: str) -> Any:
        parts = list(plain.get("prefixItems", ()))
        if plain.get("items", not parts) is not False and len(parts) != plain.get("maxItems"):
            parts.append(plain.get("items", True))
        made = [self.derive(each, f"{path}[]", f"{name}_item") for each in parts]
        if not made or set(map(str, made)) == {"null"}:
            raise _no_schema(path, "it is a list of nothing")
        return {"type": "array", "items": _union(made, f"{path}[]")}

    def _enum(self, values: list[Any], path: str, name: str) -> Any:
        texts = list(dict.fromkeys(value for value in values if isinstance(value, str)))
        kinds: list[Any] = ["string"] if texts else []
        if texts and all(map(_NAME.fullmatch, texts)):
            kinds = [{"type": "enum", "name": _named(name, self._taken), "symbols": texts}]
        for value in values:
            if type(value) in _CONSTANTS:
                kinds.append(_CONSTANTS[type(value)])
            elif not isinstance(value, str):
                raise _no_schema(path, f"Avro has no constant {value!r}")
        return _union(kinds, path)


def _named(name: str, taken: set[str]) -> str:
    """Return the nearest name that Avro allows and is not taken, and take it."""
    base = re.sub(r"[^A-Za-z0-9_]|^(?=\d)", "_", name) or "_"
    names = itertools.chain([base], (f"{base}_{number}" for number in itertools.count(2)))
    made = next(each for each in names if each not in taken)
    taken.add(made)
    return made


def _by_name(made: Any) -> Any:
    """Return a type that was defined before: Avro defines a name once."""
    if isinstance(made, list):
        return [_by_name(each) for each in made]
    if not isinstance(made, dict):
        return made
    inner = {key: _by_name(made[key]) for key in ("items", "values") if key in made}
    return made.get("name", {**made, **inner})


def _optional(made: Any, member: Any, path: str) -> dict[str, Any]:
    """Return the type of a member that may be absent, and what absent means."""
    branches = made if isinstance(made, list) else [made]
    if "null" not in branches:
        return {"type": ["null", *branches], "default": None, "jsonAbsent": True}
    if not isinstance(member, Mapping) or "default" not in member:
        reason = "it may be absent and may be null, and Avro has one null for both"
        hint = f"make it required, or give it a default; or {_HINT}"
        raise SchemaError(f"{path}: no Avro schema: {reason}", hint=hint)
    key = "default" if member["default"] is None else "jsonDefault"
    return {"type": made, key: member["default"]}


def _union(parts: Iterable[Any], path: str) -> Any:
    """Return one type for the values of several."""
    flat: list[Any] = []
    for each in (e for part in parts for e in (part if isinstance(part, list) else [part])):
        names = [other.get("name") for other in flat if isinstance(other, dict)]
        if each not in flat and each not in names:
            flat.append(each)
    # A union has one type of each kind: texts that would be two become plain strings.
    texts = [each for each in flat if each in ("string", "bytes") or "logicalType" in each]
    kinds = list(map(_kind, flat))
    if "string" in texts or any(kinds.count(_kind(each)) > 1 for each in texts):
        flat = [*(each for each in flat if each not in texts), "string"]
        kinds = list(map(_kind, flat))
    if len({*kinds}) < len(kinds):
        twice = next(kind for kind in kinds if kinds.count(kind) > 1)
        raise _no_schema(path, f"it is one of several kinds of {twice}; an Avro union has one")
    return sorted(flat, key=lambda each: each != "null") if len(flat) > 1 else flat[0]


def _kind(made: Any) -> str:
    return str(made.get("name", made["type"])) if isinstance(made, dict) else str(made)


# Avro schema -> the schemas that fastavro and pydantic work by


class _Misfit(ValueError):
    """What does not fit, in words for the user."""


class _Choices(dict[Any, Any]):
    """A union's branches or an enum's symbols by index, for reading: -1 is a list's last."""

    def __missing__(self, index: int) -> Any:
        raise _Misfit(f"there is no branch or symbol {index}")


def _listed(native: Any) -> Any:
    """Return a schema for writing: fastavro validates lists only."""
    if isinstance(native, list | _Choices):
        items = native.values() if isinstance(native, dict) else native
        return [_listed(each) for each in items if each != "union"]
    return {k: _listed(v) for k, v in native.items()} if isinstance(native, dict) else native


class _Type(NamedTuple):
    label: str  # full name or kind: unique in a union
    native: Any  # the schema that fastavro works by
    core: dict[str, Any]  # pydantic's, of JSON values
    described: dict[str, Any]  # JSON Schema
    is_empty: bool = False  # whether values take no bytes
    parts: int = 1  # types that it consists of
    branches: tuple[Any, ...] = ()
    default: Callable[[Any], Any] = lambda raw: raw  # a schema's default -> JSON value


def checked_schema(schema: Any) -> Any:
    """Return a schema as a JSON value: from a dict, a list, JSON text, or one fastavro parsed.

    ``SchemaError`` says what is wrong; without fastavro, it is checked when it is used.
    """
    try:
        if isinstance(schema, str) and schema not in _PRIMITIVES:
            schema = json.loads(schema)
        if isinstance(schema, Mapping):  # fastavro leaves marks
            schema = {key: each for key, each in schema.items() if not str(key).startswith("__")}
        plain = json.loads(json.dumps(schema))  # later changes do not change the function
    except (TypeError, ValueError, RecursionError):
        text = f"Avro schema: expected a dict, a list or JSON text, got {schema!r}"
        raise SchemaError(text[:200]) from None
    try:
        _fastavro()
        importlib.import_module("pydantic_core")
    except Exception:  # noqa: BLE001  (absent or broken: no reason to break a flow's import)
        return plain
    _Compiler(plain)
    return plain


def _parsed(schema: Any) -> Any:
    level = [schema]
    for _ in range(_MAX_JSON_DEPTH):
        level = [each for part in level if isinstance(part, dict | list)
                 for each in (part.values() if isinstance(part, dict) else part)]  # fmt: skip
    if level:
        raise SchemaError("Avro schema: nested too deeply")
    parse, unknown = _fastavro().parse_schema, _fastavro().schema.UnknownType
    try:
        return parse(schema, {})
    except Exception as error:  # noqa: BLE001  (fastavro's own, and Python's for odd types)
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        reason = f"there is no type {error.name!r}" if isinstance(error, unknown) else reason
        raise SchemaError(f"Avro schema: {reason}"[:300]) from None


def _wrong(path: str, message: str) -> SchemaError:
    return SchemaError(f"Avro {path}: {message}")


class _Compiler:
    """Makes a schema's type; ``extra`` is what pydantic does with members that it does not have."""

    def __init__(self, schema: Any, *, extra: str = "forbid") -> None:
        self._extra = extra
        self._named: dict[str, _Type | None] = {}
        self.type = self._compile(_parsed(schema), "schema")

    def _compile(self, schema: Any, path: str) -> _Type:
        if isinstance(schema, str) and schema in self._named:
            found = self._named[schema]
            if found is None:
                raise _wrong(path, f"{schema} {_RECURSIVE}")
            return found
        plain = schema if isinstance(schema, dict) else {"type": schema}
        kind, name = plain["type"], plain.get("name")
        if name is not None:
            if not _FULL_NAME.fullmatch(name) or name in _PRIMITIVES:
                raise _wrong(path, f"{name!r} is not a name of a type")
            self._named[name] = None
        if isinstance(schema, list):
            made = self._union(schema, path)
        elif kind in ("record", "error"):
            made = self._record(schema, path)
        elif kind in ("array", "map"):
            member = "items" if kind == "array" else "values"
            inner = self._compile(schema[member], f"{path}.{member}")
            core = {"type": "dict", "keys_schema": _STRING, "values_schema": inner.core}
            described = {"type": "object", "additionalProperties": inner.described}
            if kind == "array":
                if inner.is_empty:  # a few bytes could claim any number of them
                    raise _wrong(path, "the array's items are always empty")
                core = {"type": "list", "items_schema": inner.core}
                described = {"type": kind, "items": inner.described}
            native = {"type": kind, member: inner.native}
            made = _Type(kind, native, core, described, parts=1 + inner.parts)
        else:
            made = _leaf(kind, plain, path)
        if made.parts > _MAX_PARTS:
            raise _wrong(path, f"it has more than {_MAX_PARTS} parts")
        if name is not None:
            self._named[name] = made
        return made

    def _union(self, schema: list[Any], path: str) -> _Type:
        branches = tuple(self._compile(each, f"{path}[{i}]") for i, each in enumerate(schema))
        labels = [branch.label for branch in branches]
        if not labels or "union" in labels or len({*labels}) < len(labels):
            raise _wrong(path, f"a union has types, each once and none a union, got {labels}")
        native = _Choices({"type": "union"} | dict(enumerate(each.native for each in branches)))
        described = {"anyOf": [branch.described for branch in branches]}
        parts = 1 + sum(branch.parts for branch in branches)
        return _Type("union", native, _any_of(branches), described, parts=parts, branches=branches)

    def _record(self, schema: dict[str, Any], path: str) -> _Type:
        kinds: dict[str, _Type] = {}
        members: dict[str, Any] = {}
        described: dict[str, Any] = {"type": "object", "title": schema["name"], "properties": {},
                                     "additionalProperties": False}  # fmt: skip
        absent = []
        for field in schema["fields"]:
            name, where = field["name"], f"{path}.{field['name']}"
            key = field.get("jsonName", name)
            if not isinstance(key, str) or not _NAME.fullmatch(name) or key in kinds:
                reason = f"{name!r} is not a name of a field, or there is another {key!r}"
                raise _wrong(path, reason)
            kinds[key] = kind = self._compile(field["type"], where)
            core, described["properties"][key] = _member(field, kind, where)
            required = core["type"] != "default"
            members[key] = {"type": "typed-dict-field", "schema": core, "required": required}
            if "jsonAbsent" in field:
                absent.append(key)

        def read(record: dict[str, Any]) -> dict[str, Any]:
            for key in absent:
                if record[key] is None:
                    del record[key]
            return record

        if required_keys := [key for key, member in members.items() if member["required"]]:
            described["required"] = required_keys
        if schema.get("doc"):
            described["description"] = schema["doc"]
        fields = [{"name": key, "type": kind.native} for key, kind in kinds.items()]
        mark = {"logicalType": _MARK, "read": read} if absent else {}
        return _Type(
            schema["name"],
            {"type": "record", "name": schema["name"], "fields": fields, **mark},
            {"type": "typed-dict", "fields": members, "extra_behavior": self._extra},
            described,
            is_empty=all(kind.is_empty for kind in kinds.values()),
            parts=1 + sum(kind.parts for kind in kinds.values()),
        )


def _any_of(branches: Sequence[_Type]) -> dict[str, Any]:
    # What is equal in a type is preferred: a double to a float, a string to a timestamp.
    last = [each for each in branches if each.label == "float" or "function" in each.core]
    ranked = [each for each in branches if each not in last and each.label != "null"] + last
    choices = [_after(lambda value, of=each.label: (of, value), each.core) for each in ranked]
    core = {"type": "union", "choices": choices} if len(choices) > 1 else [*choices, _NONE][0]
    return {"type": "nullable", "schema": core} if len(ranked) < len(branches) else core


def _after(function: Callable[..., Any], schema: Any) -> dict[str, Any]:
    of = {"type": "no-info", "function": function}
    return {"type": "function-after", "function": of, "schema": schema}


def _member(field: dict[str, Any], kind: _Type, path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the pydantic and JSON Schemas of a record's member."""
    core, described = kind.core, dict(kind.described)
    if "jsonAbsent" in field:
        rest = [branch.described for branch in kind.branches if branch.label != "null"]
        if field["jsonAbsent"] is not True or len(rest) in (0, len(kind.branches)):
            raise _wrong(path, "jsonAbsent: true is for a union with null")
        described = {"anyOf": rest} if len(rest) > 1 else dict(rest[0])
        core = _any_of([branch for branch in kind.branches if branch.label != "null"])
        core = {"type": "default", "schema": core, "default": None}
    elif "jsonDefault" in field or "default" in field:
        raw = field.get("jsonDefault", field.get("default"))
        for branch in kind.branches or (kind,):
            with contextlib.suppress(ValueError, TypeError, AttributeError):
                described["default"] = raw if "jsonDefault" in field else branch.default(raw)
                default = _validator(core)(described["default"])
                core = {"type": "default", "schema": core, "default": default}
                break
        else:
            raise _wrong(path, f"the default {raw!r} does not fit")
    if field.get("doc"):
        described["description"] = field["doc"]
    return core, described


def _validator(core: Any) -> Callable[[Any], Any]:
    from pydantic_core import SchemaValidator

    return functools.partial(SchemaValidator(core).validate_python, strict=True)


_STRING = {"type": "str", "max_length": 1 << 40}  # a limit, so that pydantic refuses surrogates
_NONE = {"type": "none"}
_LEAVES = {
    "null": _Type("null", "null", _NONE, {"type": "null"}, is_empty=True),
    "boolean": _Type("boolean", "boolean", {"type": "bool"}, {"type": "boolean"}),
    "int": _Type("int", "int", {"type": "int", "ge": -(2**31), "le": 2**31 - 1},
                 {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1}),
    "long": _Type("long", "long", {"type": "int", "ge": -(2**63), "le": 2**63 - 1},
                  {"type": "integer"}),
    "float": _Type("float", "float", {"type": "float", "allow_inf_nan": False}, {"type": "number"}),
    "double": _Type("double", "double", {"type": "float", "allow_inf_nan": False},
                    {"type": "number"}),
    "string": _Type("string", "string", _STRING, {"type": "string"}),
}  # fmt: skip
_TIME = {"type": "time", "tz_constraint": "naive", "microseconds_precision": "error"}
_LOCAL = {**_TIME, "type": "datetime"}
_INSTANT = {**_LOCAL, "tz_constraint": "aware"}
# What parses texts of a logical type, their format, and what an error calls them.
_TEXTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "int-date": ({"type": "date"}, "date", "a date, as 2020-01-31"),
    "int-time-millis": (_TIME, "time", "a time without UTC offset, to the millisecond"),
    "long-time-micros": (_TIME, "time", "a time without UTC offset, as 12:30:00"),
    "long-timestamp-millis": (_INSTANT, "date-time", "a date and time with UTC offset, in ms"),
    "long-timestamp-micros": (_INSTANT, "date-time", "a date and time with UTC offset"),
    "long-local-timestamp-millis": (_LOCAL, "", "a date and time without UTC offset, in ms"),
    "long-local-timestamp-micros": (_LOCAL, "", "a date and time without UTC offset"),
    "bytes-decimal": ({"type": "decimal"}, "decimal", "a decimal number as text, in precision"),
    "fixed-decimal": ({"type": "decimal"}, "decimal", "a decimal number as text, in precision"),
}


def _leaf(kind: str, schema: dict[str, Any], path: str) -> _Type:
    logical, size = f"{kind}-{schema.get('logicalType')}", schema.get("size")
    if kind == "enum":
        name, symbols = schema["name"], schema["symbols"]
        if not symbols or len({*symbols}) < len(symbols):
            raise _wrong(path, f"an enum has symbols, each once, got {symbols}")
        native: Any = {"type": "enum", "name": name, "symbols": _Choices(enumerate(symbols))}
        described = {"type": "string", "enum": symbols, "title": name}
        return _Type(name, native, {"type": "literal", "expected": symbols}, described)
    if kind == "fixed" and (type(size) is not int or size < 0):
        raise _wrong(path, f"size: expected a number of bytes, got {size!r}")
    form, expected = "base64", f"base64 text{'' if size is None else f' of {size} bytes'}"
    decode = functools.partial(base64.b64decode, validate=True)
    pair: _Pair = (decode, lambda raw: base64.b64encode(raw).decode())
    if logical == "string-uuid" or (logical == "fixed-uuid" and size == 16):
        form, expected = "uuid", "a UUID"
        pair = (lambda text: uuid.UUID(text).bytes, lambda raw: str(uuid.UUID(bytes=raw)))
    elif logical in _TEXTS:
        core, form, expected = _TEXTS[logical]
        pair = _by_fastavro(logical, schema, core, path)
    elif kind in _LEAVES:
        return _LEAVES[kind]
    write, read = pair

    def check(text: str) -> str:
        from pydantic_core import PydanticCustomError

        with contextlib.suppress(ValueError, ArithmeticError):
            raw = write(text)
            if size is None or len(raw) == size:
                return text
        raise PydanticCustomError("avro", "{reason}", {"reason": f"expected {expected}"})

    def back(raw: Any) -> str:
        with contextlib.suppress(ValueError, ArithmeticError):
            return read(raw)
        raise _Misfit(f"expected {expected}, got {raw!r}"[:200])

    native = kind if kind == "string" else {
        "type": kind, "logicalType": _MARK, "read": back, "write": write,
        **({"name": schema["name"], "size": size} if kind == "fixed" else {}),
    }  # fmt: skip
    described = {"type": "string", **({"format": form} if form else {})}
    is_bytes = kind in ("bytes", "fixed")
    return _Type(schema.get("name", kind), native, _after(check, _STRING), described, size == 0,
                 default=lambda raw: back(raw.encode("latin-1") if is_bytes else raw))  # fmt: skip


_Pair = tuple[Callable[[str], Any], Callable[[Any], str]]


def _by_fastavro(name: str, schema: dict[str, Any], core: dict[str, Any], path: str) -> _Pair:
    """Return fastavro's conversions, to and from texts; what they would change is a ValueError."""
    from pydantic_core import SchemaValidator

    prepare = _fastavro().write.LOGICAL_WRITERS[name]
    restore = _fastavro().read.LOGICAL_READERS[name]
    digits: Any = schema.get("precision")
    scale = schema.get("scale", 0)
    if core["type"] == "decimal":
        if type(digits) is not int or type(scale) is not int:
            raise _wrong(path, f"precision, scale: expected numbers, got {digits!r}, {scale!r}")
        core = {**core, "max_digits": digits, "decimal_places": scale}
    parse: Any = SchemaValidator(core).validate_strings
    normalize = decimal.Context(prec=decimal.MAX_PREC).normalize
    is_decimal, may_round = core["type"] == "decimal", not name.endswith(("date", "micros"))

    def write(text: str) -> Any:
        if not (is_decimal or _DATE_OR_TIME.match(text)):
            raise ValueError(text)
        value: Any = parse(text, strict=True)
        raw = prepare(normalize(value) if is_decimal else value, schema)
        found = restore(raw, schema, None)  # which refuses the year 10000 in UTC
        if may_round and found != value:
            raise ValueError(text)
        return raw

    def read(raw: Any) -> str:
        # fastavro takes -1 for a time of day; converting millions of digits takes minutes.
        if len(raw) > digits + 16 if is_decimal else raw < 0 and core["type"] == "time":
            raise ValueError(raw)
        value = restore(raw, schema, None)
        return format(value, "f") if is_decimal else value.isoformat().replace("+00:00", "Z")

    return write, read


# Bytes and files


class Codec:
    """Encodes and decodes the values of one Avro schema; ``SchemaError`` if it is not one.

    With ``extra="ignore"``, members that the schema does not have are left out, not refused.
    """

    def __init__(self, schema: Any, *, extra: str = "forbid") -> None:
        self.schema = schema
        compiler = _Compiler(schema, extra=extra)
        self._type = compiler.type
        self._validate = _validator(self._type.core)
        # A record of one field has its bytes. fastavro leaves alone what it takes for parsed.
        self.native = {
            "type": "record", "name": "value",
            "fields": [{"name": "value", "type": self._type.native}],
            "__fastavro_parsed": True, "__named_schemas": {},
        }  # fmt: skip
        self.for_writing = _listed(self.native)
        self._write, self._read = _fastavro().schemaless_writer, _fastavro().schemaless_reader

    def json_schema(self) -> dict[str, Any]:
        """Return the JSON Schema of the values."""
        return dict(self._type.described)

    def convert(self, value: Any, *, root: str, error: type[ValueFault]) -> Any:
        """Return what fastavro writes for a JSON value; ``error`` by path where it does not fit."""
        from pydantic_core import ValidationError

        try:
            return self._validate(value)
        except ValidationError as failure:
            from mfimage.function.faults import explain_value

            raise error(explain_value(failure, value, root)) from None

    def encode(self, value: Any, *, root: str) -> bytes:
        """Return a value's bytes; ``OutputError`` by path where it does not fit the schema.

        It is validated first: fastavro writes ``"3"`` or ``True`` as a double without a word.
        """
        datum = self.convert(value, root=root, error=OutputError)
        try:
            return self._encoded(datum)
        except Exception as error:
            raise OutputError([Fault(path=root, message=f"no Avro form: {error}")]) from error

    def _encoded(self, datum: Any) -> bytes:
        out = io.BytesIO()
        self._write(out, self.for_writing, {"value": datum})
        return out.getvalue()

    def decode_all(self, data: bytes, roots: Iterable[str]) -> Iterator[Any]:
        """Yield the JSON values that are all of ``data``, one for each start of paths."""
        file, root = io.BytesIO(data), "data"
        for root in roots:
            try:
                value = self._read(file, self.native, None)["value"]
            except (EOFError, IndexError):
                raise _fault(root, "the data end before the value does") from None
            except UnicodeDecodeError:
                raise _fault(root, "text that is not valid Unicode") from None
            except _Misfit as misfit:
                raise _fault(root, str(misfit)) from None
            yield value
        if file.tell() != len(data):
            raise _fault(root, f"{len(data) - file.tell()} bytes more than the value has")

    def hold(self, value: Any, *, root: str, error: type[ValueFault]) -> Any:
        """Return what a JSON value reads as once it is written, with defaults; see ``convert``."""
        data = self._encoded(self.convert(value, root=root, error=error))
        return self._read(io.BytesIO(data), self.native, None)["value"]


def _fault(root: str, message: str) -> InputError:
    return InputError([Fault(path=root, message=message)])


class AvroSerializer:
    """Avro, by the schema that follows from the JSON Schema, or a given one.

    A single value is its binary encoding, without the schema, which both sides know. Files are
    Avro's container files, which have it in the header.
    """

    name = "avro"
    media_type = "application/avro"
    suffixes: tuple[str, ...] = (".avro",)

    def __init__(self) -> None:
        # By identity: comparing schemas would cost more than the value.
        self._codecs: OrderedDict[int, Codec] = OrderedDict()

    def schema(self, json_schema: Mapping[str, Any], *, name: str) -> Any:
        """Return the Avro schema of what a JSON Schema describes; ``SchemaError`` by path."""
        return avro_schema(json_schema, name=name)

    def dumps(self, value: Any, schema: Any) -> bytes:
        """Return a value's bytes; ``OutputError`` by path where it does not fit the schema."""
        return self._codec(schema).encode(value, root="result")

    def loads(self, data: bytes, schema: Any) -> Any:
        """Return the value of bytes from anywhere; ``InputError`` if they have none."""
        (value,) = self._codec(schema).decode_all(bytes(data), ("data",))
        return value

    def _codec(self, schema: Any) -> Codec:
        found = self._codecs.get(id(schema))
        if found is None or found.schema is not schema:
            found = self._codecs[id(schema)] = Codec(schema)
            if len(self._codecs) > _MAX_CODECS:
                self._codecs.popitem(last=False)
        return found

    def read(self, file: BinaryIO, schema: Any = None) -> Iterator[Any]:
        """Yield the records of a container file.

        With a schema, they are read as Avro does for a reader of another schema: members that it
        does not have are left out, those that are absent have its defaults.
        """
        own = None if schema is None else Codec(schema, extra="ignore")
        number = 0
        try:
            blocks = _fastavro().block_reader(_Stream(file))
            codec = Codec(blocks.writer_schema)
            for block in blocks:
                roots = (f"record {number + each}" for each in range(1, 1 + block.num_records))
                for value in codec.decode_all(block.bytes_.getvalue(), roots):
                    number += 1
                    root = f"record {number}"
                    yield own.hold(value, root=root, error=InputError) if own else value
        except (OSError, InputError, errors.SerializerError):
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise _fault("file", f"not an Avro file, or damaged: {reason}") from error

    @contextlib.contextmanager
    def write(self, file: BinaryIO, schema: Any) -> Iterator[Callable[[Any], None]]:
        """Give a callable that appends a record to a container file."""
        if schema is None:
            raise SchemaError("an Avro file needs a schema", hint="give schema= to @avro_function")
        codec = self._codec(schema)
        # The same records are the same bytes: the marker between blocks is not random.
        marker = hashlib.sha256(json.dumps(schema, sort_keys=True).encode()).digest()[:16]
        make = _fastavro().write.Writer
        writer = make(_Stream(file), schema, codec="deflate", sync_marker=marker)
        writer.schema = codec.for_writing  # the header has the user's
        try:
            yield lambda record: writer.write(
                {"value": codec.convert(record, root="result", error=OutputError)}
            )
        finally:
            writer.flush()


class _Stream:
    """A file that cannot be sought, whose claimed lengths take no memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.write, self.flush = getattr(file, "write", None), file.flush

    def seekable(self) -> bool:
        return False  # fastavro would append to one that is

    def tell(self) -> int:
        return 0  # fastavro asks for it where it reads

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_BLOCK:
            raise _Misfit(f"a length of {size}")
        pieces: list[bytes] = []
        while size and (piece := self._file.read(min(size, 1 << 20))):
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)
