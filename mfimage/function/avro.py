"""The Avro serializer: fastavro writes and reads bytes, pydantic validates and converts values.

fastavro is optional and imported where it is used: a flow that imports a decorated function runs
its steps where only Metaflow is installed.

The bytes come from anywhere, and fastavro (1.10 to 1.13 were tried) trusts them:

- Index -1 of a union or an enum reads as the last one, because Python lists count from the end.
  Both are dicts here (``_Choices``).
- Deep values of a recursive schema end the process: the C code has no limit. So a schema may not
  be recursive, and its own depth is limited.
- Items that take no bytes may claim any number: the schema of such an array is refused. Any other
  length or count beyond the data is an ``EOFError``, without memory for it, and so is a negative
  length. (A block of -2**63 items reads as an empty one.)
- Any byte but 0 is true: a boolean is a fixed of one byte here. An int may have more than 32 bits,
  a time of day may be negative: checked here. An integer of more than 64 bits loses the others:
  see ``_Careful``.
- When a map has a key twice, the last one counts, as in JSON.

So fastavro works by a schema of our own, ``native``: fields have their JSON names, named types are
inlined, and a logical type turns what fastavro has read into the JSON value.
"""

from __future__ import annotations

import base64
import decimal
import functools
import hashlib
import io
import json
import re
import struct
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, BinaryIO, NamedTuple

from mfimage.errors import (
    Fault,
    InputError,
    MfimageError,
    OutputError,
    SchemaError,
    SerializerError,
    ValueFault,
)
from mfimage.function.avro_schema import NAME, PRIMITIVES, RECURSIVE, derive_schema, no_schema

_LOGICAL_TYPE = "mfimage-json"
_FULL_NAME = re.compile(rf"{NAME.pattern}(\.{NAME.pattern})*")
_MAX_JSON_DEPTH, _MAX_PARTS = 400, 10_000
_MAX_BLOCK = 1 << 30
_SCHEMAS_KEPT = 64
# NaN and infinities have this, and integers of more than 64 bits; other data may have it, too.
_MAY_BE_INFINITE = re.compile(rb"[\x80-\xff][\x7f\xff]", re.DOTALL)
_MAY_BE_TOO_LONG = re.compile(rb"[\x80-\xff]{9}[^\0\1]", re.DOTALL)
_DATE_OR_TIME = re.compile(r"\d\d(:|\d\d-)", re.ASCII)  # pydantic takes numbers, too
_STRING = {"type": "str", "max_length": 1 << 40}  # a limit, so that pydantic refuses surrogates
_CONTEXT = decimal.Context(prec=decimal.MAX_PREC)


class _Misfit(ValueError):
    """What does not fit, in words for the user."""


class _Choices(dict[Any, Any]):
    """The branches of a union or the symbols of an enum, by index."""

    def __missing__(self, index: int) -> Any:
        raise _Misfit(f"there is no branch or symbol {index}")

    def __iter__(self) -> Iterator[Any]:
        return (value for key, value in self.items() if key != "type")

    def index(self, symbol: str) -> int:
        return list(self).index(symbol)


class _Type(NamedTuple):
    """One type of a schema.

    Attributes
    ----------
    label : str
        Full name, or kind: unique in a union.
    native : Any
        The schema that fastavro works by.
    core : dict
        pydantic's schema: validates a JSON value and makes of it what fastavro writes.
    described : dict
        JSON Schema of the values.
    is_empty : bool
        Whether its values take no bytes.
    parts : int
        How many types it consists of.
    branches : tuple of _Type
        Of a union.
    meaning : callable
        Returns the JSON value of a default as schemas have it.
    """

    label: str
    native: Any
    core: dict[str, Any]
    described: dict[str, Any]
    is_empty: bool = False
    parts: int = 1
    branches: tuple[Any, ...] = ()
    meaning: Callable[[Any], Any] = lambda raw: raw


@functools.cache
def _fastavro() -> Any:
    try:
        import fastavro
    except ImportError:
        raise SerializerError(
            "avro: fastavro is not installed here", hint="pip install 'mfimage[avro]'"
        ) from None
    for kind in ("int", "long", "string", "bytes", "fixed", "record"):
        fastavro.read.LOGICAL_READERS[f"{kind}-{_LOGICAL_TYPE}"] = _read_native
    return fastavro


def _read_native(raw: Any, native: Any, _: Any = None) -> Any:
    return native["read"](raw)


