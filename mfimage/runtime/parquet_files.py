"""Parquet as a format of files of records: a row is a record, its columns are the members."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, BinaryIO

from mfimage.errors import Fault, OutputError, SerializerError

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
