"""Avro schemas from JSON Schemas, and JSON values to and from the data that fastavro encodes.

fastavro works by a schema of ours, ``native``: fields have their JSON names, named types are
inlined, and a logical type makes what it has read the JSON value. The other way, pydantic checks a
value by a hint of ours and makes it what fastavro writes.

A flow that imports a decorated function runs its steps where only Metaflow is installed: fastavro
and pydantic are imported where they are used. fastavro 1.9.7, 1.10.0, 1.12.0 and 1.13.1 were tried.
"""

from __future__ import annotations

import base64
import contextlib
import decimal
import functools
import hashlib
import io
import itertools
import json
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, BinaryIO, Literal, NamedTuple, Union

from mfimage import errors
from mfimage.errors import Fault, InputError, OutputError, SchemaError, ValueFault, join_path

GIVEN = "x-avro-schema"  # a JSON Schema keyword: the Avro schema of what stands there
_PRIMITIVES = ("null", "boolean", "int", "long", "float", "double", "bytes", "string")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MARK = "mfimage-json"
_MAX_PARTS, _MAX_BLOCK, _MAX_CODECS = 10_000, 1 << 30, 64
# fastavro's C code does not limit the depth of recursive values.
_RECURSIVE = "contains itself, and recursive values can end the process in fastavro"


@functools.cache
def _fastavro() -> Any:
    try:
        import fastavro
    except ImportError:
        hint = "pip install 'mfimage[avro]'"
        raise errors.SerializerError("avro: fastavro is not installed here", hint=hint) from None
    for kind in ("int", "long", "string", "bytes", "fixed", "record"):
        mark = f"{kind}-{_MARK}"
        fastavro.read.LOGICAL_READERS[mark] = lambda raw, native, *_: native["read"](raw)
    return fastavro


# JSON Schema, as pydantic makes it -> Avro schema

_FORMATS: dict[str, Any] = {
    "date-time": {"type": "long", "logicalType": "timestamp-micros"},
    "date": {"type": "int", "logicalType": "date"},
    "time": {"type": "long", "logicalType": "time-micros"},
    "uuid": {"type": "string", "logicalType": "uuid"},
    "base64": "bytes",
}
_PLAIN = {"null": "null", "boolean": "boolean", "integer": "long", "number": "double"}
_CONSTANTS = {type(None): "null", bool: "boolean", int: "long", float: "double"}
_HINT = "give schema= (for results, output_schema=) to @avro_function"


def avro_schema(json_schema: Mapping[str, Any], *, name: str, root: str = "") -> Any:
    """Return the Avro schema of what a JSON Schema describes; ``SchemaError`` by path.

    A name that Avro does not allow is mapped, and its field keeps the real one as ``jsonName``. A
    member that may be absent is a union with null, marked ``jsonAbsent``: null means absent. One
    that may be null as well needs a default, ``jsonDefault``: Avro has one null for both.

    ``name`` is for a record without a title, and paths in errors start with ``root``.
    """
    made = _Deriver(json_schema).derive(json_schema, root, json_schema.get("title", name))
    try:
        Codec(made)
    except SchemaError as error:
        raise _no_schema(root, error.message.removeprefix("Avro ")) from None
    return made


def _no_schema(path: str, reason: str, hint: str = _HINT) -> SchemaError:
    return SchemaError(f"{path or 'the value'}: no Avro schema: {reason}", hint=hint)


