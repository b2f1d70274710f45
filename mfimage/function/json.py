"""Values to and from JSON bytes, without loss, and the JSON serializer.

A value without an equal JSON form is refused, with its path. orjson encodes when it can. It writes
NaN as ``null`` and refuses some values that have a JSON form: only those are encoded in Python.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import enum
import json
import math
import uuid
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

import orjson
from pydantic_core import from_json, to_jsonable_python

from mfimage.errors import Fault, InputError, OutputError, ValueFault, join_path

# orjson and the parser both refuse a little more than this depth; one limit makes them agree.
MAX_DEPTH = 200
# Python and the parser refuse more than 4300 digits.
MAX_BITS = 14_000
# orjson would drop a dataclass's fields that start with "_", and the seconds of a UTC offset.
_OPTIONS = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME
# Every digit to 0, "E" to "e", no "+": one search then finds any exponent of three digits.
_TO_ZERO = bytes.maketrans(b"123456789E", b"000000000e")
_TIMES = (datetime.datetime, datetime.date, datetime.time)


class _NoJsonForm(Exception):
    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.fault = Fault(path=path, message=message)


def dumps(
    value: Any,
    *,
    root: str,
    error: type[ValueFault] = OutputError,
    default: Callable[[Any], Any] | None = None,
) -> bytes:
    """Encode ``value`` as JSON; ``error`` names the first place without a JSON form."""
    # NumPy scalars and arrays become the equal number or list, models and dataclasses an object,
    # times and UUIDs their ISO form. NaN, infinities, sets, bytes, other keys than strings, and
    # objects have none, unless `default` gives objects one.
    default = default or plain
    try:
        data = orjson.dumps(value, default, _OPTIONS)
        if b"null" in data:
            # None, or NaN: Python's encoder, in C too, tells them apart.
            json.dumps(value, default=default, allow_nan=False)
        return data
    except (TypeError, ValueError, RecursionError):
        pass
    try:
        walked = _walk(value, root, 0, default)
    except _NoJsonForm as refusal:
        raise error([refusal.fault]) from None
    return json.dumps(walked, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def line_encoder(*, root: str, error: type[ValueFault]) -> Callable[[Any], bytes]:
    """Return a function that encodes as ``dumps`` and adds a newline: faster for many values."""

    def encode(
        value: Any,
        quick: Callable[..., bytes] = orjson.dumps,
        plain: Callable[[Any], Any] = plain,
        options: int = _OPTIONS | orjson.OPT_APPEND_NEWLINE,
    ) -> bytes:
        try:
            data = quick(value, plain, options)
            if b"null" not in data:
                return data
        except (TypeError, ValueError, RecursionError):
            pass
        return dumps(value, root=root, error=error) + b"\n"

    return encode


def loads(data: bytes) -> Any:
    """Decode JSON bytes; integers keep every digit."""
    return from_json(data, allow_inf_nan=False)


def may_be_infinite(payload: bytes) -> bool:
    """Return whether a number may be NaN or past the largest float, which JSON does not have."""
    if b"NaN" in payload or b"Infinity" in payload:
        return True
    digits = payload.translate(_TO_ZERO, b"+")
    return b"0e000" in digits or b"0" * 308 in digits


def plain(value: Any) -> Any:
    """Return a plainer form of a value that is not JSON's; ``TypeError`` if none is equal."""
    if hasattr(value, "tolist"):
        return _plain_array(value)
    if isinstance(value, _TIMES) and value == value:  # noqa: PLR0124  (pandas' NaT is not)
        return value.isoformat()
    if isinstance(value, uuid.UUID):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
    if hasattr(value, "model_dump"):
        # An error: with a warning, inf in an unvalidated model would become null.
        return value.model_dump(mode="json", by_alias=True, warnings="error")
    raise TypeError


def _plain_array(value: Any) -> Any:
    """Return the plain form of a NumPy array or scalar, or of a similar object."""
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if kind in ("M", "m", "V"):
        # tolist() would turn NaT into None and nanoseconds into a number, and drop field names.
        if getattr(value, "ndim", 0):
            return list(value)
        if kind == "M" and value == value:  # noqa: PLR0124  (NaT differs)
            return str(value)
        raise TypeError
    simple = value.tolist()
    if type(simple) is type(value):
        # np.longdouble returns itself; most equal a float.
        if float(value) != value and value == value:  # noqa: PLR0124  (NaT differs)
            raise TypeError
        return float(value)
    return simple


