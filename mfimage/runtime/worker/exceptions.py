"""Exceptions as JSON, to raise them in another process.

Without pickle, and without importing modules that the other process names: a caller trusts a
function's process no further than its results.
"""

from __future__ import annotations

import builtins
import json
import sys
import traceback
from typing import Any

from mfimage.errors import Fault, FunctionError

# Attributes that are not in the instance's dictionary.
_MEMBERS: dict[type[Exception], tuple[str, ...]] = {
    ImportError: ("name", "path", "name_from"),
    AttributeError: ("name", "obj"),
    NameError: ("name",),
}
_DICT: Any = vars(BaseException)["__dict__"]
_OWN_FILES = (
    "worker/process.py",
    "loading/loader.py",
    "records/run.py",
    "calls/coroutines.py",
    "calls/queue.py",
    "function/parameters.py",
)


class RemoteTraceback(Exception):
    """The cause of an exception from a worker: its traceback there, as text."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


def describe(error: BaseException) -> bytes:
    """Return any exception as JSON; never raises."""
    kind = type(error)
    described: dict[str, Any] = {
        "module": str(kind.__module__),
        "name": str(kind.__qualname__),
        "message": _message(error),
        "traceback": traceback_text(error),
    }
    # As pickle does for the built-in base: an OSError's filename is not in `args`.
    _, args, *rest = _builtin_base(kind).__reduce__(error)
    state = rest[0] if rest and isinstance(rest[0], dict) else {}
    described["state"] = _encode_members(state)
    try:
        described["args"] = _encode(args)
    except (TypeError, RecursionError):
        described["args"] = None
    try:
        return json.dumps(described).encode()
    except ValueError:  # an integer with more digits than Python prints
        return json.dumps({**described, "args": None, "state": None}).encode()


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001  (the class is the function's own)
        return f"<{type(error).__name__} without text>"


def traceback_text(error: BaseException) -> str:
    """Return an exception's traceback without the frames of mfimage that called the function."""
    frames = error.__traceback__
    while frames and frames.tb_next:
        file = frames.tb_frame.f_code.co_filename
        if not ("/mfimage/" in file and file.endswith(_OWN_FILES)):
            break
        frames = frames.tb_next
    try:
        return "".join(traceback.format_exception(type(error), error, frames))
    except Exception as failure:  # noqa: BLE001  (as above)
        return f"no traceback: {type(failure).__name__}\n"


def _encode(value: Any) -> Any:
    """Return data as JSON, with a tag for types that JSON does not have."""
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind is bytes:
        return {"bytes": value.decode("latin-1")}
    if kind in (list, tuple):
        return {kind.__name__: [_encode(item) for item in value]}
    if kind is dict and all(type(key) is str for key in value):
        return {"dict": {key: _encode(item) for key, item in value.items()}}
    if kind is Fault:
        return {"fault": [value.path, value.message]}
    raise TypeError(kind)


def _encode_members(members: dict[Any, Any]) -> dict[str, Any]:
    encoded: dict[str, Any] = {}
    for name, value in members.items():
        try:
            encoded[name] = _encode(value)
        except (TypeError, RecursionError):
            continue  # the other attributes are still useful
    return encoded


def _decode(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    ((tag, inner),) = value.items()
    if tag == "bytes":
        return inner.encode("latin-1")
    if tag == "dict":
        return {name: _decode(item) for name, item in inner.items()}
    if tag == "fault":
        return Fault(path=str(inner[0]), message=str(inner[1]))
    items = [_decode(item) for item in inner]
    return tuple(items) if tag == "tuple" else items


def rebuild(data: bytes) -> Exception:
    """Return the exception that ``describe`` described; its ``__cause__`` is the traceback."""
    # It has the same class if that is built in or its module is imported here already, and if it
    # can be made from JSON data with the same message; otherwise it is a ``FunctionError``.
    # ``ValueError`` when ``data`` is not from ``describe``.
    try:
        described = json.loads(data)
        module, name = str(described["module"]), str(described["name"])
        message, text = str(described["message"]), str(described["traceback"])
        cls = _find_class(module, name)
        state = {key: _decode(value) for key, value in (described["state"] or {}).items()}
        args = _decode(described["args"])
    except (AttributeError, KeyError, TypeError, IndexError, RecursionError) as failure:
        raise ValueError(f"not a described exception: {failure}") from None
    error = _make(cls, message, args, state) if cls else None
    if error is None:
        error = FunctionError.like(module, name, message)
    error.__cause__ = RemoteTraceback(text)
    return error


def _find_class(module: str, name: str) -> type[Exception] | None:
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        # Not getattr: a module's __getattr__ may import others.
        found = getattr(found, "__dict__", {}).get(part)
    return found if isinstance(found, type) and issubclass(found, Exception) else None


def _make(cls: type[Exception], message: str, args: Any, state: dict[str, Any]) -> Exception | None:
    """Make an exception by its built-in base, without running code of the class itself."""
    base = _builtin_base(cls)
    for candidate in (args, (message,)):
        if not isinstance(candidate, tuple):
            continue
        try:
            error: Exception = base.__new__(cls, *candidate)
            base.__init__(error, *candidate)
            _set_state(error, state)
            if str(error) == message:
                return error
        except Exception:  # noqa: BLE001, S112  (it cannot be made from these)
            continue
    return None


def _set_state(error: Exception, state: dict[str, Any]) -> None:
    own = _DICT.__get__(error)
    for name, value in state.items():
        if any(isinstance(error, kind) and name in names for kind, names in _MEMBERS.items()):
            object.__setattr__(error, name, value)
        else:  # under any name, as in the original
            own[name] = value


def _builtin_base(cls: Any) -> Any:
    while vars(builtins).get(cls.__name__) is not cls:
        cls = cls.__base__
    return cls
