"""Values <-> JSON bytes, without loss: what has no equal JSON form is refused by path.

orjson does the work when it can. It writes NaN as ``null`` and gives up where a closer look would
not, so those values, and only those, are looked at again.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
import math
import uuid
from collections.abc import Callable
from typing import Any

import orjson
from pydantic_core import from_json

from mfimage.errors import Fault, OutputError, ValueFault

# orjson and the parser both give up a little past this depth; one limit keeps them alike.
MAX_DEPTH = 200
# Python and the parser refuse more than 4300 digits.
MAX_BITS = 14_000
# orjson would drop a dataclass's fields that start with "_", and the seconds of a UTC offset.
_OPTIONS = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME
_TIMES = (datetime.datetime, datetime.date, datetime.time)


class _NoJsonForm(Exception):
    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.fault = Fault(path=path, message=message)


def dumps(value: Any, *, root: str, error: type[ValueFault] = OutputError) -> bytes:
    """Encode ``value`` as JSON.

    NumPy scalars and arrays become the equal number or list, models and dataclasses an object,
    times and UUIDs their ISO form.

    Parameters
    ----------
    value : Any
        What to encode.
    root : str
        What paths in errors start with, as ``result``.
    error : type
        Which error to raise.

    Raises
    ------
    ValueFault
        ``error``, naming the path of the first value that has no JSON form: NaN, infinities,
        sets, bytes, keys that are no strings, objects.
    """
    try:
        data = orjson.dumps(value, plain, _OPTIONS)
        if b"null" in data:
            # None, or NaN: Python's encoder, in C too, tells them apart.
            json.dumps(value, default=plain, allow_nan=False)
        return data
    except (TypeError, ValueError, RecursionError):
        pass
    try:
        walked = _walk(value, root, 0)
    except _NoJsonForm as refusal:
        raise error([refusal.fault]) from None
    return json.dumps(walked, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def line_encoder(*, root: str, error: type[ValueFault]) -> Callable[[Any], bytes]:
    """Return what encodes as ``dumps`` does, and adds a line's end: for many, a little faster."""

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
    """Decode JSON bytes that ``dumps`` made; integers keep every digit."""
    return from_json(data, allow_inf_nan=False)


def join(path: str, key: str | int) -> str:
    """Return the path of a member: ``data.age``, ``data["sepal length"]``, ``data[3]``."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    if key.isidentifier():
        return f"{path}.{key}"
    return f"{path}[{json.dumps(key, ensure_ascii=False)}]"


def plain(value: Any) -> Any:
    """Return the next plainer form of a value that JSON does not know.

    Raises
    ------
    TypeError
        When there is none that is equal.
    """
    if hasattr(value, "tolist"):
        return _plain_array(value)
    if isinstance(value, _TIMES) and value == value:  # noqa: PLR0124  (pandas' NaT is not)
        return value.isoformat()
    if isinstance(value, uuid.UUID):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
    if hasattr(value, "model_dump"):
        # An error, for a warning would let inf out of an unvalidated model as null.
        return value.model_dump(mode="json", by_alias=True, warnings="error")
    raise TypeError


def _plain_array(value: Any) -> Any:
    """Return the plain form of a NumPy array or scalar, or of what behaves like one."""
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if kind in ("M", "m", "V"):
        # tolist() would make NaT None, nanoseconds a bare number, and fields lose their names.
        if getattr(value, "ndim", 0):
            return list(value)
        if kind == "M" and value == value:  # noqa: PLR0124
            return str(value)
        raise TypeError
    simple = value.tolist()
    if type(simple) is type(value):
        # np.longdouble gives itself back; most are a float all the same.
        if float(value) != value and value == value:  # noqa: PLR0124
            raise TypeError
        return float(value)
    return simple


def _walk(value: Any, path: str, depth: int) -> Any:  # noqa: PLR0911  (one line per kind)
    if depth > MAX_DEPTH:
        raise _NoJsonForm(path, "nested too deeply, or refers to itself")
    if value is None or value is True or value is False:
        return value
    if isinstance(value, enum.Enum):
        return _walk(value.value, path, depth + 1)
    if isinstance(value, str):
        return _text(value, path)
    if isinstance(value, int):
        return _integer(value, path)
    if isinstance(value, float):
        return _number(value, path)
    if isinstance(value, dict):
        return {
            _key(key, path): _walk(item, join(path, key), depth + 1) for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_walk(item, join(path, i), depth + 1) for i, item in enumerate(value)]
    return _walk(_plain_or_refused(value, path), path, depth + 1)


def _plain_or_refused(value: Any, path: str) -> Any:
    kind = type(value)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    try:
        return plain(value)
    except TypeError:
        raise _NoJsonForm(path, f"{name} has no JSON form") from None
    except Exception as error:
        reason = " ".join(str(error).split())
        raise _NoJsonForm(path, f"{name} has no JSON form: {reason}") from error


def _integer(value: int, path: str) -> int:
    if value.bit_length() > MAX_BITS:
        raise _NoJsonForm(path, "an integer of more than 4000 digits has no JSON form")
    return int(value)


def _number(value: float, path: str) -> float:
    if not math.isfinite(value):
        raise _NoJsonForm(path, f"{value} has no JSON form; use None or leave it out")
    return float(value)


def _text(value: str, path: str) -> str:
    text = str.__str__(value)  # not what a subclass makes of itself
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _NoJsonForm(path, f"text {text!r} is not valid Unicode") from None
    return text


def _key(key: Any, path: str) -> str:
    if not isinstance(key, str):
        raise _NoJsonForm(path, f"expected string keys, got {key!r}; use str(key)")
    return _text(key, path)
