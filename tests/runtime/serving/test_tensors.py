"""Tensors of the Open Inference Protocol, to and from records."""

from __future__ import annotations

import struct
import tracemalloc
from typing import Any

import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from mfimage.errors import InputError
from mfimage.runtime.serving.tabular.tables import Table, table_of
from mfimage.runtime.serving.tabular.tensors import (
    DATATYPES,
    describe,
    in_binary,
    in_json,
    read_tensors,
    record_of,
    records_of,
    result_in_json,
    tensors_of,
)

FLOWER = {
    "type": "object",
    "required": ["length", "names"],
    "properties": {
        "length": {"type": "number"},
        "names": {"type": "array", "items": {"type": "string"}},
        "petals": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "origin": {"$ref": "#/$defs/Place"},
        "ripe": {"type": "boolean"},
        "kind": {"enum": ["a", "b"]},
    },
    "$defs": {"Place": {"type": "object", "properties": {"x": {"type": "integer"}}}},
}
OPEN = {"type": "object", "additionalProperties": True}


def tensor(name: str, shape: Any, datatype: str, data: Any, **more: Any) -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data, **more}


def table(schema: dict[str, Any]) -> Table:
    return table_of(schema, name="data")


def read(*tensors: Any, schema: dict[str, Any] = FLOWER, binary: bytes = b"") -> list[Any]:
    return records_of(read_tensors(list(tensors), binary), table(schema))


def refusal(*tensors: Any, schema: dict[str, Any] = FLOWER, binary: bytes = b"") -> str:
    with pytest.raises(InputError) as caught:
        read(*tensors, schema=schema, binary=binary)
    return str(caught.value.faults[0])


def test_columns_by_name_in_every_shape_that_clients_send() -> None:
    found = read(
        tensor("length", [2, 1], "FP64", [1.5, 2]),
        tensor("names", [2, 2], "BYTES", [["a", "b"], ["c", "d"]]),
        tensor("petals", [2], "INT32", [3, 4]),
        tensor("origin", [2], "BYTES", ['{"x":1}', '{"x":2}']),
        tensor("ripe", [2], "BOOL", [True, False]),
        tensor("kind", [2], "BYTES", ["a", "b"], parameters={"content_type": "str"}),
    )
    one = {"length": 1.5, "names": ["a", "b"], "petals": 3, "origin": {"x": 1}}
    two = {"length": 2, "names": ["c", "d"], "petals": 4, "origin": {"x": 2}}
    assert found == [{**one, "ripe": True, "kind": "a"}, {**two, "ripe": False, "kind": "b"}]