def _read_by(read: Callable[[Any], Any], **native: Any) -> dict[str, Any]:
    return {**native, "logicalType": _LOGICAL_TYPE, "read": read}


def _function(kind: str, function: Callable[..., Any], **more: Any) -> dict[str, Any]:
    of = {"type": "no-info", "function": function}
    return {"type": f"function-{kind}", "function": of, **more}


def _validator(core: Any) -> Callable[[Any], Any]:
    from pydantic_core import SchemaValidator

    return functools.partial(SchemaValidator(core).validate_python, strict=True)


def _refusal(reason: str) -> Exception:
    from pydantic_core import PydanticCustomError

    return PydanticCustomError("avro", "{reason}", {"reason": reason})


def checked_schema(schema: Any) -> Any:
    """Return a schema as a JSON value: from a dict, a list, JSON text, or one fastavro parsed.

    Where fastavro is not installed, whether it is Avro is checked when it is used.

    Raises
    ------
    SchemaError
        Saying what is wrong with it.
    """
    if isinstance(schema, str) and schema not in PRIMITIVES:
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise SchemaError(f"Avro schema: not JSON: {error}") from None
    if isinstance(schema, Mapping):  # fastavro leaves marks
        schema = {key: each for key, each in schema.items() if not str(key).startswith("__")}
    try:
        # A copy: later changes of the original do not change the function.
        plain = json.loads(json.dumps(schema))
    except (TypeError, ValueError, RecursionError):
        text = f"Avro schema: expected a dict, a list or JSON text, got {schema!r}"
        raise SchemaError(text[:200]) from None
    if find_spec("fastavro") and find_spec("pydantic_core"):
        _Compiler(plain)
    return plain


def avro_schema(json_schema: Mapping[str, Any], *, name: str, root: str = "") -> Any:
    """Return the Avro schema of what a JSON Schema describes; see ``derive_schema``."""
    made = derive_schema(json_schema, name=name, root=root)
    try:
        _Compiler(made)
    except SchemaError as error:
        raise no_schema(root, error.message.removeprefix("Avro ")) from None
    return made


def _parsed(schema: Any) -> Any:
    """Return a schema as fastavro parses it: references are full names."""
    level = [schema]
    for _ in range(_MAX_JSON_DEPTH):
        parts = [each.values() if isinstance(each, dict) else each
                 for each in level if isinstance(each, dict | list)]  # fmt: skip
        level = [each for part in parts for each in part]
    if level:
        raise SchemaError("Avro schema: nested too deeply")
    try:
        return _fastavro().parse_schema(schema, {})
    except MfimageError:
        raise
    except KeyError as error:
        raise SchemaError(f"Avro schema: {error} is missing") from None
    except _fastavro().schema.UnknownType as error:
        raise SchemaError(f"Avro schema: there is no type {error.name!r}"[:300]) from None
    except Exception as error:  # noqa: BLE001  (fastavro's own, and Python's for odd types)
        raise SchemaError(f"Avro schema: {error}"[:300]) from None


def _wrong(path: str, message: str) -> SchemaError:
    return SchemaError(f"Avro {path}: {message}")


