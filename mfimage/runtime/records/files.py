"""Files of records: JSON lines, and whatever else a serializer reads and writes.

Reading is lazy and writing is whole or absent, so a file may be larger than memory, and half of
one is never taken for all of it.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from mfimage.errors import InputError, MfimageError, RecordError
from mfimage.function import json as json_values
from mfimage.runtime.records.formats import (
    HasSpec,
    RecordFormat,
    choose_format,
    given_schema,
    output_schema,
)
from mfimage.runtime.records.streams import Place, input_file, is_stream, output_file

_BOM = b"\xef\xbb\xbf"
_LINE_OF_ONE = re.compile(r" at line \d+(?= column)")


class RecordSource:
    """The records of an open file, with their numbers, from 1.

    Attributes
    ----------
    unit : str
        What the numbers count: ``line``, empty ones too, or ``record``.
    size : int
        How many bytes there are; 0 where that cannot be told.
    """

    def __init__(self, file: BinaryIO, name: str, form: RecordFormat, schema: Any = None) -> None:
        self.size = 0
        self._file = file
        self._name = name
        self._form = form
        self._schema = schema
        self.unit = "line" if form.is_lines else "record"
        with contextlib.suppress(AttributeError, OSError, ValueError):
            self.size = os.fstat(file.fileno()).st_size

    def records(self) -> Iterator[tuple[int, Any]]:
        """Yield each record.

        A line that is no JSON gives its exception instead: the next one is as good as any. What
        is wrong with another format is raised, for nobody knows where its next record starts.
        """
        if not self._form.is_lines:
            yield from self._parsed()
            return
        loads = json_values.loads
        for number, line in self._lines():
            try:
                record = loads(line.rstrip())
            except ValueError as error:
                record = RecordError(f"not JSON: {_LINE_OF_ONE.sub(' at', str(error))}")
            yield number, record

    def payloads(self) -> Iterator[tuple[int, bytes]]:
        """Yield each record as JSON bytes: JSON lines as they came."""
        if self._form.is_lines:
            yield from self._lines()
            return
        for number, record in self._parsed():
            yield number, json_values.dumps(record, root=f"record {number}", error=InputError)

    def position(self) -> int:
        """Return how many bytes were read, 0 where that cannot be told."""
        try:
            return self._file.tell()
        except (OSError, ValueError):
            return 0

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        try:
            for number, line in enumerate(self._file, 1):
                text = line.removeprefix(_BOM) if number == 1 else line
                if text and not text.isspace():
                    yield number, text
        except OSError as error:
            raise RecordError(f"{self._name}: cannot be read: {error.strerror}") from None

    def _parsed(self) -> Iterator[tuple[int, Any]]:
        records = iter(self._form.files.read(self._file, self._schema))
        number = 0
        while True:
            try:
                record = next(records)
            except StopIteration:
                return
            except Exception as error:  # noqa: BLE001  (a serializer's own, whatever it is)
                good = f"{number} good record{'' if number == 1 else 's'}"
                raise RecordError(
                    f"{self._name}: after {good}: {_why(error, self._form.name)}",
                    hint=getattr(error, "hint", None),
                ) from (None if isinstance(error, MfimageError) else error)
            number += 1
            yield number, record


def _why(error: Exception, form: str) -> str:
    if isinstance(error, MfimageError):
        return error.message.removeprefix("file: ")
    return " ".join(f"not {form}, or damaged: {type(error).__name__}: {error}".split())


@contextlib.contextmanager
def open_source(
    place: Place, name: str | None = None, function: HasSpec | None = None
) -> Iterator[RecordSource]:
    """Open a file of records for reading, or stdin for ``-``.

    Parameters
    ----------
    place : str or path
        The file.
    name : str, optional
        Its format; by its suffix by default.
    function : function, optional
        Whose records they are to be: where it was given a schema of this format, they are read
        as that, else as what the file says they are.
    """
    form = choose_format(place, name)
    schema = given_schema(function.spec, form, "input") if function else None
    with input_file(place) as file:
        yield RecordSource(file, "stdin" if is_stream(place) else os.fspath(place), form, schema)


@dataclass(frozen=True, kw_only=True)
class RecordSink:
    """An open file that results are appended to.

    Attributes
    ----------
    append : callable
        Takes a JSON value.
    append_json : callable
        Takes a JSON value as bytes, of one line.
    flush : callable
        Lets go of what the format has written so far.
    """

    append: Callable[[Any], object]
    append_json: Callable[[bytes], object]
    flush: Callable[[], None]


@contextlib.contextmanager
def open_sink(
    file: BinaryIO, form: RecordFormat, function: HasSpec | None, schema: Any = None
) -> Iterator[RecordSink]:
    """Write records to an open file; it is complete when the block ends.

    Parameters
    ----------
    file : binary file
        Where to.
    form : RecordFormat
        How.
    function : function, optional
        Whose results they are.
    schema : optional
        The format's own schema, instead of the function's.

    Raises
    ------
    SchemaError
        When the format needs a schema, and the function's hints give none.
    """
    if form.is_lines:
        write, dumps = file.write, json_values.dumps
        yield RecordSink(
            append=lambda value: write(dumps(value, root="result") + b"\n"),
            append_json=lambda payload: write(payload + b"\n"),
            flush=file.flush,
        )
        return
    if schema is None and function is not None:
        schema = output_schema(function.spec, form)
    with form.files.write(file, schema) as append:
        yield RecordSink(
            append=append,
            append_json=lambda payload: append(json_values.loads(payload)),
            flush=file.flush,
        )


def read_records(path: Place, *, format: str | None = None) -> Iterator[Any]:
    """Yield the records of a file as JSON values, reading as they are taken.

    Parameters
    ----------
    path : str or path
        The file; ``-`` is stdin.
    format : str, optional
        ``json`` (lines), ``avro``, or a registered serializer's name; by the suffix by default.

    Raises
    ------
    RecordError
        At a line that is no JSON, with its number; where a file is damaged, with how many
        records before were good.
    """
    with open_source(path, format) as source:
        for number, record in source.records():
            if isinstance(record, RecordError):
                raise RecordError(f"{os.fspath(path)}: {source.unit} {number}: {record}")
            yield record


def write_records(
    path: Place,
    records: Iterable[Any],
    *,
    format: str | None = None,
    function: HasSpec | None = None,
    schema: Any = None,
) -> int:
    """Write JSON values to a file, which is there when all are in it, and not before.

    Parameters
    ----------
    path : str or path
        The file; one that is there is replaced.
    records : iterable
        What to write, as ``fn.map(...)`` yields it.
    format : str, optional
        ``json`` (lines), ``avro``, or a registered serializer's name; by the suffix by default.
    function : function, optional
        Whose results they are: Avro's schema comes from its hints.
    schema : optional
        The format's own schema, instead of one of a function.

    Returns
    -------
    int
        How many records were written.
    """
    form = choose_format(path, format)
    count = 0
    with output_file(path) as file, open_sink(file, form, function, schema) as sink:
        for count, record in enumerate(records, 1):  # noqa: B007  (it is returned)
            sink.append(record)
    return count