@pytest.mark.parametrize(
    ("schema", "given", "records"),
    [
        ({"type": "number"}, tensor("anything", [2], "FP32", [1, 2.5]), [1, 2.5]),
        ({"type": "number"}, tensor("x", [], "FP32", [1]), [1]),
        ({"type": "string"}, tensor("x", [1, 1], "BYTES", ["a"]), ["a"]),
        (
            {"type": "array", "items": {"type": "number"}},
            tensor("x", [2, 1], "FP64", [1, 2]),
            [[1], [2]],
        ),
        (
            {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
            tensor("x", [1, 2, 2], "INT64", [[[1, 2], [3, 4]]]),
            [[[1, 2], [3, 4]]],
        ),
        (OPEN, tensor("age", [2, 1], "INT64", [1, 2]), [{"age": 1}, {"age": 2}]),
        (OPEN, tensor("x", [1, 2], "INT64", [1, 2]), [{"x": [1, 2]}]),
        (OPEN, tensor("x", [1], "BYTES", ["1"]), [{"x": "1"}]),
        (
            OPEN,
            tensor("x", [1], "BYTES", ["[1]"], parameters={"content_type": "json"}),
            [{"x": [1]}],
        ),
        ({}, tensor("age", [1], "INT64", [1]), [{"age": 1}]),
        ({}, tensor("data", [1], "INT64", [1]), [1]),
        ({"type": "array", "items": {}}, tensor("x", [1], "BYTES", ['[1,"a"]']), [[1, "a"]]),
    ],
)
def test_records_of_one_tensor(schema: Any, given: Any, records: Any) -> None:
    assert read(given, schema=schema) == records


def test_lists_without_elements() -> None:
    names = tensor("names", [1, 0], "BYTES", [])
    assert read(names, tensor("length", [1], "FP64", [1])) == [{"names": [], "length": 1}]


def test_no_rows() -> None:
    assert read(tensor("length", [0, 1], "FP64", [])) == []
    assert tensors_of([], table(FLOWER)) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (tensor("length", [2], "FP64", [1.0]), "inputs[0].shape: [2] has 2 elements; the data"),
        (tensor("length", [2, 2], "FP64", [[1, 2], [3]]), "inputs[0].data: expected lists of the"),
        (tensor("length", [4], "FP64", [[1, 2], [3, 4]]), "inputs[0].shape: [4] has 4"),
        (tensor("length", [2], "FP64", [[1], [2]]), "inputs[0].data[0]: expected FP64, got [1]"),
        (tensor("length", [-1], "FP64", [1]), "inputs[0].shape: expected whole numbers"),
        (tensor("length", [True], "FP64", [1]), "inputs[0].shape: expected whole numbers"),
        (tensor("length", 1, "FP64", [1]), "inputs[0].shape: expected a list"),
        (tensor("length", [1] * 40, "FP64", [1]), "inputs[0].shape: expected a list of at most 32"),
        (tensor("length", [2, 3, 0], "FP64", []), "inputs[0].shape: only the number of rows"),
        (tensor("length", [1], "FLOAT", [1]), "inputs[0].datatype: expected BOOL, INT8"),
        (tensor("length", [1], ["FP64"], [1]), "inputs[0].datatype: expected BOOL, INT8"),
        (tensor("length", [1], "FP64", ["a"]), "inputs[0].data[0]: expected FP64, got 'a'"),
        (tensor("length", [1], "FP64", [True]), "inputs[0].data[0]: expected FP64, got True"),
        (tensor("length", [1], "INT64", [1.0]), "inputs[0].data[0]: expected INT64, got 1.0"),
        (tensor("length", [1], "INT8", [128]), "inputs[0].data: 128 does not fit in INT8"),
        (tensor("length", [1], "UINT64", [-1]), "inputs[0].data: -1 does not fit in UINT64"),
        (tensor("length", [1], "BYTES", [1]), "inputs[0].data[0]: expected BYTES, got 1"),
        (tensor("length", [1], "FP64", 1), "inputs[0].data: expected a list"),
        (tensor("origin", [1], "BYTES", ["{"]), "inputs[0].data[0]: not JSON"),
        ({"name": "length"}, "inputs[0].datatype"),
        ({"shape": [1]}, "inputs[0]: expected a tensor"),
        ("x", "inputs[0]: expected a tensor"),
        (tensor("length", [1], "FP64", [1], parameters=1), "inputs[0].parameters: expected"),
        (
            tensor("length", [1], "FP64", [1], parameters={"shared_memory_region": "x"}),
            "inputs[0].parameters: shared memory",
        ),
        (
            tensor("length", [1], "FP64", None, parameters={"binary_data_size": 8}),
            "inputs[0].parameters.binary_data_size: the body has 0 more bytes; got 8",
        ),
        (
            tensor("length", [1], "FP64", None, parameters={"binary_data_size": True}),
            "inputs[0].parameters.binary_data_size",
        ),
    ],
)
def test_what_is_wrong_is_named(given: Any, message: str) -> None:
    assert message in refusal(given)


def test_tensors_must_agree() -> None:
    one, two = tensor("a", [1], "INT64", [1]), tensor("b", [2], "INT64", [1, 2])
    assert "columns of equal length, got a 1, b 2" in refusal(one, two)
    assert "inputs[1].name: 'a' was given already" in refusal(one, one)
    assert "expected one tensor, got 2" in refusal(one, two, schema={"type": "number"})


