"""Every error that mfimage raises on purpose, as one tree.

::

    MfimageError
    ├── SignatureError        the function's signature cannot be served
    ├── SchemaError           a schema cannot be used, or cannot be written in a format
    ├── SerializerError       a serializer is unknown, broken, or not installed
    ├── ValueFault            a value does not fit
    │   ├── InputError        a record does not fit the function's input hints
    │   └── OutputError       a result does not fit the output hints, or has no JSON form
    ├── ParameterError        a parameter is unknown, or cannot be loaded
    │   ├── ParameterNotFound     also an AttributeError and a KeyError
    │   └── ReadOnlyError         parameters cannot be changed; also an AttributeError
    ├── TaskError             the task is missing, unfinished, failed, or lacks an artifact
    ├── CaptureError          code or artifacts cannot be captured
    ├── LockError             the environment cannot be described or locked
    ├── ReferenceNotFound     a reference leads to no package
    ├── PackageError          a package is damaged, changed, or too new
    ├── StorageError          bytes cannot be read or written
    ├── OptionError           an option's value cannot be used
    ├── RecordError           a file of records is damaged, or one of its records failed
    ├── BackendError          a backend is not available, or failed
    ├── FunctionError         a function in another process raised an unknown class
    ├── EngineError           the Docker engine is not available, or refused
    ├── BuildError            an image build failed
    ├── CheckError            an image does not pass its test
    └── RegistryError         a registry refused, or cannot be reached

The message names the field and the value; ``hint`` is the next step.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class MfimageError(Exception):
    """Root of all errors that mfimage raises on purpose.

    Parameters
    ----------
    message : str
        What was wrong, with the field and the value.
    hint : str, optional
        The next step.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if hint:
            self.__notes__ = [f"hint: {hint}"]  # tracebacks show it

    def __str__(self) -> str:
        return self.message  # KeyError, a base of one below, would quote it

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process borders; the default drops keyword arguments.
        return (_rebuild, (type(self), self.message, self.__dict__.copy()))


def _rebuild(cls: type[MfimageError], message: str, state: dict[str, object]) -> MfimageError:
    error = cls.__new__(cls)
    Exception.__init__(error, message)
    error.__dict__.update(state)
    return error


class SignatureError(MfimageError):
    """The function's signature cannot be served."""


class SchemaError(MfimageError):
    """A schema cannot be used, or cannot be written in a format."""


class SerializerError(MfimageError):
    """A serializer is unknown, broken, or not installed."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One place where a value does not fit."""

    path: str  # such as ``data.items[3].age``
    message: str  # what was expected and found, such as ``expected int, got 'x'``

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


def join_path(path: str, key: str | int) -> str:
    """Return the path of a member: ``data.age``, ``data["sepal length"]``, ``data[3]``."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    if key.isidentifier():
        return f"{path}.{key}"
    return f"{path}[{json.dumps(key, ensure_ascii=False)}]"


class ValueFault(MfimageError):
    """A value does not fit; ``faults`` lists every place, in order."""

    def __init__(self, faults: Sequence[Fault], *, hint: str | None = None) -> None:
        super().__init__("; ".join(str(fault) for fault in faults), hint=hint)
        self.faults = tuple(faults)


class InputError(ValueFault):
    """A record does not fit the function's input hints."""


class OutputError(ValueFault):
    """A result does not fit the function's output hints, or has no JSON form."""


class ParameterError(MfimageError):
    """A parameter is unknown, or cannot be loaded.

    Not an ``AttributeError``: ``getattr(params, "model", None)`` must not hide a broken model.
    """


class ParameterNotFound(ParameterError, AttributeError, KeyError):
    """No parameter has that name."""


class ReadOnlyError(ParameterError, AttributeError):
    """Parameters cannot be changed."""


class TaskError(MfimageError):
    """The task is missing, unfinished, failed, or lacks an artifact."""


class CaptureError(MfimageError):
    """Code or artifacts cannot be captured."""


class LockError(MfimageError):
    """The environment cannot be described or locked."""


class ReferenceNotFound(MfimageError):
    """A reference leads to no function package."""


class PackageError(MfimageError):
    """A package is damaged, changed, or written by a newer mfimage."""


class StorageError(MfimageError):
    """Bytes cannot be read or written."""


class OptionError(MfimageError):
    """An option's value cannot be used."""


class RecordError(MfimageError):
    """A file of records is damaged, or one of its records failed."""


class BackendError(MfimageError):
    """A backend is not available, or failed."""


class FunctionError(MfimageError):
    """A function in another process raised an error whose class is unknown here.

    What is raised is a subclass made for it, with the same name, module and message.
    """

    @classmethod
    def like(cls, module: str, name: str, message: str) -> FunctionError:
        """Return an error that reads as ``module.name: message``."""
        made = type(name.rpartition(".")[2], (cls,), {"__module__": module})
        made.__qualname__ = name
        error: FunctionError = made(message)
        return error

    def __reduce__(self) -> tuple[object, ...]:
        kind = type(self)
        if kind is FunctionError:
            return super().__reduce__()
        return (FunctionError.like, (kind.__module__, kind.__qualname__, self.message))


class EngineError(MfimageError):
    """The Docker engine is not available, or refused."""


class BuildError(MfimageError):
    """An image build failed."""


class CheckError(MfimageError):
    """An image does not pass its test."""


class RegistryError(MfimageError):
    """A registry refused, or cannot be reached."""


def shorten(text: str, limit: int = 80) -> str:
    """Return text, cut to fit into a message."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def suggest(name: str, known: Iterable[str]) -> str:
    """Return the hint for an unknown name: the closest known one, else all of them."""
    import difflib

    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else f"one of: {', '.join(known)}"