class _Deriver:
    def __init__(self, json_schema: Mapping[str, Any]) -> None:
        self._defs = json_schema.get("$defs", {})
        self._types: dict[str, Any] = {}  # of the definitions; None while one is derived
        text = json.dumps(json_schema)
        given = re.findall(r'"name": "([\w.]+)"', text) if GIVEN in text else ()
        self._taken = {*_PRIMITIVES, *given}

    def derive(self, plain: Any, path: str, name: str) -> Any:  # noqa: PLR0911  (one per kind)
        if not isinstance(plain, Mapping):
            raise _no_schema(path, "it allows any value" if plain is True else "it allows no value")
        if GIVEN in plain:
            return plain[GIVEN]
        if "$ref" in plain:
            return self._referred(plain["$ref"].removeprefix("#/$defs/"), path)
        kind, choices = (
            plain.get("type"),
            plain.get("anyOf", plain.get("oneOf", plain.get("allOf"))),
        )
        if isinstance(kind, list):
            choices = [{**plain, "type": each} for each in kind]
        if choices is not None and not ("allOf" in plain and len(choices) > 1):
            return _union([self.derive(each, path, name) for each in choices], path)
        if "const" in plain or "enum" in plain:
            return self._enum(plain.get("enum", [plain.get("const")]), path, name)
        if kind == "object":
            return self._object(plain, path, name)
        if kind == "array":
            parts = list(plain.get("prefixItems", ()))
            if plain.get("items", not parts) is not False and len(parts) != plain.get("maxItems"):
                parts.append(plain.get("items", True))
            made = [self.derive(each, f"{path}[]", f"{name}_item") for each in parts]
            if not made or all(each == "null" for each in made):
                raise _no_schema(path, "it is a list of nothing")
            return {"type": "array", "items": _union(made, f"{path}[]")}
        if kind == "string":
            return _FORMATS.get(plain.get("format", ""), kind)
        if kind not in _PLAIN:
            raise _no_schema(path, "it allows any value")
        return _PLAIN[kind]

    def _referred(self, key: str, path: str) -> Any:
        if key not in self._defs:
            raise _no_schema(path, f"there is no definition {key!r}")
        if key not in self._types:
            plain, self._types[key] = self._defs[key], None
            title = plain.get("title", key) if isinstance(plain, Mapping) else key
            self._types[key] = made = self.derive(plain, path, title)
            return made
        if self._types[key] is None:
            raise _no_schema(path, f"{key} {_RECURSIVE}")
        return _by_name(self._types[key])

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

    def _enum(self, values: list[Any], path: str, name: str) -> Any:
        texts = list(dict.fromkeys(value for value in values if isinstance(value, str)))
        kinds: list[Any] = ["string"] if texts else []
        if texts and all(map(_NAME.fullmatch, texts)):
            kinds = [{"type": "enum", "name": _named(name, self._taken), "symbols": texts}]
        for value in (value for value in values if not isinstance(value, str)):
            if type(value) not in _CONSTANTS:
                raise _no_schema(path, f"Avro has no constant {value!r}")
            kinds.append(_CONSTANTS[type(value)])
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
        raise _no_schema(path, reason, f"make it required, or give it a default; or {_HINT}")
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
    if twice := [kind for kind in kinds if kinds.count(kind) > 1]:
        raise _no_schema(path, f"it is one of several kinds of {twice[0]}; an Avro union has one")
    return sorted(flat, key=lambda each: each != "null") if len(flat) > 1 else flat[0]


def _kind(made: Any) -> str:
    return str(made.get("name", made["type"])) if isinstance(made, dict) else str(made)


# Avro schema -> the schema that fastavro works by, and the hint that pydantic works by


class _Choices(dict[Any, Any]):
    """A union's branches or an enum's symbols by index, for reading: -1 is a list's last."""

    def __missing__(self, index: int) -> Any:
        raise ValueError(f"there is no branch or symbol {index}")


def _listed(native: Any) -> Any:
    """Return a schema for writing: fastavro validates lists only."""
    if isinstance(native, list | _Choices):
        items = native.values() if isinstance(native, dict) else native
        return [_listed(each) for each in items if each != "union"]
    return {k: _listed(v) for k, v in native.items()} if isinstance(native, dict) else native


class _Type(NamedTuple):
    label: str  # full name or kind: unique in a union
    native: Any  # the schema that fastavro works by
    hint: Any  # pydantic validates JSON values by it, and makes them what fastavro writes
    rank: int = 0  # a value becomes the first branch of the lowest rank among those it fits
    is_empty: bool = False  # whether values take no bytes
    parts: int = 1  # types that it consists of
    branches: tuple[Any, ...] = ()
    default: Callable[[Any], Any] = lambda raw: raw  # a schema's default -> JSON value


def _wrong(path: str, message: str) -> SchemaError:
    return SchemaError(f"Avro {path}: {message}")


