"""Values <-> JSON bytes, without loss: what has no equal JSON form is refused by path.

orjson does the work when it can. It would turn NaN into ``null`` and refuse what needs a closer
look, so those cases, and only those, are walked in Python.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
import math
import uuid
from typing import Any

import orjson
from pydantic_core import from_json

from mfimage.errors import Fault, OutputError, ValueFault

# orjson and the parser both give up a little past this depth; one limit keeps them alike.
MAX_DEPTH = 200


class _NoJsonForm(Exception):
    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.fault = Fault(path=path, message=message)


def dumps(value: Any, *, root: str, error: type[ValueFault] = OutputError) -> bytes:
    """Encode ``value`` as JSON.

    NumPy scalars and arrays become the equal number or list, models and dataclasses an object.

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
        data = orjson.dumps(value, default=_plain)
    except (TypeError, ValueError, RecursionError):
        pass
    else:
        if b"null" not in data:
            return data
    try:
        plain = _walk(value, root, 0)
    except _NoJsonForm as refusal:
        raise error([refusal.fault]) from None
    return json.dumps(plain, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


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


def _plain(value: Any) -> Any:
    """Return the next plainer form of a NumPy value or a model."""
    if hasattr(value, "tolist"):
        plain = value.tolist()
        if type(plain) is not type(value):  # np.longdouble gives itself back
            return plain
    elif hasattr(value, "model_dump"):
        return value.model_dump(mode="json", by_alias=True)
    raise TypeError


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
        return int(value)
    if isinstance(value, float):
        return _number(float(value), path)
    if isinstance(value, dict):
        return {
            _key(key, path): _walk(item, join(path, str(key)), depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_walk(item, join(path, i), depth + 1) for i, item in enumerate(value)]
    if isinstance(value, datetime.datetime | datetime.date | datetime.time | uuid.UUID):
        return orjson.loads(orjson.dumps(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        members = {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
        return _walk(members, path, depth + 1)
    try:
        plain = _plain(value)
    except TypeError:
        kind = type(value)
        name = (
            kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
        )
        raise _NoJsonForm(path, f"{name} has no JSON form") from None
    return _walk(plain, path, depth + 1)


def _number(value: float, path: str) -> float:
    if not math.isfinite(value):
        raise _NoJsonForm(path, f"{value} has no JSON form; return None or leave it out")
    return value


def _text(value: str, path: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _NoJsonForm(path, f"text {value!r} is not valid Unicode") from None
    return str(value)


def _key(key: Any, path: str) -> str:
    if not isinstance(key, str):
        raise _NoJsonForm(path, f"expected string keys, got {key!r}; use str(key)")
    return _text(key, path)