@pytest.mark.parametrize(
    "given",
    [
        tensor("x", [10**12], "FP64", [1.0]),
        tensor("x", [10**18, 10**18, 10**18], "FP64", [1.0]),
        tensor("x", [10**9, 0], "FP64", []),
        tensor("x", [10**9], "FP64", None, parameters={"binary_data_size": 8}),
        tensor("x", [10**9], "BYTES", None, parameters={"binary_data_size": 8}),
    ],
)
def test_a_huge_shape_with_little_data_costs_nothing(given: Any) -> None:
    tracemalloc.start()
    try:
        refusal(given, schema=OPEN, binary=b"12345678" if given["data"] is None else b"")
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("datatype", [name for name in DATATYPES if name != "BYTES"])
def test_binary_numbers(datatype: str) -> None:
    values = [True, False] if datatype == "BOOL" else [1, 0]
    binary = struct.pack(f"<2{DATATYPES[datatype].code}", *values)
    size = {"binary_data_size": len(binary)}
    given = tensor("x", [2], datatype, None, parameters=size)
    assert read(given, schema=OPEN, binary=binary) == [{"x": value} for value in values]


def test_binary_text() -> None:
    binary = b"".join(struct.pack("<I", len(text)) + text for text in (b"\xc3\xa9", b""))
    given = tensor("x", [2], "BYTES", None, parameters={"binary_data_size": len(binary)})
    assert read(given, schema=OPEN, binary=binary) == [{"x": "é"}, {"x": ""}]
    assert "not UTF-8" in refusal(given, schema=OPEN, binary=binary.replace(b"\xc3", b"\xff"))
    lies = struct.pack("<I", 2**31) + binary[4:]
    assert "ends within it" in refusal(given, schema=OPEN, binary=lies)
    short = {**given, "shape": [1]}
    assert "4 bytes follow the last" in refusal(short, schema=OPEN, binary=binary)


def test_binary_data_in_the_order_of_the_tensors() -> None:
    given = [
        tensor(name, [1], "INT8", None, parameters={"binary_data_size": 1}) for name in ("a", "b")
    ]
    assert read(*given, schema=OPEN, binary=b"\x01\x02") == [{"a": 1, "b": 2}]
    assert "1 bytes of binary data belong to none" in refusal(
        *given, schema=OPEN, binary=b"\x01\x02\x03"
    )


def test_binary_floats_must_be_finite() -> None:
    given = tensor("x", [1], "FP64", None, parameters={"binary_data_size": 8})
    assert "NaN" in refusal(given, schema=OPEN, binary=struct.pack("<d", float("nan")))


@pytest.mark.parametrize(
    ("values", "schema", "datatype", "shape", "elements"),
    [
        ([1, 2], {"type": "integer"}, "INT64", [2], [1, 2]),
        ([1, 2], {"type": "number"}, "FP64", [2], [1, 2]),
        ([1, 2.5], {}, "FP64", [2], [1, 2.5]),
        ([True], {}, "BOOL", [1], [True]),
        (["a"], {"type": "string"}, "BYTES", [1], ["a"]),
        ([[1, 2], [3, 4]], {}, "INT64", [2, 2], [1, 2, 3, 4]),
        ([[], []], {"type": "array", "items": {"type": "string"}}, "BYTES", [2, 0], []),
    ],
)
def test_results_as_tensors(
    values: Any, schema: Any, datatype: str, shape: Any, elements: Any
) -> None:
    (made,) = tensors_of(values, table_of(schema, name="result"))
    assert (made.name, made.datatype, made.shape) == ("result", datatype, shape)
    assert list(made.elements) == elements