def typed(value: Any) -> Any:
    """Do what ``plain`` does, also for what pydantic has a JSON form for, if the hints have it."""
    if isinstance(value, set | frozenset | collections.deque):
        return list(value)
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json", by_alias=True, warnings=False)
    try:
        return plain(value)
    except TypeError as error:
        try:
            return to_jsonable_python(value)
        except ValueError:
            raise error from None


def opaque(value: Any) -> Any:
    """Do what ``typed`` does, but return None for an object without a JSON form."""
    try:
        return typed(value)
    except TypeError:
        return None


def _walk(  # noqa: PLR0911  (one per kind)
    value: Any, path: str, depth: int, default: Callable[[Any], Any]
) -> Any:
    if depth > MAX_DEPTH:
        raise _NoJsonForm(path, "nested too deeply, or refers to itself")
    if value is None or value is True or value is False:
        return value
    if isinstance(value, enum.Enum):
        return _walk(value.value, path, depth + 1, default)
    if isinstance(value, str):
        return _text(value, path)
    if isinstance(value, int):
        if value.bit_length() > MAX_BITS:
            raise _NoJsonForm(path, "an integer of more than 4000 digits has no JSON form")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _NoJsonForm(path, f"{value} has no JSON form; use None or leave it out")
        return float(value)
    if isinstance(value, dict):
        return {
            _key(key, path): _walk(item, join_path(path, key), depth + 1, default)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_walk(item, join_path(path, i), depth + 1, default) for i, item in enumerate(value)]
    return _walk(_plain_or_refused(value, path, default), path, depth + 1, default)


def _plain_or_refused(value: Any, path: str, default: Callable[[Any], Any]) -> Any:
    kind = type(value)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    try:
        return default(value)
    except TypeError:
        raise _NoJsonForm(path, f"{name} has no JSON form") from None
    except Exception as error:
        reason = " ".join(str(error).split())
        raise _NoJsonForm(path, f"{name} has no JSON form: {reason}") from error


def _text(value: str, path: str) -> str:
    text = str.__str__(value)  # not a subclass's own
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _NoJsonForm(path, f"text {text!r} is not valid Unicode") from None
    return text


def _key(key: Any, path: str) -> str:
    if not isinstance(key, str):
        raise _NoJsonForm(path, f"expected string keys, got {key!r}; use str(key)")
    return _text(key, path)


class JsonSerializer:
    """JSON; in files, one record per line. The schemas are JSON Schemas."""

    name = "json"
    media_type = "application/json"
    suffixes: tuple[str, ...] = (".jsonl", ".ndjson")

    def schema(self, json_schema: Mapping[str, Any], *, name: str) -> Any:
        """Return the JSON Schema as it is."""
        return dict(json_schema)

    def dumps(self, value: Any, schema: Any = None) -> bytes:
        """Return JSON bytes; ``OutputError`` for a value without a JSON form."""
        return dumps(value, root="result")

    def loads(self, data: bytes, schema: Any = None) -> Any:
        """Return the value of JSON bytes; ``InputError`` if they are not JSON."""
        return _load(data.removeprefix(BOM_UTF8), "data")

    def read(self, file: BinaryIO, schema: Any = None) -> Iterator[Any]:
        """Yield the value of each line that is not blank."""
        for number, line in enumerate(file, 1):
            text = line.removeprefix(BOM_UTF8) if number == 1 else line
            if text.strip():
                yield _load(text, f"line {number}")

    @contextmanager
    def write(self, file: BinaryIO, schema: Any = None) -> Iterator[Callable[[Any], None]]:
        """Give a callable that writes a value as a line."""

        def append(record: Any) -> None:
            file.write(self.dumps(record) + b"\n")

        yield append


def _load(data: bytes, path: str) -> Any:
    try:
        value = loads(data)
    except ValueError as error:
        raise InputError([Fault(path=path, message=f"not JSON: {error}")]) from None
    if may_be_infinite(data):
        dumps(value, root=path, error=InputError)
    return value