class _Compiler:
    """Makes types of schemas; ``extra`` is pydantic's setting for members they do not have."""

    def __init__(self, extra: Literal["forbid", "ignore"]) -> None:
        self._extra = extra
        self._named: dict[str, _Type | None] = {}

    def compile(self, schema: Any, path: str) -> _Type:
        """Return the type of a schema that fastavro parsed."""
        if isinstance(schema, list):
            return self._union(schema, path)
        if isinstance(schema, str) and schema in self._named:
            found = self._named[schema]
            if found is None:
                raise _wrong(path, f"{schema} {_RECURSIVE}")
            return found
        plain = schema if isinstance(schema, dict) else {"type": schema}
        kind, name = plain["type"], plain.get("name")
        if name is not None:
            if not all(map(_NAME.fullmatch, name.split("."))) or name in _PRIMITIVES:
                raise _wrong(path, f"{name!r} is not a name of a type")
            self._named[name] = None
        if kind in ("record", "error"):
            made = self._record(schema, path)
        elif kind in ("array", "map"):
            part = "items" if kind == "array" else "values"
            inner = self.compile(schema[part], f"{path}.{part}")
            if inner.is_empty and kind == "array":  # a few bytes could claim any number of them
                raise _wrong(path, "the array's items are always empty")
            each, key = inner.hint, _hints()["string"]
            hint = list[each] if kind == "array" else dict[key, each]  # type: ignore[valid-type]
            made = _Type(kind, {"type": kind, part: inner.native}, hint, parts=1 + inner.parts)
        else:
            made = _leaf(kind, plain, path)
        if name is not None:
            self._named[name] = made
        return made

    def _union(self, schema: list[Any], path: str) -> _Type:
        branches = tuple(self.compile(each, f"{path}[{i}]") for i, each in enumerate(schema))
        labels = [branch.label for branch in branches]
        if not labels or "union" in labels or len({*labels}) < len(labels):
            raise _wrong(path, f"a union has types, each once and none a union, got {labels}")
        native = _Choices({"type": "union"} | dict(enumerate(each.native for each in branches)))
        parts = 1 + sum(branch.parts for branch in branches)
        return _Type("union", native, _any_of(branches), parts=parts, branches=branches)

    def _record(self, schema: dict[str, Any], path: str) -> _Type:
        from pydantic import ConfigDict, with_config
        from typing_extensions import TypedDict

        kinds: dict[str, _Type] = {}
        hints: dict[str, Any] = {}
        absent: list[str] = []
        for field in schema["fields"]:
            name, where = field["name"], f"{path}.{field['name']}"
            key = field.get("jsonName", name)
            if not isinstance(key, str) or not _NAME.fullmatch(name) or key in kinds:
                raise _wrong(path, f"{name!r} is not a name of a field, or is there twice")
            kinds[key] = self.compile(field["type"], where)
            hints[key] = _member(field, kinds[key], where)
            absent += [key] if "jsonAbsent" in field else []

        def read(record: dict[str, Any]) -> dict[str, Any]:
            for key in absent:
                if record[key] is None:
                    del record[key]
            return record

        label = schema["name"]
        fields = [{"name": key, "type": kind.native} for key, kind in kinds.items()]
        mark = {"logicalType": _MARK, "read": read} if absent else {}
        about = {"description": schema["doc"]} if schema.get("doc") else None
        config = ConfigDict(extra=self._extra, title=label, json_schema_extra=about)
        return _Type(
            label,
            {"type": "record", "name": label, "fields": fields, **mark},
            with_config(config)(TypedDict(label, hints)),  # type: ignore[operator]
            is_empty=all(kind.is_empty for kind in kinds.values()),
            parts=1 + sum(kind.parts for kind in kinds.values()),
        )


def _any_of(branches: Iterable[_Type]) -> Any:
    from pydantic import AfterValidator

    def labelled(kind: _Type) -> Any:  # how fastavro is told the branch
        return Annotated[kind.hint, AfterValidator(lambda value: (kind.label, value))]

    ranked = sorted(branches, key=lambda each: each.rank)
    hints = [None if each.label == "null" else labelled(each) for each in ranked]
    return Union[tuple(hints)]  # noqa: UP007


