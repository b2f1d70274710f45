"""The formats of files of records, and the schemas by which results are written."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

from mfimage.errors import Fault, OptionError, OutputError, SerializerError
from mfimage.function.json import JsonSerializer
from mfimage.function.serializers import FileFormat, find_format, find_serializer, serializers
from mfimage.package.spec import CallableSpec
from mfimage.runtime.records.streams import Place, is_stream

_LINES = "json"


class HasSpec(Protocol):
    """A function: from ``function_from_json``, or a live one in an image."""

    @property
    def spec(self) -> CallableSpec:
        """Its package's ``function.json``."""


class RecordFormat(FileFormat, Protocol):
    """A format of files of records: a serializer's, or Parquet."""

    name: str


def is_lines(form: RecordFormat) -> bool:
    """Tell whether records are lines of JSON."""
    return form.name == _LINES


def choose_format(place: Place, name: str | None = None, *, option: str = "format") -> RecordFormat:
    """Return the format of a name, by default of the file's suffix; of a stream, JSON lines."""
    suffix = Path(place).suffix.lower()
    by_default = is_stream(place) or suffix in JsonSerializer.suffixes
    if name == _LINES or (name is None and by_default):
        return JsonSerializer()  # without importing the others
    if name is None:
        name = _name_by_suffix(place, suffix, option)
    if name == "parquet" and name not in serializers():
        return ParquetFiles()
    serializer: Any = find_serializer(name)
    if not isinstance(serializer, FileFormat):
        raise OptionError(f"{option}: {name} has no files of records; choose from {_known()}")
    return serializer  # type: ignore[return-value]  # a serializer has a name


def _name_by_suffix(place: Place, suffix: str, option: str) -> str:
    found: Any = find_format(suffix)
    if found is not None:
        return str(found.name)
    if suffix in (".avro", ".parquet"):  # known, but not installed, or not a serializer
        return suffix[1:]
    what = f"unknown suffix {suffix!r}" if suffix else "no suffix to choose the format by"
    raise OptionError(
        f"{os.fspath(place)}: {what}; known formats: {_known()}",
        hint=f"name the format: --{option.replace('_', '-')} NAME; one that the function's module "
        "registers is known where the function runs in this process: --backend local",
    )


def _known() -> str:
    return ", ".join(
        f"{name} ({' '.join(each.suffixes)})"
        for name, each in sorted(serializers().items())
        if isinstance(each, FileFormat)
    )


def given_schema(spec: CallableSpec, form: RecordFormat, side: Literal["input", "output"]) -> Any:
    """Return the schema that a function was given for a format, or None."""
    return spec.schemas.get(form.name, {}).get(side)


def output_schema(spec: CallableSpec, form: RecordFormat) -> Any:
    """Return a format's schema of a function's results: the one it was given, or one derived."""
    given = given_schema(spec, form, "output")
    if given is not None or is_lines(form):
        return given
    serializer: Any = form
    return serializer.schema(spec.output_schema, name=spec.name)


# Parquet: a row is a record, its columns are the record's members.

_ROWS = 10_000
_TYPES = {"integer": "int64", "number": "float64", "string": "string", "boolean": "bool_"}


class ParquetFiles:
    """Reads and writes tables where pyarrow is installed; a serializer may replace it."""

    name = "parquet"
    suffixes: tuple[str, ...] = (".parquet",)

    def __init__(self) -> None:
        if find_spec("pyarrow") is None:
            raise SerializerError(
                "parquet: pyarrow is not installed here",
                hint="mfimage build REFERENCE --target ray --with data, or pip install pyarrow",
            )

    def schema(self, json_schema: Mapping[str, Any], *, name: str) -> Any:
        """Return the JSON Schema: columns that it does not describe are taken from the rows."""
        return json_schema

    def read(self, file: BinaryIO, schema: Any) -> Iterator[Any]:
        """Yield the rows, reading thousands at a time."""
        from pyarrow import parquet

        for rows in parquet.ParquetFile(file).iter_batches(_ROWS):
            yield from rows.to_pylist()

    @contextmanager
    def write(self, file: BinaryIO, schema: Any) -> Iterator[Callable[[Any], None]]:
        """Give a callable that appends a row."""
        table = _Table(file, schema or {})
        yield table.append
        table.flush()
        table.writer.close()


class _Table:
    """The rows that are not written yet, and their writer."""

    def __init__(self, file: BinaryIO, schema: Mapping[str, Any]) -> None:
        self.writer: Any = None
        self._file = file
        self._hinted = _columns(schema)
        self._names: set[str] | None = None
        self._rows: list[dict[str, Any]] = []

    def append(self, row: Any) -> None:
        if not isinstance(row, dict):
            raise _misfit(f"expected an object, a row of a table, got {row!r}")
        if self._names is not None and not self._names.issuperset(row):
            extra = min(row.keys() - self._names)
            raise _misfit(f"{extra!r} is not a column: none of the first {_ROWS} rows has it")
        self._rows.append(row)
        if len(self._rows) == _ROWS:
            self.flush()

    def flush(self) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        try:
            if self.writer is None:
                # The columns of all rows: pyarrow itself takes those of the first.
                names = dict.fromkeys([*self._hinted, *(key for row in self._rows for key in row)])
                columns = {
                    name: pa.array((row.get(name) for row in self._rows), self._hinted.get(name))
                    for name in names
                }
                self.writer = parquet.ParquetWriter(self._file, pa.table(columns).schema)
                self._names = set(names)
            self.writer.write_table(pa.Table.from_pylist(self._rows, self.writer.schema))
        except pa.ArrowException as error:
            raise SerializerError(
                f"parquet: the results do not fit into columns: {error}",
                hint="annotate the function's result as a TypedDict, or use --output-format jsonl",
            ) from None
        self._rows.clear()


def _columns(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the types of a JSON Schema's simple properties."""
    import pyarrow as pa

    name = str(schema.get("$ref", "")).rpartition("/")[2]
    properties = schema.get("$defs", {}).get(name, schema).get("properties", {})
    found = {name: _TYPES.get(str(of.get("type"))) for name, of in properties.items()}
    return {name: getattr(pa, kind)() for name, kind in found.items() if kind}


def _misfit(message: str) -> OutputError:
    return OutputError([Fault(path="result", message=message)])
