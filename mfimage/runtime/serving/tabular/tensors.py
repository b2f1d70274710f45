"""Tensors of the Open Inference Protocol v2, in JSON and binary, to and from records.

A tensor has a row for each record. Its shape is checked against the data before anything of that
size is made.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from mfimage.errors import InputError, shorten
from mfimage.runtime.serving.tabular.tables import Column, Kind, Table, by_column, invalid

BYTES = "BYTES"
_MAX_RANK = 32
_MAX_SIZE = 2**63
_NUMBER = frozenset({int, float})
_SCALARS = frozenset({int, float, bool, str})
_LENGTH = struct.Struct("<I")
# Of what a tensor's text is: JSON.
_CONTENT_TYPE = "content_type"
_JSON = "json"
_BINARY_SIZE = "binary_data_size"
_SHARED_MEMORY = "shared_memory_region"


@dataclass(frozen=True, kw_only=True)
class Datatype:
    """A datatype: the types of its elements in JSON, their range, and their binary form."""

    types: frozenset[type]
    code: str = ""  # of ``struct``
    size: int = 4  # bytes of an element; of BYTES, the minimum
    range: range | None = None

    def accepts(self, element: Any) -> bool:
        """Return whether a JSON value is an element."""
        return type(element) in self.types and (self.range is None or element in self.range)


def _integer(code: str, bits: int, *, signed: bool) -> Datatype:
    limits = range(-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else range(2**bits)
    return Datatype(types=frozenset({int}), code=code, size=bits // 8, range=limits)


DATATYPES: Mapping[str, Datatype] = {
    "BOOL": Datatype(types=frozenset({bool}), code="?", size=1),
    "INT8": _integer("b", 8, signed=True),
    "INT16": _integer("h", 16, signed=True),
    "INT32": _integer("i", 32, signed=True),
    "INT64": _integer("q", 64, signed=True),
    "UINT8": _integer("B", 8, signed=False),
    "UINT16": _integer("H", 16, signed=False),
    "UINT32": _integer("I", 32, signed=False),
    "UINT64": _integer("Q", 64, signed=False),
    "FP16": Datatype(types=_NUMBER, code="e", size=2),
    "FP32": Datatype(types=_NUMBER, code="f", size=4),
    "FP64": Datatype(types=_NUMBER, code="d", size=8),
    BYTES: Datatype(types=frozenset({str})),
}
_OF_KIND: Mapping[Kind, str] = {
    "boolean": "BOOL",
    "integer": "INT64",
    "number": "FP64",
    "string": BYTES,
    "json": BYTES,
    "any": BYTES,
}
_INT64 = DATATYPES["INT64"].range
_ONE = [1]
_FLOATS = ("FP64", "FP32", "FP16")


@dataclass(eq=False, slots=True)  # by position: keywords take longer
class Tensor:
    """A tensor; ``elements`` are JSON values, in row-major order."""

    name: str
    datatype: str
    shape: Sequence[int]
    elements: Sequence[Any]
    parameters: Mapping[str, Any] | None = None


# Reading


def read_tensors(given: Any, binary: bytes | memoryview = b"") -> list[Tensor]:
    """Return the tensors in the JSON value of ``inputs``; ``binary`` follows it in the body."""
    if not isinstance(given, list) or not given:
        raise invalid("inputs", "expected a list of tensors")
    tensors: dict[str, Tensor] = {}
    start = 0
    for index, each in enumerate(given):
        try:
            tensor, size = _tensor(each, memoryview(binary)[start:] if binary else binary)
            if tensor.name in tensors:
                raise invalid(".name", f"{shorten(repr(tensor.name))} was given already")
        except InputError as error:
            fault = error.faults[0]
            raise invalid(f"inputs[{index}]{fault.path}", fault.message) from None
        tensors[tensor.name] = tensor
        start += size
    if start < len(binary):
        left = len(binary) - start
        raise invalid("inputs", f"{left} bytes of binary data belong to none of the tensors")
    return list(tensors.values())


def _tensor(given: Any, binary: bytes | memoryview) -> tuple[Tensor, int]:
    """Return a tensor, and the size of its binary data; paths in errors are relative."""
    if not isinstance(given, dict) or not isinstance(name := given.get("name"), str):
        raise invalid("", "expected a tensor with name, shape, datatype and data")
    datatype = given.get("datatype")
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        expected = ", ".join(DATATYPES)
        raise invalid(".datatype", f"expected {expected}; got {shorten(repr(datatype))}")
    shape = _shape(given.get("shape"))
    parameters = given.get("parameters")
    if not parameters:
        return Tensor(name, datatype, shape, _from_json(given.get("data"), shape, datatype)), 0
    if not isinstance(parameters, dict):
        raise invalid(".parameters", "expected an object")
    if _SHARED_MEMORY in parameters:
        raise invalid(".parameters", "shared memory is not supported")
    size = parameters.get(_BINARY_SIZE)
    if size is None:
        elements = _from_json(given.get("data"), shape, datatype)
        return Tensor(name, datatype, shape, elements, parameters), 0
    if type(size) is not int or not 0 <= size <= len(binary):
        what = f"the body has {len(binary)} more bytes"
        raise invalid(f".parameters.{_BINARY_SIZE}", f"{what}; got {shorten(repr(size))}")
    elements = _from_binary(memoryview(binary)[:size], shape, datatype)
    return Tensor(name, datatype, shape, elements, parameters), size


def _shape(given: Any) -> Sequence[int]:
    if not isinstance(given, list) or len(given) > _MAX_RANK:
        raise invalid(".shape", f"expected a list of at most {_MAX_RANK} sizes")
    for size in given:
        if type(size) is not int or not 0 <= size < _MAX_SIZE:
            raise invalid(".shape", "expected whole numbers of at least 0")
    if len(given) > 1 and 0 in given[1:] and (len(given) > 2 or given[0] == 0):
        message = "only the number of rows, or the length of their lists, may be 0"
        raise invalid(".shape", message)
    return given or (1,)


def _from_json(data: Any, shape: Sequence[int], datatype: str) -> Sequence[Any]:
    if not isinstance(data, list):
        raise invalid(".data", "expected a list")
    kind = DATATYPES[datatype]
    if len(data) == 1 == len(shape) and shape[0] == 1 and kind.accepts(data[0]):
        return data  # as most are
    found: list[Any] = data
    if len(shape) > 1 and data and type(data[0]) is list:  # nested; else flattened
        for size in shape[1:]:
            if not all(type(each) is list and len(each) == size for each in found):
                raise invalid(".data", f"expected lists of the shape {_shown(shape)}")
            found = [element for each in found for element in each]
    if math.prod(shape) != len(found):
        has = f"{_shown(shape)} has {_count(math.prod(shape))}"
        raise invalid(".shape", f"{has}; the data has {len(found)}")
    if not kind.types.issuperset(map(type, found)):
        index = next(i for i, each in enumerate(found) if type(each) not in kind.types)
        shown = shorten(repr(found[index]))
        raise invalid(f".data[{index}]", f"expected {datatype}, got {shown}")
    if kind.range is not None and found:
        for value in (min(found), max(found)):
            if value not in kind.range:
                raise invalid(".data", f"{shorten(str(value))} does not fit in {datatype}")
    return found


def _count(number: int) -> str:
    return f"{number} elements" if number < _MAX_SIZE else "more elements than any data"


def _shown(shape: Sequence[int]) -> str:
    return shorten(f"[{', '.join(map(str, shape))}]")


def _from_binary(data: memoryview, shape: Sequence[int], datatype: str) -> Sequence[Any]:
    kind, count = DATATYPES[datatype], math.prod(shape)
    fits = count * kind.size <= len(data) if datatype == BYTES else count * kind.size == len(data)
    if not fits:
        size = f"{_shown(shape)} of {datatype} has {_count(count)}"
        raise invalid(".shape", f"{size}; its binary data has {len(data)} bytes")
    if datatype == BYTES:
        return _texts(data, count)
    found = struct.unpack(f"<{count}{kind.code}", data)
    if kind.types is _NUMBER and not all(map(math.isfinite, found)):
        raise invalid("", "NaN and infinities have no JSON form")
    return found


def _texts(data: memoryview, count: int) -> list[str]:
    texts, at = [], 0
    for index in range(count):
        if at + _LENGTH.size > len(data):
            raise invalid(f".data[{index}]", "the binary data ends before it")
        end = at + _LENGTH.size + _LENGTH.unpack_from(data, at)[0]
        if end > len(data):
            raise invalid(f".data[{index}]", "the binary data ends within it")
        try:
            texts.append(str(data[at + _LENGTH.size : end], "utf-8"))
        except UnicodeDecodeError:
            raise invalid(f".data[{index}]", "not UTF-8") from None
        at = end
    if at != len(data):
        raise invalid("", f"{len(data) - at} bytes follow the last of its {count} elements")
    return texts


# Records


def records_of(tensors: Sequence[Tensor], table: Table) -> list[Any]:
    """Return a record for each row: columns by name, or the rows of the only tensor."""
    _limit_rows(tensors)
    whole = table.whole
    if whole is not None and (whole.kind != "any" or tensors[0].name == whole.name):
        if len(tensors) > 1:
            raise invalid("inputs", f"expected one tensor, got {len(tensors)}")
        return list(_rows(tensors[0], whole, 0))
    columns = {
        each.name: each.elements
        if len(each.shape) == 1 and each.datatype != BYTES
        else _rows(each, table.columns.get(each.name), index)
        for index, each in enumerate(tensors)
    }
    return by_column(columns, path="inputs")


def record_of(given: Any, table: Table) -> dict[str, Any] | None:
    """Return what ``records_of`` does where each tensor is one scalar, as most are; else None."""
    if not isinstance(given, list) or table.whole is not None:
        return None
    record: dict[str, Any] = {}
    for each in given:
        if not isinstance(each, dict) or each.get("parameters"):
            return None
        name, shape, data = each.get("name"), each.get("shape"), each.get("data")
        if not (
            isinstance(name, str)
            and shape == _ONE
            and type(shape[0]) is int
            and isinstance(data, list)
            and len(data) == 1
            and _is_scalar(data[0], each.get("datatype"), table.columns.get(name))
        ):
            return None
        record[name] = data[0]
    return record if len(record) == len(given) else None


def _is_scalar(element: Any, datatype: Any, column: Column | None) -> bool:
    if datatype in _FLOATS:
        return type(element) in _NUMBER
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        return False
    is_json = datatype == BYTES and column is not None and column.kind == "json"
    return not is_json and DATATYPES[datatype].accepts(element)


def _limit_rows(tensors: Sequence[Tensor]) -> None:
    """Refuse rows without elements, of which a few bytes can claim any number."""
    for index, each in enumerate(tensors):
        rows = each.shape[0]
        if rows > len(each.elements) and rows > max(1, *(len(one.elements) for one in tensors)):
            raise invalid(f"inputs[{index}].shape", f"{rows} rows, and no data of as many")


def _rows(tensor: Tensor, column: Column | None, index: int) -> Sequence[Any]:
    rows, inner = list(tensor.elements), list(tensor.shape[1:])
    if tensor.datatype == BYTES and _is_json(tensor, column):
        rows = [_loads(text, f"inputs[{index}].data[{at}]") for at, text in enumerate(rows)]
    rank = column.rank if column is not None and column.kind != "any" else None
    # [n, 1] for a scalar, as data frames are sent.
    if inner and set(inner) == {1} and (rank == 0 or (rank is None and len(inner) == 1)):
        inner = []
    if 0 in inner:  # the last
        return [[] for _ in range(tensor.shape[0])]
    for size in reversed(inner):
        rows = [rows[start : start + size] for start in range(0, len(rows), size)]
    return rows


def _is_json(tensor: Tensor, column: Column | None) -> bool:
    given = tensor.parameters and tensor.parameters.get(_CONTENT_TYPE)
    return given == _JSON or (column is not None and column.kind == "json")


def _loads(text: str, path: str) -> Any:
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise invalid(path, f"not JSON: {error}") from None


# Writing


def tensors_of(values: Sequence[Any], table: Table) -> list[Tensor]:
    """Return the tensors of records or results: one for each member, or one for all."""
    if not values:
        return []
    first = values[0]
    if not isinstance(first, dict) or not all(
        isinstance(each, dict) and each.keys() == first.keys() for each in values
    ):
        whole = table.whole or Column(name="result", kind="json")
        return [_written(whole.name, values, whole.kind)]
    tensors = []
    for name in first:
        column = table.columns.get(name)
        kind: Kind = column.kind if column is not None else "any"
        tensors.append(_written(name, [each[name] for each in values], kind))
    return tensors


def _written(name: str, values: Sequence[Any], kind: Kind) -> Tensor:
    shape = [len(values)]
    found = values
    while found and type(found[0]) is list and len(shape) < _MAX_RANK:
        size = len(found[0])
        if not all(type(each) is list and len(each) == size for each in found):
            break
        shape.append(size)
        found = [element for each in found for element in each]
    datatype = _datatype(found, kind)
    if datatype is not None:
        return Tensor(name, datatype, shape, found)
    texts = [json.dumps(each, ensure_ascii=False, separators=(",", ":")) for each in values]
    return Tensor(name, BYTES, [len(values)], texts, {_CONTENT_TYPE: _JSON})


def _datatype(elements: Sequence[Any], kind: Kind) -> str | None:
    """Return the datatype that all elements have; None if there is none."""
    types = set(map(type, elements))
    if not types:
        return _OF_KIND[kind]
    if types == {bool}:
        return "BOOL"
    if types == {str}:
        return None if kind == "json" else BYTES
    if types == {int} and kind != "number":
        assert _INT64 is not None
        return "INT64" if min(elements) in _INT64 and max(elements) in _INT64 else None
    if not types <= _NUMBER or any(
        abs(each) >= _MAX_SIZE for each in elements if type(each) is int
    ):
        return None
    return "FP64"


def result_in_json(result: Any, table: Table) -> list[dict[str, Any]] | None:
    """Return the tensors of one result as JSON values if its members are scalars; else None."""
    if type(result) is not dict:
        return None
    found = []
    for name, value in result.items():
        kind, datatype = type(value), None
        if kind is float:
            datatype = "FP64"
        elif kind in _SCALARS:
            column = table.columns.get(name)
            datatype = _datatype((value,), column.kind if column is not None else "any")
        if datatype is None:
            return None
        found.append({"name": name, "shape": _ONE, "datatype": datatype, "data": (value,)})
    return found


def describe(table: Table) -> list[dict[str, Any]]:
    """Return the tensors of a table, as the metadata of a model has them; -1 is any size."""
    columns = [table.whole] if table.whole is not None else table.columns.values()
    return [
        {
            "name": each.name,
            "datatype": _OF_KIND[each.kind],
            "shape": [-1] * (1 if each.kind == "json" else 1 + each.rank),
            **({"parameters": {_CONTENT_TYPE: _JSON}} if each.kind == "json" else {}),
        }
        for each in columns
    ]


def in_json(tensor: Tensor) -> dict[str, Any]:
    """Return a tensor with its data, as a JSON value."""
    parameters = {"parameters": tensor.parameters} if tensor.parameters else {}
    return {**_head(tensor), **parameters, "data": tensor.elements}


def in_binary(tensor: Tensor) -> tuple[dict[str, Any], bytes]:
    """Return a tensor without its data as a JSON value, and the data."""
    if tensor.datatype == BYTES:
        encoded = [text.encode() for text in tensor.elements]
        data = b"".join(_LENGTH.pack(len(each)) + each for each in encoded)
    else:
        code = DATATYPES[tensor.datatype].code
        data = struct.pack(f"<{len(tensor.elements)}{code}", *tensor.elements)
    return {
        **_head(tensor),
        "parameters": {**(tensor.parameters or {}), _BINARY_SIZE: len(data)},
    }, data


def _head(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "shape": tensor.shape, "datatype": tensor.datatype}