def _member(field: dict[str, Any], kind: _Type, path: str) -> Any:
    """Return the hint of a record's member."""
    from pydantic import Field, TypeAdapter
    from typing_extensions import NotRequired

    doc = field.get("doc") or None
    if "jsonAbsent" in field:
        rest = [branch for branch in kind.branches if branch.label != "null"]
        if field["jsonAbsent"] is not True or len(rest) in (0, len(kind.branches)):
            raise _wrong(path, "jsonAbsent: true is for a union with null")
        return NotRequired[Annotated[_any_of(rest), Field(description=doc)]]
    if "jsonDefault" not in field and "default" not in field:
        return Annotated[kind.hint, Field(description=doc)]
    raw = field.get("jsonDefault", field.get("default"))
    for branch in kind.branches or (kind,):
        with contextlib.suppress(ValueError, TypeError, AttributeError):
            default = raw if "jsonDefault" in field else branch.default(raw)
            TypeAdapter(kind.hint).validate_python(default, strict=True)
            about = Field(description=doc, default=default, validate_default=True)
            return NotRequired[Annotated[kind.hint, about]]
    raise _wrong(path, f"the default {raw!r} does not fit")


@functools.cache
def _hints() -> dict[str, Any]:
    """Return the hints of values that fastavro writes as they are."""
    from pydantic import Field, WithJsonSchema

    integer, number, text = (WithJsonSchema({"type": e}) for e in ("integer", "number", "string"))
    single = float.fromhex("0x1.fffffep127")  # fastavro writes more as an infinity
    return {
        "null": None,
        "boolean": bool,
        "int": Annotated[int, Field(ge=-(2**31), le=2**31 - 1)],
        "long": Annotated[int, Field(ge=-(2**63), le=2**63 - 1), integer],
        "float": Annotated[float, Field(ge=-single, le=single), number],
        "double": Annotated[float, Field(allow_inf_nan=False)],
        # With a limit, pydantic refuses surrogates.
        "string": Annotated[str, Field(max_length=1 << 40), text],
    }


_EXACT = decimal.Context(prec=decimal.MAX_PREC)
_DATE_OR_TIME = re.compile(r"\d\d(:|\d\d-)", re.ASCII)  # pydantic takes numbers, too
_LOCAL = {"type": "datetime", "tz_constraint": "naive", "microseconds_precision": "error"}
_INSTANT, _TIME = {**_LOCAL, "tz_constraint": "aware"}, {**_LOCAL, "type": "time"}
# pydantic's schema of the texts of a logical type, their format, and what an error expects.
_TEXTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "date": ({"type": "date"}, "date", "a date, as 2020-01-31"),
    "time": (_TIME, "time", "a time without UTC offset, as 12:30:00"),
    "timestamp": (_INSTANT, "date-time", "a date and time with UTC offset"),
    "local-timestamp": (_LOCAL, "", "a date and time without UTC offset"),
    "decimal": ({"type": "decimal"}, "decimal", "a decimal number as text, in precision"),
    "uuid": ({"type": "uuid"}, "uuid", "a UUID"),
}


