"""Files of records: JSON lines, and the formats of serializers.

Reading is lazy, so a file may be larger than memory. A file is written whole or not at all, so
half a file is never mistaken for a whole one.
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
from mfimage.runtime.records import formats
from mfimage.runtime.records.streams import Place, input_file, is_stream, output_file

_BOM = b"\xef\xbb\xbf"
_LINE_OF_ONE = re.compile(r" at line \d+(?= column)")

# A record as JSON bytes, or the reason why it has no JSON form.
Payload = bytes | InputError


class RecordSource:
    """The records of an open file, numbered from 1."""

    def __init__(
        self, file: BinaryIO, name: str, form: formats.RecordFormat, schema: Any = None
    ) -> None:
        self.size = 0  # in bytes; 0 if unknown
        self._file = file
        self._name = name
        self._form = form
        self._schema = schema
        # What the numbers count; blank lines are included.
        self.unit = "line" if formats.is_lines(form) else "record"
        with contextlib.suppress(AttributeError, OSError, ValueError):
            self.size = os.fstat(file.fileno()).st_size

    def records(self) -> Iterator[tuple[int, Any]]:
        """Yield each record; in place of a line that is not JSON, its exception."""
        # Damage in another format is raised: where the next record starts is unknown.
        if self.unit != "line":
            yield from self._parsed()
            return
        loads = json_values.loads
        for number, line in self._lines():
            try:
                record = loads(line.rstrip())
            except ValueError as error:
                record = RecordError(f"not JSON: {_LINE_OF_ONE.sub(' at', str(error))}")
            yield number, record

    def payloads(self) -> Iterator[tuple[int, Payload]]:
        """Yield each record as JSON bytes; lines of JSON are not parsed."""
        if self.unit == "line":
            yield from self._lines()
            return
        for number, record in self._parsed():
            try:
                yield number, json_values.dumps(record, root="record", error=InputError)
            except InputError as error:
                yield number, error

    def position(self) -> int:
        """Return how many bytes were read; 0 if unknown."""
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
        records = iter(self._form.read(self._file, self._schema))
        number = 0
        while True:
            try:
                record = next(records)
            except StopIteration:
                return
            except Exception as error:  # noqa: BLE001  (a serializer may raise anything)
                good = f"{number} good record{'' if number == 1 else 's'}"
                raise RecordError(
                    f"{self._name}: after {good}: {_reason(error, self._form.name)}",
                    hint=getattr(error, "hint", None),
                ) from (None if isinstance(error, MfimageError) else error)
            number += 1
            yield number, record


def _reason(error: Exception, form: str) -> str:
    if isinstance(error, MfimageError):
        return error.message.removeprefix("file: ")
    return " ".join(f"not {form}, or damaged: {type(error).__name__}: {error}".split())


@contextlib.contextmanager
def open_source(
    place: Place, name: str | None = None, function: formats.HasSpec | None = None
) -> Iterator[RecordSource]:
    """Open a file of records, or stdin for ``-``, with the schema given to the function."""
    form = formats.choose_format(place, name)
    schema = formats.given_schema(function.spec, form, "input") if function else None
    with input_file(place) as file:
        yield RecordSource(file, "stdin" if is_stream(place) else os.fspath(place), form, schema)


@dataclass(frozen=True, kw_only=True)
class RecordSink:
    """Appends results to an open file: JSON values, or their bytes on one line."""

    append: Callable[[Any], object]
    append_json: Callable[[bytes], object]
    flush: Callable[[], None]


@contextlib.contextmanager
def open_sink(
    file: BinaryIO, form: formats.RecordFormat, function: formats.HasSpec | None, schema: Any = None
) -> Iterator[RecordSink]:
    """Write records to an open file, which is complete when the block ends."""
    # The schema is the function's unless one is given; ``SchemaError`` if the format needs one and
    # the function's hints give none.
    if formats.is_lines(form):
        write, dumps = file.write, json_values.dumps
        yield RecordSink(
            append=lambda value: write(dumps(value, root="result") + b"\n"),
            append_json=lambda payload: write(payload + b"\n"),
            flush=file.flush,
        )
        return
    if schema is None and function is not None:
        schema = formats.output_schema(function.spec, form)
    with form.write(file, schema) as append:
        yield RecordSink(
            append=append,
            append_json=lambda payload: append(json_values.loads(payload)),
            flush=file.flush,
        )


def read_records(path: Place, *, format: str | None = None) -> Iterator[Any]:
    """Yield the records of a file as JSON values, lazily.

    Parameters
    ----------
    path : str or path
        The file; ``-`` is stdin.
    format : str, optional
        ``json`` (lines), ``avro`` or a registered serializer's name; by the suffix by default.

    Raises
    ------
    RecordError
        At a line that is not JSON, with its number; at damage in another format, with the number
        of good records before it.
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
    function: formats.HasSpec | None = None,
    schema: Any = None,
) -> int:
    """Write JSON values to a file and return their number; the file appears when it is complete.

    Parameters
    ----------
    path : str or path
        The file; replaced if it exists.
    records : iterable
        JSON values, as ``fn.map(...)`` yields them.
    format : str, optional
        ``json`` (lines), ``avro`` or a registered serializer's name; by the suffix by default.
    function : function, optional
        The function whose results they are, for the schema of formats that need one.
    schema : optional
        The format's own schema, instead of the function's.
    """
    form = formats.choose_format(path, format)
    count = 0
    with output_file(path) as file, open_sink(file, form, function, schema) as sink:
        for count, record in enumerate(records, 1):  # noqa: B007  (it is returned)
            sink.append(record)
    return count
