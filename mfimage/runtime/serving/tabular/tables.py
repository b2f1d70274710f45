"""Records from rows and columns, by the function's JSON Schema: data frames and CSV."""

from __future__ import annotations

import csv
import io
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mfimage.errors import Fault, InputError, shorten

# Of the elements of a column. "json": values that are not text; "any": text is one of them.
Kind = Literal["boolean", "integer", "number", "string", "json", "any"]
_SCALARS: Mapping[str, Kind] = {
    "boolean": "boolean",
    "integer": "integer",
    "number": "number",
    "string": "string",
}
_NUMBERS: frozenset[Kind] = frozenset({"integer", "number"})
# A schema may refer to itself.
_MAX_DEPTH = 16
_DEFINITIONS = "#/$defs/"
_INTEGER = re.compile(r"[+-]?[0-9]{1,4000}")
_FLAGS = {"true": True, "false": False, "1": True, "0": False}


@dataclass(frozen=True, kw_only=True)
class Column:
    """A member of every record or result: scalars, or lists of lists of them, ``rank`` deep."""

    name: str
    kind: Kind
    rank: int = 0
    required: bool = False
    nullable: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """What records or results are made of: ``columns`` by name, or one that is the ``whole``."""

    columns: Mapping[str, Column]
    whole: Column | None
    # Whether the order of the columns is the function's: of those that are required it is known.
    ordered: bool = True

    @property
    def flat(self) -> bool:
        """Whether a record is a row of scalars."""
        if self.whole is not None:
            return self.whole.rank <= 1 and self.whole.kind not in ("json", "any")
        return bool(self.columns) and not any(
            each.rank or each.kind == "json" for each in self.columns.values()
        )


def table_of(schema: Mapping[str, Any], *, name: str) -> Table:
    """Return the table of a JSON Schema; ``name`` is that of a column that is the whole."""
    definitions = schema.get("$defs", {})
    root, _ = _resolve(schema, definitions)
    if root.get("type") == "object":
        properties = root.get("properties", {})
        # A package sorts the members of its schemas, but not the list of those required.
        required = [key for key in root.get("required", ()) if key in properties]
        columns = {
            key: _column(key, properties[key], definitions, required=key in required)
            for key in dict.fromkeys((*required, *properties))
        }
        return Table(columns=columns, whole=None, ordered=len(required) == len(columns))
    return Table(columns={}, whole=_column(name, root, definitions, required=True))


def _column(
    name: str, schema: Mapping[str, Any], definitions: Mapping[str, Any], *, required: bool
) -> Column:
    found, nullable = _resolve(schema, definitions)
    rank = 0
    while found.get("type") == "array" and rank < _MAX_DEPTH:
        rank += 1
        found, _ = _resolve(found.get("items") or {}, definitions)
    kind = _kind(found)
    if rank and kind in ("json", "any"):
        kind = "json"  # lists of what is not a scalar
    return Column(name=name, kind=kind, rank=rank, required=required, nullable=nullable)


def _resolve(
    schema: Mapping[str, Any], definitions: Mapping[str, Any]
) -> tuple[Mapping[str, Any], bool]:
    """Follow references, and leave out null; return the schema, and whether null was in it."""
    nullable = False
    for _ in range(_MAX_DEPTH):
        reference = schema.get("$ref")
        if isinstance(reference, str):
            schema = definitions.get(reference.removeprefix(_DEFINITIONS), {})
            continue
        choices = schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf")
        if not choices:
            break
        rest = [each for each in choices if each.get("type") != "null"]
        nullable = nullable or len(rest) < len(choices)
        if len(rest) != 1:
            kinds: set[Kind] = {_kind(_resolve(each, definitions)[0]) for each in rest}
            if kinds == {"integer", "number"}:
                return {"type": "number"}, nullable
            if len(kinds) == 1 and kinds <= set(_SCALARS.values()):
                return {"type": kinds.pop()}, nullable
            return ({} if kinds & {"string", "any"} else {"type": "json"}), nullable
        schema = rest[0]
    return schema, nullable


def _kind(schema: Mapping[str, Any]) -> Kind:
    given = schema.get("type")
    if given is None:
        values = schema.get("enum", [schema["const"]] if "const" in schema else ())
        names = {type(value).__name__ for value in values}
        kinds = {"bool": "boolean", "int": "integer", "float": "number", "str": "string"}
        given = kinds.get(names.pop()) if len(names) == 1 else None
        return _SCALARS.get(given or "", "any")
    if isinstance(given, list):
        return "any"
    return _SCALARS.get(given, "json")