def _leaf(kind: str, schema: dict[str, Any], path: str) -> _Type:
    from pydantic import AfterValidator, WithJsonSchema
    from pydantic_core import PydanticCustomError, SchemaValidator

    label, size = schema.get("name", kind), schema.get("size")
    digits: Any = schema.get("precision")
    if kind == "fixed" and (type(size) is not int or size < 0):
        raise _wrong(path, f"size: expected a number of bytes, got {size!r}")
    if kind == "enum":
        if not schema["symbols"]:
            raise _wrong(path, "an enum has symbols")
        symbols = _Choices(enumerate(schema["symbols"]))
        native: Any = {"type": "enum", "name": label, "symbols": symbols}
        return _Type(label, native, Literal[(*schema["symbols"],)])
    logical = f"{kind}-{schema.get('logicalType')}"
    prepare = _fastavro().write.LOGICAL_WRITERS.get(logical)
    restore = _fastavro().read.LOGICAL_READERS.get(logical)
    if logical == "fixed-uuid" and size == 16:
        prepare, restore = lambda value, _: value.bytes, lambda raw, *_: uuid.UUID(bytes=raw)
    known = _TEXTS.get(re.sub("^[a-z]+-|-(millis|micros)$", "", logical)) if restore else None
    if known is None and kind in _hints():
        return _Type(kind, kind, _hints()[kind], int(kind == "float"), is_empty=kind == "null")
    if known is None:
        form, expected = "base64", f"base64 text{'' if size is None else f' of {size} bytes'}"
        parse: Any = functools.partial(base64.b64decode, validate=True)
        prepare, restore = lambda value, _: value, lambda raw, *_: raw
    else:
        core, form, expected = known
        expected += ", in ms" if logical.endswith("-millis") else ""
        if form == "decimal":
            if type(digits) is not int or digits < 1:
                raise _wrong(path, f"precision: expected a number of digits, got {digits!r}")
            core = {**core, "max_digits": digits, "decimal_places": schema.get("scale", 0)}
        parse = functools.partial(SchemaValidator(core).validate_strings, strict=True)

    def write(text: str) -> Any:
        with contextlib.suppress(ValueError, ArithmeticError):
            value = parse(text)
            raw = prepare(value.normalize(_EXACT) if form == "decimal" else value, schema)
            # It rounds to ms, and raises for the year 10000 in UTC.
            is_same = restore(raw, schema, None) == value and (size is None or len(raw) == size)
            if is_same and (form in ("base64", "decimal", "uuid") or _DATE_OR_TIME.match(text)):
                return raw
        raise PydanticCustomError("avro", "{reason}", {"reason": f"expected {expected}"})

    def read(raw: Any) -> str:
        with contextlib.suppress(ValueError, ArithmeticError):
            # fastavro takes -1 for a time of day; converting millions of digits takes minutes.
            if not (len(raw) > digits + 16 if form == "decimal" else form == "time" and raw < 0):
                return _shown(restore(raw, schema, None))
        raise ValueError(f"expected {expected}, got {raw!r}"[:200])

    def default(raw: Any) -> str:
        return read(raw.encode("latin-1") if kind in ("bytes", "fixed") else raw)

    native = {"type": kind, "logicalType": _MARK, "read": read, "name": label, "size": size}
    described = WithJsonSchema({"type": "string"} | ({"format": form} if form else {}))
    hint: Any = _hints()["string"]
    hint = Annotated[hint, AfterValidator(write), described]
    return _Type(label, native, hint, 1, is_empty=size == 0, default=default)


def _shown(value: Any) -> str:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, decimal.Decimal):
        return format(value, "f")
    return str(value) if isinstance(value, uuid.UUID) else value.isoformat().replace("+00:00", "Z")


def is_usable() -> bool:
    """Return whether schemas can be checked here: where a flow is imported, packages may lack."""
    try:
        _fastavro()
        import pydantic  # noqa: F401
    except Exception:  # noqa: BLE001  (broken is no reason to break a flow's import, either)
        return False
    return True


# Bytes and files