@pytest.mark.parametrize(
    "values",
    [
        [None, 1], [[1], [2, 3]], [{"a": 1}, {"b": 2}], ["a", 1], [2**70], [2**70, 0.5], [[1], 2],
    ],
)  # fmt: skip
def test_results_that_no_datatype_has_are_json(values: Any) -> None:
    (made,) = tensors_of(values, table_of({}, name="result"))
    assert (made.datatype, made.shape) == ("BYTES", [len(values)])
    assert in_json(made)["parameters"] == {"content_type": "json"}
    schema = {"type": "array", "items": {}}
    assert read(in_json(made), schema=schema) == values


@pytest.mark.parametrize("binary", [False, True])
def test_records_come_back_from_their_tensors(binary: bool) -> None:
    records = [
        {"length": 5.1, "names": ["é", ""], "petals": None, "origin": {"x": 1}, "ripe": True},
        {"length": 5, "names": ["b", "c"], "petals": 2**80, "origin": {"x": 2}, "ripe": False},
    ]
    made = tensors_of(records, table(FLOWER))
    if binary:
        pairs = [in_binary(each) for each in made]
        given = [head for head, _ in pairs]
        found = read_tensors(given, b"".join(data for _, data in pairs))
    else:
        found = read_tensors([in_json(each) for each in made])
    back = records_of(found, table(OPEN))
    assert back == records


def test_description() -> None:
    json = {"parameters": {"content_type": "json"}}
    assert describe(table(FLOWER)) == [
        {"name": "length", "datatype": "FP64", "shape": [-1]},
        {"name": "names", "datatype": "BYTES", "shape": [-1, -1]},
        {"name": "petals", "datatype": "INT64", "shape": [-1]},
        {"name": "origin", "datatype": "BYTES", "shape": [-1], **json},
        {"name": "ripe", "datatype": "BOOL", "shape": [-1]},
        {"name": "kind", "datatype": "BYTES", "shape": [-1]},
    ]


NAMES = st.sampled_from([*FLOWER["properties"], "other"])
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**65), 2**65), st.integers(-300, 300),
    st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=3),
    st.sampled_from(["[1]", {}, [1]]),
)  # fmt: skip
TENSORS = st.lists(
    st.fixed_dictionaries(
        {
            "name": NAMES,
            "shape": st.sampled_from([[1], [1], [1], [True], [1.0], [1, 1], [2], [], None]),
            "datatype": st.sampled_from([*DATATYPES, "FP128", None, ["FP64"]]),
            "data": st.one_of(st.lists(VALUES, min_size=1, max_size=1), st.just("x")),
        },
        optional={"parameters": st.sampled_from([{}, {"content_type": "json"}])},
    ),
    min_size=1, max_size=3,
)  # fmt: skip


@for_all(tensors=TENSORS, schema=st.sampled_from([FLOWER, OPEN, {}]))
def test_one_record_is_read_as_many_are(tensors: Any, schema: dict[str, Any]) -> None:
    quick = record_of(tensors, table(schema))
    assert quick is None or [quick] == read(*tensors, schema=schema)


def test_a_record_of_scalars_is_read_at_once() -> None:
    tensors = [tensor("length", [1], "FP64", [1.5]), tensor("kind", [1], "BYTES", ["a"])]
    assert record_of(tensors, table(FLOWER)) == {"length": 1.5, "kind": "a"}


@for_all(st.dictionaries(NAMES, VALUES, min_size=1), st.sampled_from([FLOWER, OPEN]))
def test_one_result_is_written_as_many_are(result: Any, schema: dict[str, Any]) -> None:
    quick = result_in_json(result, table(schema))
    slow = [{**each, "data": tuple(each["data"])} for each in map(
        in_json, tensors_of([result], table(schema)))]  # fmt: skip
    assert quick is None or quick == slow


def test_a_result_of_scalars_is_written_at_once() -> None:
    written = {"name": "length", "shape": [1], "datatype": "FP64", "data": (2,)}
    assert result_in_json({"length": 2}, table(FLOWER)) == [written]