def by_column(columns: Mapping[str, Sequence[Any]], *, path: str) -> list[dict[str, Any]]:
    """Return a record for each row of columns of equal length."""
    names = tuple(columns)
    try:
        return [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    except ValueError:
        lengths = (f"{name} {len(values)}" for name, values in columns.items())
        shown = shorten(", ".join(lengths))
        raise invalid(path, f"expected columns of equal length, got {shown}") from None


def invalid(path: str, message: str) -> InputError:
    """Return an error with one place."""
    return InputError([Fault(path=path, message=message)])


# The formats of MLflow's clients


def split_frame(frame: Any) -> list[dict[str, Any]]:
    """Return the records of ``dataframe_split``: its ``columns`` and its ``data``, row by row."""
    path = "dataframe_split"
    if not isinstance(frame, dict) or not isinstance(frame.get("data"), list):
        raise invalid(path, "expected an object with columns and data")
    names = frame.get("columns")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise invalid(f"{path}.columns", "expected a list of names")
    if len(set(names)) < len(names):
        raise invalid(f"{path}.columns", "expected each name once")
    for index, row in enumerate(frame["data"]):
        if not isinstance(row, list) or len(row) != len(names):
            raise invalid(f"{path}.data[{index}]", f"expected a list of {len(names)} values")
    return [dict(zip(names, row, strict=True)) for row in frame["data"]]


def frame_records(records: Any) -> list[Any]:
    """Return the records of ``dataframe_records``."""
    return list_of(records, "dataframe_records")


def named_inputs(inputs: Any) -> list[Any]:
    """Return the records of ``inputs``: a list of them, columns by name, or a single one."""
    if not isinstance(inputs, dict):
        return list_of(inputs, "inputs")
    if inputs and all(isinstance(values, list) for values in inputs.values()):
        return list(by_column(inputs, path="inputs"))
    return [inputs]


def instances(records: Any) -> list[Any]:
    """Return the records of ``instances``."""
    return list_of(records, "instances")


def list_of(records: Any, path: str) -> list[Any]:
    """Return a list, or raise ``InputError``."""
    if not isinstance(records, list):
        raise invalid(path, "expected a list of records")
    return records


# By the member that holds them.
FRAMES: Mapping[str, Callable[[Any], list[Any]]] = {
    "dataframe_split": split_frame,
    "dataframe_records": frame_records,
    "inputs": named_inputs,
    "instances": instances,
}


# CSV


def read_csv(text: str, table: Table, *, header: bool | None) -> list[Any]:
    """Return the records of a flat table; ``header``: whether the first row has the names.

    None: it has them if its cells are names of columns, all that are required among them. Without
    names, a row has all columns in the function's order.
    """
    lines = _lines(text)
    if table.whole is not None:
        if header:
            next(lines, None)
        return [_whole(cells, table.whole) for _, cells in lines]
    names = list(table.columns)
    first = next(lines, None)
    if first is None:
        return []
    if header or (header is None and _is_header(first[1], table)):
        names, rows = [cell.strip() for cell in first[1]], lines
        if len(set(names)) < len(names):
            raise invalid(f"line {first[0]}", "expected each name once")
    elif table.ordered:
        rows = itertools.chain([first], lines)
    else:
        raise invalid("line 1", f"expected a header with names of {shorten(', '.join(names))}")
    return [_record(number, cells, names, table) for number, cells in rows]


def _lines(text: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""), strict=True)
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, cells
    except csv.Error as error:
        raise invalid(f"line {reader.line_num}", f"not CSV: {error}") from None


def _is_header(cells: Sequence[str], table: Table) -> bool:
    names = {cell.strip() for cell in cells}
    required = {each.name for each in table.columns.values() if each.required}
    return required <= names <= set(table.columns)


def _record(
    number: int, cells: Sequence[str], names: Sequence[str], table: Table
) -> dict[str, Any]:
    if len(cells) != len(names):
        expected = shorten(", ".join(names))
        message = f"expected {len(names)} cells ({expected}), got {len(cells)}"
        raise invalid(f"line {number}", message)
    record: dict[str, Any] = {}
    for name, cell in zip(names, cells, strict=True):
        column = table.columns.get(name)
        if column is None:
            record[name] = cell
        elif cell or column.kind == "string":
            record[name] = _cell(cell, column.kind)
        elif column.required:
            record[name] = None
    return record


def _whole(cells: Sequence[str], column: Column) -> Any:
    values = [_cell(cell, column.kind) for cell in cells]
    return values if column.rank or len(values) != 1 else values[0]


def _cell(cell: str, kind: Kind) -> Any:
    """Return the value of a cell; text that is not one stays, for the parser to refuse."""
    if kind == "boolean":
        return _FLAGS.get(cell.strip().lower(), cell)
    if kind in _NUMBERS or kind == "any":
        text = cell.strip()
        if _INTEGER.fullmatch(text):
            return int(text)
        try:
            value = float(text)
        except ValueError:
            return cell
        return value if math.isfinite(value) and "_" not in text else cell
    return cell


def write_csv(results: Sequence[Any], table: Table) -> str | None:
    """Return results as rows without a header; None if they are not rows of scalars."""
    rows = []
    names = list(table.columns) if table.ordered else []
    for result in results:
        if isinstance(result, dict):
            names = names or list(result)
            if not result.keys() <= set(names):
                return None
            row = [result.get(name) for name in names]
        else:
            row = result if isinstance(result, list) else [result]
        if any(isinstance(value, dict | list) for value in row):
            return None
        rows.append([_text(value) for value in row])
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def _text(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else value
