"""Records from data frames and CSV."""

from __future__ import annotations

from typing import Any

import pytest

from mfimage.errors import InputError
from mfimage.runtime.serving.tabular.tables import FRAMES, read_csv, table_of, write_csv

FLAT = {
    "type": "object",
    "required": ["age", "name", "share", "ripe"],
    "properties": {
        "age": {"type": "integer"},
        "name": {"type": "string"},
        "share": {"type": "number"},
        "ripe": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
    },
}


@pytest.mark.parametrize(
    ("member", "value", "records"),
    [
        (
            "dataframe_split",
            {"columns": ["a", "b"], "index": [7], "data": [[1, "x"]]},
            [{"a": 1, "b": "x"}],
        ),
        ("dataframe_records", [{"a": 1}], [{"a": 1}]),
        ("inputs", {"a": [1, 2], "b": [[3], [4]]}, [{"a": 1, "b": [3]}, {"a": 2, "b": [4]}]),
        ("inputs", {"a": 1, "b": [3]}, [{"a": 1, "b": [3]}]),
        ("inputs", [[1, 2]], [[1, 2]]),
        ("instances", [1, 2], [1, 2]),
    ],
)
def test_frames(member: str, value: Any, records: Any) -> None:
    assert FRAMES[member](value) == records


@pytest.mark.parametrize(
    ("member", "value", "message"),
    [
        ("dataframe_split", [], "dataframe_split: expected an object"),
        ("dataframe_split", {"data": []}, "dataframe_split.columns: expected a list of names"),
        ("dataframe_split", {"columns": [1], "data": []}, "dataframe_split.columns: expected"),
        ("dataframe_split", {"columns": ["a", "a"], "data": []}, "each name once"),
        (
            "dataframe_split",
            {"columns": ["a"], "data": [[1], [1, 2]]},
            "dataframe_split.data[1]: expected a list of 1 values",
        ),
        ("dataframe_records", {}, "dataframe_records: expected a list"),
        ("inputs", {"a": [1], "b": []}, "inputs: expected columns of equal length, got a 1, b 0"),
        ("inputs", 1, "inputs: expected a list"),
        ("instances", {"a": [1]}, "instances: expected a list"),
    ],
)
def test_frames_refused(member: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("[", r"\[")):
        FRAMES[member](value)


@pytest.mark.parametrize(
    ("text", "header"),
    [
        ("age,name,share,ripe\n36,x,,\n", None),
        ("\ufeffripe, name, age,share\r\n,x,36,\r\n", None),
        ("36,x,,\n", None),
        ("36,x,,\n", False),
        ("ripe,name,age,share\n,x,36,\n", True),
    ],
)
def test_csv(text: str, header: bool | None) -> None:
    record = {"age": 36, "name": "x", "share": None, "ripe": None}
    assert read_csv(text, table_of(FLAT, name="data"), header=header) == [record]


def test_csv_of_optional_columns_needs_a_header() -> None:
    """A package does not keep the order of members that are not required."""
    table = table_of({**FLAT, "required": ["name"]}, name="data")
    assert read_csv("name,age\nx,36\n", table, header=None) == [{"name": "x", "age": 36}]
    assert read_csv("name,age\nx,\n", table, header=None) == [{"name": "x"}]
    with pytest.raises(InputError, match="line 1: expected a header with names of name, age"):
        read_csv("36,x,,\n", table, header=None)


def test_csv_cells() -> None:
    text = '1.5,"a,b",-2e3,TRUE\n,,nan,0\n'
    assert read_csv(text, table_of(FLAT, name="data"), header=None) == [
        {"age": 1.5, "name": "a,b", "share": -2000.0, "ripe": True},
        {"age": None, "name": "", "share": "nan", "ripe": False},
    ]


def test_csv_refused() -> None:
    table = table_of(FLAT, name="data")
    with pytest.raises(InputError, match=r"line 2: expected 4 cells \(age, name, share, ripe\)"):
        read_csv("1,a,2,true\n1,a\n", table, header=None)
    with pytest.raises(InputError, match="line 1: expected each name once"):
        read_csv("age,name,age,share,ripe\n1,a,2,3,true\n", table, header=None)
    with pytest.raises(InputError, match="line 1: not CSV"):
        read_csv('"a', table, header=None)


def test_csv_of_numbers() -> None:
    numbers = table_of({"type": "array", "items": {"type": "number"}}, name="data")
    assert read_csv("1,2.5\n\n3,4\n", numbers, header=None) == [[1, 2.5], [3, 4]]
    assert read_csv("x\n1\n", table_of({"type": "integer"}, name="data"), header=True) == [1]


@pytest.mark.parametrize(
    ("schema", "flat"),
    [
        (FLAT, True),
        ({"type": "object"}, False),
        ({"type": "object", "properties": {"a": {"type": "array"}}}, False),
        ({"type": "array", "items": {"type": "number"}}, True),
        ({"type": "array", "items": {"type": "object"}}, False),
        ({"$ref": "#/$defs/A", "$defs": {"A": {"$ref": "#/$defs/A"}}}, False),
    ],
)
def test_flat(schema: Any, flat: bool) -> None:
    assert table_of(schema, name="data").flat is flat


def test_written() -> None:
    table = table_of(FLAT, name="result")
    assert write_csv([{"age": 1, "name": "a,b", "ripe": True}], table) == '1,"a,b",,true\n'
    assert write_csv([{"other": 1}], table) is None
    whole = table_of({}, name="result")
    assert write_csv([1, [2, None], {"a": 1.5}], whole) == "1\n2,\n1.5\n"
    assert write_csv([[[1]]], whole) is None