class _Compiler:
    """Makes a schema's type; ``extra`` is what pydantic does with members that it does not have."""

    def __init__(self, schema: Any, *, extra: str = "forbid") -> None:
        self._extra = extra
        self._named: dict[str, _Type | None] = {}
        self.has_floats = self.has_single_bytes = False
        self.type = self._compile(_parsed(schema), "schema")

    def _compile(self, schema: Any, path: str) -> _Type:
        if isinstance(schema, str) and schema in self._named:
            found = self._named[schema]
            if found is None:
                raise _wrong(path, f"{schema} contains itself, and {RECURSIVE}")
            return found
        plain = schema if isinstance(schema, dict) else {"type": schema}
        kind = "union" if isinstance(schema, list) else plain["type"]
        name = plain.get("name")
        if name is not None:
            if not _FULL_NAME.fullmatch(name) or name in PRIMITIVES:
                raise _wrong(path, f"{name!r} is not a name of a type")
            self._named[name] = None
        made = self._made(kind, schema, path)
        if made.parts > _MAX_PARTS:
            raise _wrong(path, f"it has more than {_MAX_PARTS} parts")
        if name is not None:
            self._named[name] = made
        return made

    def _made(self, kind: str, schema: Any, path: str) -> _Type:
        if kind == "union":
            return self._union(schema, path)
        if kind in ("record", "error"):
            return self._record(schema, path)
        if kind == "array":
            items = self._compile(schema["items"], f"{path}.items")
            if items.is_empty:
                raise _wrong(path, "the array's items are always empty")
            native = {"type": kind, "items": items.native}
            core = {"type": "list", "items_schema": items.core}
            described = {"type": kind, "items": items.described}
            return _Type(kind, native, core, described, parts=1 + items.parts)
        if kind == "map":
            values = self._compile(schema["values"], f"{path}.values")
            native = {"type": kind, "values": values.native}
            core = {"type": "dict", "keys_schema": _STRING, "values_schema": values.core}
            described = {"type": "object", "additionalProperties": values.described}
            return _Type(kind, native, core, described, parts=1 + values.parts)
        if kind == "enum":
            name, symbols = schema["name"], schema["symbols"]
            if not symbols or len({*symbols}) < len(symbols):
                raise _wrong(path, f"an enum has symbols, each once, got {symbols}")
            native = {"type": kind, "name": name, "symbols": _Choices(enumerate(symbols))}
            described = {"type": "string", "enum": symbols, "title": name}
            return _Type(name, native, {"type": "literal", "expected": symbols}, described)
        self.has_floats |= kind in ("float", "double")
        self.has_single_bytes |= kind == "fixed" and schema["size"] == 1
        return _leaf(kind, schema if isinstance(schema, dict) else {}, path)

    def _union(self, schema: list[Any], path: str) -> _Type:
        branches = tuple(self._compile(each, f"{path}[{i}]") for i, each in enumerate(schema))
        labels = [branch.label for branch in branches]
        if not labels or "union" in labels or len({*labels}) < len(labels):
            raise _wrong(path, f"a union has types, each once and none a union, got {labels}")
        rest = [branch for branch in branches if branch.label != "null"]
        kinds = {branch.described["type"].replace("integer", "number") for branch in rest}
        choices = [_tagged(branch) for branch in rest]
        if len(kinds) < len(rest):
            # First whatever keeps the value as it is: 1 stays an integer in ["double", "long"].
            choices = [*(_exact(*pair) for pair in zip(rest, choices, strict=True)), *choices]
        core: dict[str, Any] = {"type": "union", "choices": choices, "mode": "left_to_right"}
        if len(choices) < 2:
            core = choices[0] if choices else {"type": "none"}
        return _Type(
            "union",
            _Choices({"type": "union"} | dict(enumerate(branch.native for branch in branches))),
            core if len(rest) == len(branches) else {"type": "nullable", "schema": core},
            {"anyOf": [branch.described for branch in branches]},
            parts=1 + sum(branch.parts for branch in branches),
            branches=branches,
        )

    def _record(self, schema: dict[str, Any], path: str) -> _Type:
        members: dict[str, Any] = {}
        described: dict[str, Any] = {}
        kinds = []
        for each in schema["fields"]:
            name, where = each["name"], f"{path}.{each['name']}"
            key = each.get("jsonName", name)
            if not isinstance(key, str) or not NAME.fullmatch(name) or key in members:
                raise _wrong(
                    path, f"{name!r} is not a name of a field, or there is another {key!r}"
                )
            kinds.append(self._compile(each["type"], where))
            members[key], described[key] = _member(each, kinds[-1], where)
        native = {
            "type": "record", "name": schema["name"],
            "fields": [{"name": key, "type": kind.native}
                       for key, kind in zip(members, kinds, strict=True)],
        }  # fmt: skip
        absent = [
            each.get("jsonName", each["name"])
            for each in schema["fields"]
            if each.get("jsonAbsent")
        ]
        required = [key for key, member in members.items() if member["required"]]
        return _Type(
            schema["name"],
            _read_by(functools.partial(_without_null, absent), **native) if absent else native,
            {"type": "typed-dict", "fields": members, "extra_behavior": self._extra},
            {
                "type": "object", "title": schema["name"], "properties": described,
                "additionalProperties": False,
                **({"required": required} if required else {}),
                **({"description": schema["doc"]} if schema.get("doc") else {}),
            },
            is_empty=all(kind.is_empty for kind in kinds),
            parts=1 + sum(kind.parts for kind in kinds),
        )  # fmt: skip


def _tagged(branch: _Type) -> dict[str, Any]:
    return _function("after", lambda value: (branch.label, value), schema=branch.core)


