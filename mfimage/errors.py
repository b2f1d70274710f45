"""Everything mfimage can refuse, as one tree.

::

    MfimageError
    ├── SignatureError        the function's signature cannot be served
    ├── SchemaError           a schema cannot be used, or what it describes has none of a form
    ├── SerializerError       a serializer is unknown, broken, or not installed here
    ├── ValueFault            a value does not fit, and where
    │   ├── InputError        a record does not fit the function's input hints
    │   └── OutputError       a result does not fit the output hints, or has no JSON form
    ├── ParameterError        a parameter is unknown, or cannot be loaded
    │   ├── ParameterNotFound     none has that name; an AttributeError and a KeyError, too
    │   └── ReadOnlyError         parameters are not to be changed; an AttributeError, too
    ├── TaskError             the task is missing, unfinished, failed, or lacks an artifact
    ├── CaptureError          code or artifacts cannot go along
    ├── LockError             the environment cannot be described or solved
    ├── ReferenceNotFound     a reference leads nowhere
    ├── PackageError          a package is damaged, tampered with, or too new
    ├── StorageError          bytes cannot be read or written
    ├── OptionError           an option's value cannot be used
    ├── RecordError           a file of records is damaged, or one of its records failed
    ├── BackendError          the place where a function should run is not there
    ├── FunctionError         a function in another process raised what has no class here
    ├── EngineError           the Docker engine is absent, dead, or refused
    ├── BuildError            an image build failed
    ├── CheckError            an image does not pass its test
    └── RegistryError         a registry refused, or cannot be reached

Each says what was wrong and which value; ``hint`` says what to do next.
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
        The next step for the user.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if hint:
            self.__notes__ = [f"hint: {hint}"]  # a traceback shows it, too

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
    """A schema cannot be used, or what it describes has no schema of a form."""


class SerializerError(MfimageError):
    """A serializer is unknown, broken, or not installed here."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One place where a value does not fit.

    Attributes
    ----------
    path : str
        Where, as ``data.items[3].age``.
    message : str
        What was expected and what was found, as ``expected int, got 'x'``.
    """

    path: str
    message: str

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
    """No parameter has that name, asked for as ``params.name`` or ``params["name"]``."""


class ReadOnlyError(ParameterError, AttributeError):
    """Parameters are not to be changed."""


class TaskError(MfimageError):
    """The task is missing, unfinished, failed, or lacks an artifact."""


class CaptureError(MfimageError):
    """Code or artifacts cannot go along, and why."""


class LockError(MfimageError):
    """The environment cannot be described or solved."""


class ReferenceNotFound(MfimageError):
    """A reference leads to no function package."""


class PackageError(MfimageError):
    """A package is damaged, tampered with, or written by a newer mfimage."""


class StorageError(MfimageError):
    """Bytes cannot be read or written where they should be."""


class OptionError(MfimageError):
    """An option's value cannot be used."""


class RecordError(MfimageError):
    """A file of records is damaged, or one of its records failed."""


class BackendError(MfimageError):
    """The place where a function should run is not there, or failed."""


class FunctionError(MfimageError):
    """A function in another process raised what has no class here.

    What is raised is of a class made for it, a subclass of this one: it has the name, the module
    and the message of what the function raised, so that it reads the same.
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
    """The Docker engine is absent, dead, or refused."""


class BuildError(MfimageError):
    """An image build failed."""


class CheckError(MfimageError):
    """An image does not pass its test."""


class RegistryError(MfimageError):
    """A registry refused, or cannot be reached."""


def suggest(name: str, known: Iterable[str]) -> str:
    """Return the hint for an unknown name: the closest known one, else all of them."""
    import difflib

    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else f"one of: {', '.join(known)}"
