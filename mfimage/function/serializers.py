"""The formats of a function's records and results: JSON, Avro, and registered ones.

A function takes and returns JSON values; a serializer is a format for them. None is pickle:
reading a pickle runs its writer's code.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, runtime_checkable

from mfimage.errors import SerializerError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "mfimage.serializers"
_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_MEDIA_TYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]*/[a-z0-9][a-z0-9!#$&^_.+-]*")
_SUFFIX = re.compile(r"\.[a-z0-9][a-z0-9._-]*")


@runtime_checkable
class Serializer(Protocol):
    """A format of JSON values.

    Attributes
    ----------
    name : str
        For ``--format``, as ``avro``.
    media_type : str
        For ``Content-Type`` and ``Accept``, as ``application/avro``.
    """

    name: str
    media_type: str

    def schema(self, json_schema: Mapping[str, Any], *, name: str) -> Any:
        """Return the format's own schema of what a JSON Schema describes: a JSON value.

        Parameters
        ----------
        json_schema : mapping
            As pydantic makes it.
        name : str
            Its name, where the format names types.

        Raises
        ------
        SchemaError
            If there is none, with the path.
        """

    def dumps(self, value: Any, schema: Any) -> bytes:
        """Return the bytes of one JSON value; ``OutputError`` if it cannot be written."""
        ...

    def loads(self, data: bytes, schema: Any) -> Any:
        """Return the JSON value of bytes from anywhere; ``InputError`` if they have none."""


@runtime_checkable
class FileFormat(Protocol):
    """What a serializer also is if it reads and writes files of records.

    Attributes
    ----------
    suffixes : tuple of str
        Of its files' names, as ``(".jsonl", ".ndjson")``.
    """

    suffixes: tuple[str, ...]

    def read(self, file: BinaryIO, schema: Any) -> Iterator[Any]:
        """Yield the file's records as JSON values, lazily; ``InputError`` if they are damaged.

        Parameters
        ----------
        file : binary file
            Open for reading; it need not be seekable.
        schema : Any
            What to read the records as; None for what the file says they are.
        """
        ...

    def write(self, file: BinaryIO, schema: Any) -> AbstractContextManager[Callable[[Any], None]]:
        """Return a context manager that gives a callable to append a record.

        Parameters
        ----------
        file : binary file
            Open for writing; it need not be seekable. It is complete, and still open, at the end.
        schema : Any
            The format's own schema of one record.
        """
        ...


_lock = threading.RLock()
_registered: dict[str, Serializer] = {}


def register_serializer(serializer: Serializer | type[Serializer]) -> None:
    """Register a serializer in this process.

    In the function's module, it is registered wherever the function is loaded: in a server, in a
    worker, here. A distribution registers one by an entry point in the group
    ``mfimage.serializers``, under the serializer's name.

    Parameters
    ----------
    serializer : Serializer
        An instance, or a class to make one of. The same class of a module that is loaded again
        replaces the first.

    Raises
    ------
    SerializerError
        If it is not a serializer, or its name, media type or a suffix is taken.
    """
    made = _made(serializer, "register_serializer")
    with _lock:
        _refuse_clash(made, {**_built_in(), **_registered})
        _registered[made.name] = made


def serializers() -> Mapping[str, Serializer]:
    """Return the serializers that are available here, by name.

    An entry point that cannot be loaded is left out, with a warning in the log;
    ``find_serializer`` says what is wrong with it.

    Raises
    ------
    SerializerError
        If a registered and an installed one have the same name.
    """
    found = {**_built_in(), **_registered}
    for each in _installed()[0].values():
        _refuse_clash(each, found)
        found.setdefault(each.name, each)
    return found


def find_serializer(name: str) -> Serializer:
    """Return the serializer of a name; ``SerializerError`` says how to get it."""
    found = serializers()
    if name in found:
        return found[name]
    broken = _installed()[1]
    if name in broken:
        raise broken[name]
    if name == "avro":
        hint = "pip install 'mfimage[avro]'"
        raise SerializerError("avro: fastavro is not installed here", hint=hint)
    hint = "register_serializer(...) in the function's module, or install what brings it"
    known = ", ".join(sorted(found))
    raise SerializerError(f"there is no serializer {name!r}; there are {known}", hint=hint)


def find_format(suffix: str) -> FileFormat | None:
    """Return the serializer for files with a suffix, as ``.avro``; None if there is none."""
    formats = (each for each in serializers().values() if isinstance(each, FileFormat))
    return next((each for each in formats if suffix.lower() in each.suffixes), None)


def _built_in() -> dict[str, Serializer]:
    return _with_avro(importlib.util.find_spec("fastavro") is not None)


@functools.cache
def _with_avro(installed: bool) -> dict[str, Serializer]:
    from mfimage.function.avro import AvroSerializer
    from mfimage.function.json import JsonSerializer

    json = JsonSerializer()
    return {"json": json, "avro": AvroSerializer()} if installed else {"json": json}


@functools.cache  # reads the metadata of all installed distributions
def _installed() -> tuple[dict[str, Serializer], dict[str, SerializerError]]:
    """Return the serializers of installed distributions, and the errors of those that failed."""
    from importlib.metadata import entry_points

    found: dict[str, Serializer] = {}
    broken: dict[str, SerializerError] = {}
    for point in sorted(entry_points(group=GROUP), key=_origin):
        try:
            made = _loaded(point)
            _refuse_clash(made, {**_built_in(), **found})
            found[made.name] = made
        except SerializerError as error:
            broken[point.name] = error
            logging.getLogger(__name__).warning("%s", error)
    return found, broken


def _origin(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "a distribution"


def _loaded(point: EntryPoint) -> Serializer:
    where = f"{_origin(point)}: entry point {point.name!r} of {GROUP}"
    try:
        made = _made(point.load(), where)
    except SerializerError:
        raise
    except Exception as error:
        reason = f"{point.value} cannot be loaded: {type(error).__name__}: {error}"
        hint = "correct that distribution, or uninstall it"
        raise SerializerError(f"{where}: {reason}", hint=hint) from error
    if made.name != point.name:
        raise SerializerError(f"{where}: the serializer calls itself {made.name!r}")
    return made


def _made(value: Any, where: str) -> Serializer:
    """Return the serializer that ``value`` is or makes, checked."""
    made = value() if isinstance(value, type) else value
    if not isinstance(made, Serializer):
        hint = "it has name, media_type, schema, dumps and loads"
        raise SerializerError(f"{where}: {value!r} is not a serializer", hint=hint)
    for label, text, form in (
        ("name", made.name, _NAME),
        ("media_type", made.media_type, _MEDIA_TYPE),
        *(("suffixes", each, _SUFFIX) for each in getattr(made, "suffixes", ())),
    ):
        if not isinstance(text, str) or not form.fullmatch(text):
            raise SerializerError(f"{where}: {label}: {text!r} cannot be used (lower case)")
    return made


def _refuse_clash(new: Serializer, others: Mapping[str, Serializer]) -> None:
    for other in others.values():
        if _is_same(new, other):
            continue
        for label, mine, taken in (
            ("name", {new.name}, {other.name}),
            ("media type", {new.media_type}, {other.media_type}),
            ("suffix", {*getattr(new, "suffixes", ())}, {*getattr(other, "suffixes", ())}),
        ):
            if mine & taken:
                raise SerializerError(
                    f"{_label(new)}: the {label} {min(mine & taken)!r} is taken by {_label(other)}",
                    hint="choose another",
                )


def _is_same(one: Serializer, other: Serializer) -> bool:
    """Return whether two are of the same class, or of one that was loaded twice."""
    modules = {type(each).__module__ for each in (one, other)}
    names = {(each.name, type(each).__qualname__) for each in (one, other)}
    # A script's module has another name once its package is loaded.
    return len(names) == 1 and (len(modules) == 1 or "__main__" in modules)


def _label(serializer: Serializer) -> str:
    kind = type(serializer)
    return f"{kind.__module__}.{kind.__qualname__}"