def _exact(branch: _Type, core: dict[str, Any]) -> dict[str, Any]:
    codec = functools.cache(lambda: _Bytes(branch.native))

    def validate(value: Any, handler: Callable[[Any], Any]) -> Any:
        tagged = handler(value)
        again = codec().read(io.BytesIO(codec().write(tagged[1])))
        if json.dumps(again, sort_keys=True) != json.dumps(value, sort_keys=True):
            raise _refusal("it reads as another value")
        return tagged

    return _function("wrap", validate, schema=core)


def _member(plain: dict[str, Any], made: _Type, path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the pydantic and JSON Schemas of a record's member."""
    core, described = made.core, dict(made.described)
    default = plain.get("jsonDefault", plain.get("default"))
    is_absent = plain.get("jsonAbsent", False)
    if is_absent:
        if is_absent is not True or core["type"] != "nullable" or len(made.branches) < 2:
            raise _wrong(path, "jsonAbsent: true is for a union with null")
        core = core["schema"]  # null itself is refused
        rest = [branch.described for branch in made.branches if branch.label != "null"]
        described = dict(rest[0]) if len(rest) == 1 else {"anyOf": rest}
        core = {"type": "default", "schema": core, "default": None}
    elif "jsonDefault" in plain or "default" in plain:
        for branch in made.branches or (made,):
            try:
                value = default if "jsonDefault" in plain else branch.meaning(default)
                core = {"type": "default", "schema": made.core,
                        "default": _validator(made.core)(value)}  # fmt: skip
            except (ValueError, TypeError, AttributeError):
                continue
            described["default"] = value
            break
        else:
            raise _wrong(path, f"the default {default!r} does not fit")
    if plain.get("doc"):
        described["description"] = plain["doc"]
    required = core["type"] != "default"
    return {"type": "typed-dict-field", "schema": core, "required": required}, described


def _without_null(keys: list[str], record: dict[str, Any]) -> dict[str, Any]:
    for key in keys:
        if record[key] is None:
            del record[key]
    return record


def _leaf(kind: str, schema: dict[str, Any], path: str) -> _Type:
    logical, size = schema.get("logicalType"), schema.get("size")
    if kind == "fixed" and (type(size) is not int or size < 0):
        raise _wrong(path, f"size: expected a number of bytes, got {size!r}")
    form: str = "base64"
    write: Callable[[str], Any]
    read: Callable[[Any], str]
    if logical == "uuid" and (kind == "string" or size == 16):
        form = logical
        write, read = (_uuid_bytes, _uuid_text) if size else (_checked_uuid, _checked_uuid)
    elif (kind, logical) in _LOGICAL:
        core, form = _LOGICAL[kind, logical]
        if logical == "decimal":
            precision, scale = schema.get("precision"), schema.get("scale", 0)
            if type(precision) is not int or type(scale) is not int:
                raise _wrong(
                    path, f"precision, scale: expected numbers, got {precision!r}, {scale!r}"
                )
            core = {**core, "max_digits": precision, "decimal_places": scale}
        write, read = _by_fastavro(f"{kind}-{logical}", schema, core)
    elif kind in ("bytes", "fixed"):
        write, read = _from_base64, lambda raw: base64.b64encode(raw).decode()
    else:
        return _LEAVES[kind]
    expected = _EXPECTED.get(
        (logical or "").removesuffix("-millis").removesuffix("-micros"), "base64 text"
    )

    def convert(text: str) -> Any:
        try:
            raw = write(text)
        except _Misfit as error:
            raise _refusal(str(error)) from None
        except (ValueError, OverflowError, ArithmeticError):
            raise _refusal(f"expected {expected}") from None
        if size is not None and len(raw) != size:
            raise _refusal(f"expected {size} bytes, not {len(raw)}")
        return raw

    def back(raw: Any) -> str:
        try:
            return read(raw)
        except (ValueError, OverflowError, ArithmeticError):
            raise _Misfit(f"expected {expected}, got {raw!r}"[:200]) from None

    native = {"type": kind, **({"name": schema["name"], "size": size} if kind == "fixed" else {})}
    return _Type(
        schema.get("name", kind),
        _read_by(back, **native),
        _function("after", convert, schema=_STRING),
        {"type": "string", **({"format": form} if form else {})},
        is_empty=size == 0,
        meaning=lambda raw: back(raw.encode("latin-1") if kind in ("bytes", "fixed") else raw),
    )


def _by_fastavro(
    name: str, schema: dict[str, Any], core: dict[str, Any]
) -> tuple[Callable[[str], Any], Callable[[Any], str]]:
    """Return what converts texts to the raw values of a logical type, and back.

    fastavro rounds what does not fit, and takes -1 for a time of the day: both ways are checked by
    going back.
    """
    from pydantic_core import SchemaValidator

    prepare = _fastavro().write.LOGICAL_WRITERS[name]
    restore = _fastavro().read.LOGICAL_READERS[name]
    parse: Any = functools.partial(SchemaValidator(core).validate_strings, strict=True)
    digits = core.get("max_digits")

    def write(text: str) -> Any:
        if not (digits or _DATE_OR_TIME.match(text)):
            raise ValueError
        value = parse(text)
        if digits:
            value = _CONTEXT.normalize(value)
        raw = prepare(value, schema)
        if restore(raw, schema, None) != value:
            raise _Misfit(f"it does not fit {schema['logicalType']}")
        return raw

    def read(raw: Any) -> str:
        if digits and len(raw) > digits + 16:
            raise ValueError
        value = restore(raw, schema, None)
        again = prepare(value, schema)
        if digits:
            if int.from_bytes(again, "big", signed=True) != int.from_bytes(raw, "big", signed=True):
                raise ValueError
            return format(value, "f")
        if again != raw:
            raise ValueError
        return str(value.isoformat().replace("+00:00", "Z"))

    return write, read


def _checked_uuid(text: str) -> str:
    uuid.UUID(text)
    return text


def _uuid_bytes(text: str) -> bytes:
    return uuid.UUID(text).bytes


def _uuid_text(raw: bytes) -> str:
    return str(uuid.UUID(bytes=raw))


def _from_base64(text: str) -> bytes:
    raw = base64.b64decode(text, validate=True)
    if base64.b64encode(raw).decode() != text:
        raise ValueError
    return raw


def _read_boolean(raw: bytes) -> bool:
    if raw not in (b"\0", b"\1"):
        raise _Misfit(f"a byte of {raw[0]} is not a boolean")
    return raw == b"\1"


def _read_int(raw: int) -> int:
    if not -(2**31) <= raw < 2**31:
        raise _Misfit(f"{raw} has more than 32 bits")
    return raw


def _float(kind: str) -> dict[str, Any]:
    def write(value: Any) -> float:
        if isinstance(value, float | int) and not isinstance(value, bool):
            try:
                number = float(value)
                if kind == "float":
                    struct.pack("<f", number)
            except OverflowError:
                raise _refusal(f"too large for a {kind}") from None
            if number - number != 0:
                raise _refusal("it has no JSON form")
            if number != value:
                raise _refusal(f"no {kind} equals it")
            return number
        from pydantic_core import PydanticKnownError

        raise PydanticKnownError("float_type")

    return _function("plain", write)


def _bits(number: int) -> dict[str, Any]:
    return {"type": "int", "ge": -(1 << number - 1), "le": (1 << number - 1) - 1}


_LEAVES = {
    "null": _Type("null", "null", {"type": "none"}, {"type": "null"}, is_empty=True),
    "boolean": _Type(
        "boolean",
        _read_by(_read_boolean, type="fixed", name="boolean", size=1),
        _function("after", lambda value: b"\1" if value else b"\0", schema={"type": "bool"}),
        {"type": "boolean"},
    ),
    "int": _Type(
        "int", _read_by(_read_int, type="int"), _bits(32),
        {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1},
    ),
    "long": _Type("long", "long", _bits(64), {"type": "integer"}),
    "float": _Type("float", "float", _float("float"), {"type": "number"}),
    "double": _Type("double", "double", _float("double"), {"type": "number"}),
    "string": _Type("string", "string", _STRING, {"type": "string"}),
}  # fmt: skip
_TIME = {"type": "time", "tz_constraint": "naive", "microseconds_precision": "error"}
_LOCAL = {**_TIME, "type": "datetime"}
_INSTANT = {**_LOCAL, "tz_constraint": "aware"}
_LOGICAL: dict[tuple[str, Any], tuple[dict[str, Any], str]] = {
    ("int", "date"): ({"type": "date"}, "date"),
    ("int", "time-millis"): (_TIME, "time"),
    ("long", "time-micros"): (_TIME, "time"),
    ("long", "timestamp-millis"): (_INSTANT, "date-time"),
    ("long", "timestamp-micros"): (_INSTANT, "date-time"),
    ("long", "local-timestamp-millis"): (_LOCAL, ""),
    ("long", "local-timestamp-micros"): (_LOCAL, ""),
    ("bytes", "decimal"): ({"type": "decimal"}, "decimal"),
    ("fixed", "decimal"): ({"type": "decimal"}, "decimal"),
}
_EXPECTED = {
    "date": "a date, as 2020-01-31",
    "time": "a time without UTC offset, as 12:30:00",
    "timestamp": "a date and time with UTC offset, as 2020-01-31T12:30:00Z",
    "local-timestamp": "a date and time without UTC offset, as 2020-01-31T12:30:00",
    "decimal": "a decimal number as text, with as many digits as the schema has",
    "uuid": "a UUID",
}


class _Bytes:
    """Writes and reads single values by a native schema."""

    def __init__(self, native: Any) -> None:
        # A record of one field is encoded as its value is; and fastavro leaves a schema alone
        # that it takes for parsed.
        self.native = {
            "type": "record", "name": "value", "fields": [{"name": "value", "type": native}],
            "__fastavro_parsed": True, "__named_schemas": {},
        }  # fmt: skip
        self._write, self._read = _fastavro().schemaless_writer, _fastavro().schemaless_reader

    def write(self, value: Any) -> bytes:
        out = io.BytesIO()
        self._write(out, self.native, {"value": value})
        return out.getvalue()

    def read(self, file: Any) -> Any:
        return self._read(file, self.native, None)["value"]


class _Careful(io.BytesIO):
    """Refuses integers of more than 64 bits, which fastavro reads byte by byte."""

    _bytes = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if size == 1 and self._bytes == 9 and data > b"\1":
            raise _Misfit("an integer of more than 64 bits")
        self._bytes = self._bytes + 1 if size == 1 and data >= b"\x80" else 0
        return data


class Codec:
    """Encodes and decodes the values of one Avro schema.

    Raises
    ------
    SchemaError
        When the schema is not Avro, or is not supported.
    """

    def __init__(self, schema: Any) -> None:
        self.schema = schema
        compiled = _Compiler(schema)
        self._type = compiled.type
        self._has_floats, self._has_single_bytes = compiled.has_floats, compiled.has_single_bytes
        self._forbid = _validator(self._type.core)
        self.bytes = _Bytes(self._type.native)

    @functools.cached_property
    def _ignore(self) -> Any:
        return _validator(_Compiler(self.schema, extra="ignore").type.core)

    def json_schema(self) -> dict[str, Any]:
        """Return the JSON Schema of the values."""
        return dict(self._type.described)

    def convert(self, value: Any, *, root: str, error: type[ValueFault], drop: bool = False) -> Any:
        """Return what fastavro writes for a JSON value; ``error`` by path where it does not fit.

        With ``drop``, members that the schema does not have are left out instead of refused.
        """
        from pydantic_core import ValidationError

        try:
            return (self._ignore if drop else self._forbid)(value)
        except ValidationError as failure:
            from mfimage.function.faults import explain_value

            raise error(explain_value(failure, value, root)) from None

    def encode(self, value: Any, *, root: str) -> bytes:
        """Return a JSON value's bytes; ``OutputError`` by path where it does not fit."""
        return self.bytes.write(self.convert(value, root=root, error=OutputError))

    def decode(self, data: bytes, *, root: str) -> Any:
        """Return the JSON value that is all of ``data``; ``InputError`` if there is none."""
        (value,) = self.decode_all(data, (root,))
        return value

    def decode_all(self, data: bytes, roots: Iterable[str]) -> Iterator[Any]:
        """Yield the JSON values that are all of ``data``, one for each start of paths."""
        # Single bytes of a fixed look like those of integers.
        is_safe = self._has_single_bytes or not _MAY_BE_TOO_LONG.search(data)
        file = io.BytesIO(data) if is_safe else _Careful(data)
        may_be_infinite = self._has_floats and _MAY_BE_INFINITE.search(data)
        root = "data"
        for root in roots:
            try:
                value = self.bytes.read(file)
            except (EOFError, IndexError):
                raise _fault(root, "the data end before the value does") from None
            except UnicodeDecodeError:
                raise _fault(root, "text that is not valid Unicode") from None
            except _Misfit as misfit:
                raise _fault(root, str(misfit)) from None
            if may_be_infinite:
                from mfimage.function.json import dumps

                dumps(value, root=root, error=InputError)
            yield value
        if file.tell() != len(data):
            raise _fault(root, f"{len(data) - file.tell()} bytes more than the value has")

    def hold(self, value: Any, *, root: str, error: type[ValueFault], drop: bool = False) -> Any:
        """Return what a JSON value reads as once it is written, with defaults; see ``convert``."""
        datum = self.convert(value, root=root, error=error, drop=drop)
        return self.bytes.read(io.BytesIO(self.bytes.write(datum)))


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
        """Return the JSON value of bytes from anywhere; ``InputError`` if they have none."""
        return self._codec(schema).decode(bytes(data), root="data")

    def _codec(self, schema: Any) -> Codec:
        found = self._codecs.get(id(schema))
        if found is None or found.schema is not schema:
            found = self._codecs[id(schema)] = Codec(schema)
            if len(self._codecs) > _SCHEMAS_KEPT:
                self._codecs.popitem(last=False)
        return found

    def read(self, file: BinaryIO, schema: Any = None) -> Iterator[Any]:
        """Yield the records of a container file.

        With a schema, they are read as Avro does for a reader of another schema: members that it
        does not have are left out, those that are absent have its defaults.
        """
        own = None if schema is None else self._codec(schema)
        stream, number = _ReadOnly(file), 0
        with _only_faults():
            header = _Bytes(_HEADER).read(stream)
            codec = Codec(json.loads(header["meta"]["avro.schema"]))  # before fastavro parses it
            stream.rewind()
            blocks = _fastavro().block_reader(stream)
        while True:
            with _only_faults():
                block = next(blocks, None)
            if block is None:
                return
            roots = (f"record {number + each}" for each in range(1, 1 + block.num_records))
            for value in codec.decode_all(block.bytes_.getvalue(), roots):
                number += 1
                root = f"record {number}"
                yield own.hold(value, root=root, error=InputError, drop=True) if own else value

    @contextmanager
    def write(self, file: BinaryIO, schema: Any) -> Iterator[Callable[[Any], None]]:
        """Give a callable that appends a record to a container file."""
        if schema is None:
            raise SchemaError("an Avro file needs a schema", hint="give schema= to @avro_function")
        codec = self._codec(schema)
        # The same records are the same bytes: the marker between blocks is not random.
        marker = hashlib.sha256(json.dumps(schema, sort_keys=True).encode()).digest()[:16]
        stream = _WriteOnly(file)
        writer = _fastavro().write.Writer(stream, schema, codec="deflate", sync_marker=marker)
        writer.schema = codec.bytes.native  # the header has the user's
        try:
            yield lambda record: writer.write(
                {"value": codec.convert(record, root="result", error=OutputError)}
            )
        finally:
            writer.flush()


_HEADER = {
    "type": "record", "name": "Header", "fields": [
        {"name": "magic", "type": {"type": "fixed", "name": "Magic", "size": 4}},
        {"name": "meta", "type": {"type": "map", "values": "bytes"}},
    ],
}  # fmt: skip


class _WriteOnly:
    """A file that can only be written to: fastavro would append to one that is seekable."""

    def __init__(self, file: BinaryIO) -> None:
        self.write, self.flush = file.write, file.flush

    def seekable(self) -> bool:
        return False


class _ReadOnly:
    """A file that is only read: fastavro asks for its position, which a pipe does not have.

    What was read before ``rewind`` is read again. A length that a file claims takes no memory.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._seen: list[bytes] | None = []
        self._again = io.BytesIO()

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_BLOCK:
            raise _Misfit(f"a length of {size}")
        pieces = [self._again.read(size)]
        missing = size - len(pieces[0])
        while missing and (more := self._file.read(min(missing, 1 << 20))):
            pieces.append(more)
            missing -= len(more)
        data = b"".join(pieces)
        if self._seen is not None:
            self._seen.append(data)
        return data

    def rewind(self) -> None:
        self._again, self._seen = io.BytesIO(b"".join(self._seen or ())), None

    def tell(self) -> int:
        return 0


@contextmanager
def _only_faults() -> Iterator[None]:
    try:
        yield
    except (OSError, SerializerError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise _fault("file", f"not an Avro file, or damaged: {reason}") from error