class Codec:
    """Encodes and decodes the values of one Avro schema; ``SchemaError`` if it is not one.

    With ``extra="ignore"``, members that the schema does not have are left out, not refused.
    """

    def __init__(self, schema: Any, *, extra: Literal["forbid", "ignore"] = "forbid") -> None:
        from pydantic import TypeAdapter

        self.schema, fastavro = schema, _fastavro()
        try:
            made = _Compiler(extra).compile(fastavro.parse_schema(schema, {}), "schema")
            if made.parts > _MAX_PARTS:
                raise SchemaError(f"Avro schema: it has more than {_MAX_PARTS} parts")
            self._adapter: TypeAdapter[Any] = TypeAdapter(made.hint)
        except SchemaError:
            raise
        except Exception as error:  # noqa: BLE001  (fastavro's own, and Python's for odd types)
            reasons = {
                fastavro.schema.UnknownType: "there is no type ",
                KeyError: "missing: ",
                RecursionError: "nested too deeply: ",
            }
            reason = f"{reasons.get(type(error), '')}{error}"
            raise SchemaError(f"Avro schema: {reason}"[:300]) from None
        # A record of one field has its bytes. fastavro leaves alone what it takes for parsed.
        marks = {"__fastavro_parsed": True, "__named_schemas": {}}
        fields = [{"name": "value", "type": made.native}]
        self._native = {"type": "record", "name": "value", "fields": fields, **marks}
        self.for_writing = _listed(self._native)
        self._write, self._read = fastavro.schemaless_writer, fastavro.schemaless_reader

    def json_schema(self) -> dict[str, Any]:
        """Return the JSON Schema of the values."""
        return self._adapter.json_schema()

    def convert(self, value: Any, *, root: str, error: type[ValueFault]) -> Any:
        """Return what fastavro writes for a JSON value; ``error`` by path where it does not fit."""
        from pydantic import ValidationError

        try:
            return {"value": self._adapter.validator.validate_python(value, strict=True)}
        except ValidationError as failure:
            from mfimage.function.faults import explain_value

            raise error(explain_value(failure, value, root)) from None

    def encode(self, value: Any, *, root: str, error: type[ValueFault] = OutputError) -> bytes:
        """Return a value's bytes; ``error`` by path where it does not fit the schema."""
        out = io.BytesIO()
        self._write(out, self.for_writing, self.convert(value, root=root, error=error))
        return out.getvalue()

    def decode(self, file: BinaryIO, *, root: str) -> Any:
        """Return the JSON value that starts where ``file`` stands; ``InputError`` if none does."""
        try:
            return self._read(file, self._native, None)["value"]
        except (EOFError, IndexError):
            raise _fault(root, "the data end before the value does") from None
        except UnicodeDecodeError:
            raise _fault(root, "text that is not valid Unicode") from None
        except ValueError as error:
            raise _fault(root, str(error)) from None

    def normalize(self, value: Any, *, root: str, error: type[ValueFault]) -> Any:
        """Return what a JSON value reads as once it is written, with defaults; see ``encode``."""
        return self.decode(io.BytesIO(self.encode(value, root=root, error=error)), root=root)


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
        self._codecs: dict[int, Codec] = {}

    def schema(self, json_schema: Mapping[str, Any], *, name: str) -> Any:
        """Return the Avro schema of what a JSON Schema describes; ``SchemaError`` by path."""
        return avro_schema(json_schema, name=name)

    def dumps(self, value: Any, schema: Any) -> bytes:
        """Return a value's bytes; ``OutputError`` by path where it does not fit the schema."""
        return self._codec(schema).encode(value, root="result")

    def loads(self, data: bytes, schema: Any) -> Any:
        """Return the value of bytes from anywhere; ``InputError`` if they have none."""
        file = io.BytesIO(data)
        value = self._codec(schema).decode(file, root="data")
        if file.tell() < len(data):
            raise _fault("data", f"{len(data) - file.tell()} bytes more than the value has")
        return value

    def _codec(self, schema: Any) -> Codec:
        # By identity: comparing schemas would cost more than the value.
        found = self._codecs.get(id(schema))
        if found is None or found.schema is not schema:
            if len(self._codecs) >= _MAX_CODECS:
                self._codecs.clear()
            found = self._codecs[id(schema)] = Codec(schema)
        return found

    def read(self, file: BinaryIO, schema: Any = None) -> Iterator[Any]:
        """Yield the records of a container file.

        With a schema, they are read as Avro does for a reader of another schema: members that it
        does not have are left out, those that are absent have its defaults.
        """
        own = None if schema is None else Codec(schema, extra="ignore")
        number, root = 0, "file"
        try:
            blocks = _fastavro().block_reader(_Stream(file))
            codec = Codec(blocks.writer_schema)
            for block in blocks:
                for _ in range(block.num_records):
                    number += 1
                    root = f"record {number}"
                    value = codec.decode(block.bytes_, root=root)
                    yield own.normalize(value, root=root, error=InputError) if own else value
                if rest := block.bytes_.read():
                    raise _fault(root, f"{len(rest)} bytes more than the value has")
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
            yield lambda each: writer.write(codec.convert(each, root="result", error=OutputError))
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
            raise ValueError(f"a length of {size}")
        found = io.BytesIO()
        while piece := self._file.read(min(size - found.tell(), 1 << 20)):
            found.write(piece)
        return found.getvalue()
