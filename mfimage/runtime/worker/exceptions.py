"""An exception -> JSON -> the equal exception in another process.

Never by pickle, and no module is imported because the other process names it: whoever runs a
function need not trust it further than its results.
"""

from __future__ import annotations

import builtins
import json
import sys
import traceback
from typing import Any

from mfimage.errors import Fault, FunctionError

# What their state has that is none of their attributes' dictionary.
_MEMBERS: dict[type[Exception], tuple[str, ...]] = {
    ImportError: ("name", "path", "name_from"),
    AttributeError: ("name", "obj"),
    NameError: ("name",),
}
_DICT: Any = vars(BaseException)["__dict__"]
_OWN_FILES = (
    "worker/process.py",
    "loading/loader.py",
    "calls/coroutines.py",
    "function/parameters.py",
)


class RemoteTraceback(Exception):
    """The cause of an exception from a worker: the traceback it had there, as text."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


def describe(error: BaseException) -> bytes:
    """Return an exception as JSON; whatever it is, this does not raise."""
    kind = type(error)
    plain: dict[str, Any] = {
        "module": str(kind.__module__),
        "name": str(kind.__qualname__),
        "message": _message(error),
        "traceback": _traceback(error),
    }
    # What pickle would take, by the built-in base's word: a file's name is not in `args`.
    _, args, *rest = _builtin_base(kind).__reduce__(error)
    state = rest[0] if rest and isinstance(rest[0], dict) else {}
    plain["state"] = _encode_members(state)
    try:
        plain["args"] = _encode(args)
    except (TypeError, RecursionError):
        plain["args"] = None
    try:
        return json.dumps(plain).encode()
    except ValueError:  # an integer with more digits than Python likes to print
        return json.dumps({**plain, "args": None, "state": None}).encode()


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001  (the class is the function's own)
        return f"<{type(error).__name__} that has no text>"


def _traceback(error: BaseException) -> str:
    frames = error.__traceback__
    while frames and frames.tb_next and _is_ours(frames.tb_frame.f_code.co_filename):
        frames = frames.tb_next
    try:
        return "".join(traceback.format_exception(type(error), error, frames))
    except Exception as failure:  # noqa: BLE001  (as above)
        return f"no traceback: {type(failure).__name__}\n"


def _is_ours(file: str) -> bool:
    return "/mfimage/" in file and file.endswith(_OWN_FILES)


def _encode(value: Any) -> Any:
    """Return plain data as JSON, with a tag where JSON has no such type."""
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
            continue  # the rest of what the exception knows is still worth having
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
    """Return the exception that ``describe`` told of.

    It is of the same class if that is built in or its module is imported here already, and if it
    can be made from plain data to say the same; else it is a ``FunctionError``. Its ``__cause__``
    is the traceback it had.

    Raises
    ------
    ValueError
        When ``data`` is not what ``describe`` gives.
    """
    try:
        plain = json.loads(data)
        message, text = str(plain["message"]), str(plain["traceback"])
        cls = _find_class(str(plain["module"]), str(plain["name"]))
        state = {name: _decode(value) for name, value in (plain["state"] or {}).items()}
        args = _decode(plain["args"])
    except (AttributeError, KeyError, TypeError, IndexError, RecursionError) as failure:
        raise ValueError(f"no exception: {failure}") from None
    error = _make(cls, message, args, state) if cls else None
    if error is None:
        error = FunctionError.like(str(plain["module"]), str(plain["name"]), message)
    error.__cause__ = RemoteTraceback(text)
    return error


def _find_class(module: str, name: str) -> type[Exception] | None:
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        # Not getattr: a module may import others when it is asked for a name.
        found = getattr(found, "__dict__", {}).get(part)
    return found if isinstance(found, type) and issubclass(found, Exception) else None


def _make(cls: type[Exception], message: str, args: Any, state: dict[str, Any]) -> Exception | None:
    """Make an exception by its built-in base: no code of the class itself has a say."""
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
        except Exception:  # noqa: BLE001, S112  (then it cannot be made)
            continue
    return None


def _set_state(error: Exception, state: dict[str, Any]) -> None:
    own = _DICT.__get__(error)
    for name, value in state.items():
        if any(isinstance(error, kind) and name in names for kind, names in _MEMBERS.items()):
            object.__setattr__(error, name, value)
        else:  # whatever it is called: it was there as well
            own[name] = value


def _builtin_base(cls: Any) -> Any:
    while vars(builtins).get(cls.__name__) is not cls:
        cls = cls.__base__
    return cls
