"""Which format a file of records has, and by which schema records are written."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

from mfimage.errors import Fault, OptionError, OutputError, SerializerError
from mfimage.function.json import JsonSerializer
from mfimage.function.serializers import FileFormat, find_format, find_serializer, serializers
from mfimage.package.spec import FunctionSpec
from mfimage.runtime.records.streams import Place, is_stream

_LINES = "json"


class HasSpec(Protocol):
    """A function: what ``function_from_json`` returns, or a live one in an image."""

    @property
    def spec(self) -> FunctionSpec:
        """What its package says of itself."""


@dataclass(frozen=True, kw_only=True)
class RecordFormat:
    """A format of files of records.

    Attributes
    ----------
    name : str
        The serializer's.
    files : FileFormat
        What reads and writes them.
    """

    name: str
    files: FileFormat

    @property
    def is_lines(self) -> bool:
        """Whether records are lines of JSON."""
        return self.name == _LINES


def choose_format(place: Place, name: str | None = None, *, option: str = "format") -> RecordFormat:
    """Return the format of a name, or else of a file's suffix; of a stream, JSON lines.

    Raises
    ------
    OptionError, SerializerError
        When there is none, and which there are.
    """
    suffix = Path(place).suffix.lower()
    says_lines = is_stream(place) or suffix in JsonSerializer.suffixes
    if name == _LINES or (name is None and says_lines):
        return RecordFormat(name=_LINES, files=JsonSerializer())  # without a look at all others
    if name is None:
        name = _name_by_suffix(place, suffix, option)
    serializer: object = _parquet(name) or find_serializer(name)
    if not isinstance(serializer, FileFormat):
        raise OptionError(f"{option}: {name} has no files of records; there are {_known()}")
    return RecordFormat(name=name, files=serializer)


def _name_by_suffix(place: Place, suffix: str, option: str) -> str:
    found: Any = find_format(suffix)
    if found is not None:
        return str(found.name)
    if suffix in (".avro", ".parquet"):  # it is known, and not installed; or no serializer
        return suffix[1:]
    what = f"{suffix!r} is no format" if suffix else "no suffix says which format it is"
    raise OptionError(
        f"{os.fspath(place)}: {what}; there are {_known()}",
        hint=f"say which it is: --{option.replace('_', '-')} NAME; one that the function's module "
        "registers is known where it runs in this process: --backend local",
    )


def _parquet(name: str) -> object:
    """Return Parquet, unless somebody's own has the name: of files alone, so no serializer."""
    if name != "parquet" or name in serializers():
        return None

    return ParquetFiles()


def _known() -> str:
    found = serializers()
    return ", ".join(
        f"{name} ({' '.join(each.suffixes)})"
        for name, each in sorted(found.items())
        if isinstance(each, FileFormat)
    )


def given_schema(spec: FunctionSpec, form: RecordFormat, side: Literal["input", "output"]) -> Any:
    """Return the schema that a function was given for a format, or None."""
    return spec.schemas.get(form.name, {}).get(side)


def output_schema(spec: FunctionSpec, form: RecordFormat) -> Any:
    """Return a format's schema of a function's results: the one it was given, or one derived.

    Raises
    ------
    SchemaError
        When none can be derived from the function's hints.
    """
    given = given_schema(spec, form, "output")
    if given is not None or form.is_lines:
        return given
    serializer: Any = form.files
    return serializer.schema(spec.output_schema, name=spec.name)


# Parquet as a format of files of records: a row is a record, its columns are the members.

_ROWS = 10_000
_TYPES = {"integer": "int64", "number": "float64", "string": "string", "boolean": "bool_"}


class ParquetFiles:
    """Reads and writes tables; known where pyarrow is, unless a serializer has the name."""

    name = "parquet"
    suffixes: tuple[str, ...] = (".parquet",)

    def __init__(self) -> None:
        if find_spec("pyarrow") is None:
            raise SerializerError(
                "parquet: pyarrow is not installed here",
                hint="mfimage build REFERENCE --target ray --with data, or pip install pyarrow",
            )

    def schema(self, json_schema: Mapping[str, Any], *, name: str) -> Any:
        """Return the JSON Schema: what it says of columns is used, the rest is seen."""
        return json_schema

    def read(self, file: BinaryIO, schema: Any) -> Iterator[Any]:
        """Yield each row, some thousands at a time."""
        from pyarrow import parquet

        for rows in parquet.ParquetFile(file).iter_batches(_ROWS):
            yield from rows.to_pylist()

    @contextmanager
    def write(self, file: BinaryIO, schema: Any) -> Iterator[Callable[[Any], None]]:
        """Give a callable that appends a row; the first thousands say what hints do not."""
        table = _Table(file, schema or {})
        yield table.append
        table.flush()
        table.writer.close()


class _Table:
    """The rows that are not written yet, and what writes them."""

    def __init__(self, file: BinaryIO, schema: Mapping[str, Any]) -> None:
        self.writer: Any = None
        self._file = file
        self._hinted = _columns(schema)
        self._names: set[str] | None = None
        self._rows: list[dict[str, Any]] = []

    def append(self, row: Any) -> None:
        """Take a row; ``OutputError`` for what is none, or has a column too many."""
        if not isinstance(row, dict):
            raise _misfit(f"expected an object, a row of a table, got {row!r}")
        if self._names is not None and not self._names.issuperset(row):
            extra = min(row.keys() - self._names)
            raise _misfit(f"{extra!r} is no column: the first {_ROWS} rows do not have it")
        self._rows.append(row)
        if len(self._rows) == _ROWS:
            self.flush()

    def flush(self) -> None:
        """Write the rows."""
        import pyarrow as pa
        from pyarrow import parquet

        try:
            if self.writer is None:
                # Of all rows: pyarrow itself takes the columns of the first one.
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
                hint="hint the function's result as a TypedDict, or write --output-format jsonl",
            ) from None
        self._rows.clear()


def _columns(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the types of columns that a JSON Schema names and that are simple."""
    import pyarrow as pa

    found = {name: _TYPES.get(str(of.get("type"))) for name, of in _properties(schema).items()}
    return {name: getattr(pa, kind)() for name, kind in found.items() if kind}


def _properties(schema: Mapping[str, Any]) -> dict[str, Any]:
    name = str(schema.get("$ref", "")).rpartition("/")[2]
    own: Mapping[str, Any] = schema.get("$defs", {}).get(name, schema)
    return dict(own.get("properties", {}))


def _misfit(message: str) -> OutputError:
    return OutputError([Fault(path="result", message=message)])
