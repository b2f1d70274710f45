"""JSON Schemas -> Avro schemas, and Avro schemas that are given: what they say, what is refused."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import json
import uuid
from typing import Annotated, Any, Literal

import fastavro
import pytest
from hypothesis import given
from pydantic import Base64Bytes, BaseModel, Field, TypeAdapter
from typing_extensions import NotRequired, TypedDict

from mfimage.errors import InputError, SchemaError
from mfimage.function.avro import AvroSerializer, Codec
from mfimage.function.signature import checked_schema
from tests.function.avro_strategies import schemas_and_values
from tests.function.test_avro import FUZZ, derived
from tests.function.test_json import same

avro = AvroSerializer()


class Flower(TypedDict):
    petals: int
    name: NotRequired[str]


class Color(str, enum.Enum):
    RED = "red"
    BLUE = "blue"


class Order(BaseModel):
    """What is sold."""

    kind: Literal["cut", "pot"]
    color: Color | None = None
    flowers: list[Flower]
    prices: dict[str, float]
    when: datetime.datetime
    part_of: str | None = None
    length: float = Field(alias="stem length (cm)")


@dataclasses.dataclass
class Size:
    width: float
    code: int | str
    height: float = 1.0
    id: uuid.UUID | None = None


def of(hint: Any, **kwargs: Any) -> Any:
    return avro.schema(TypeAdapter(hint).json_schema(**kwargs), name="value")


def test_of_a_typed_dict() -> None:
    optional = {"name": "name", "type": ["null", "string"], "default": None, "jsonAbsent": True}
    assert of(Flower) == {
        "type": "record",
        "name": "Flower",
        "fields": [{"name": "petals", "type": "long"}, optional],
    }


def test_of_a_dataclass() -> None:
    uid = {"type": "string", "logicalType": "uuid"}
    assert of(Size) == {
        "type": "record",
        "name": "Size",
        "fields": [
            {"name": "width", "type": "double"},
            {"name": "code", "type": ["long", "string"]},
            {"name": "height", "type": ["null", "double"], "default": None, "jsonAbsent": True},
            {"name": "id", "type": ["null", uid], "default": None},
        ],
    }


def test_of_a_model() -> None:
    kinds = {"type": "enum", "name": "Order_kind", "symbols": ["cut", "pot"]}
    colors = {"type": "enum", "name": "Color", "symbols": ["red", "blue"]}
    assert of(Order) == {
        "type": "record",
        "name": "Order",
        "doc": "What is sold.",
        "fields": [
            {"name": "kind", "type": kinds},
            {"name": "color", "type": ["null", colors], "default": None},
            {"name": "flowers", "type": {"type": "array", "items": of(Flower)}},
            {"name": "prices", "type": {"type": "map", "values": "double"}},
            {"name": "when", "type": {"type": "long", "logicalType": "timestamp-micros"}},
            {"name": "part_of", "type": ["null", "string"], "default": None},
            {"name": "stem_length__cm_", "jsonName": "stem length (cm)", "type": "double"},
        ],
    }


TIME = {"type": "long", "logicalType": "timestamp-micros"}
HINTS = [
    (int, "long"), (float, "double"), (None, "null"), (str | None, ["null", "string"]),
    (list[int], {"type": "array", "items": "long"}),
    (tuple[int, str], {"type": "array", "items": ["long", "string"]}),
    (datetime.date, {"type": "int", "logicalType": "date"}),
    (datetime.datetime | None, ["null", TIME]),
    (datetime.datetime | int, ["long", "string"]),
    (datetime.datetime | str, "string"),
    (Base64Bytes, "bytes"),
    (decimal.Decimal, ["double", "string"]),
    (Literal["a b", 1], ["long", "string"]),
    (Literal["a"] | int, [{"type": "enum", "name": "value", "symbols": ["a"]}, "long"]),
    (Annotated[dict[str, int], Field(min_length=1)], {"type": "map", "values": "long"}),
]  # fmt: skip


@pytest.mark.parametrize(("hint", "expected"), HINTS, ids=[str(each[0]) for each in HINTS])
def test_of_hints(hint: Any, expected: Any) -> None:
    assert of(hint) == expected


class Open(TypedDict):
    inner: list[dict]


class Loose(BaseModel, extra="allow"):
    x: int


class Empty(TypedDict):
    pass


class Tree(TypedDict):
    inner: list[Tree]


class Unclear(TypedDict):
    x: NotRequired[int | None]


REFUSED = [
    (Any, "the value: no Avro schema: it allows any value"),
    (dict, "the value: no Avro schema: it allows members of any name"),
    (list, "[]: no Avro schema: it allows any value"),
    (Open, "inner[]: no Avro schema: it allows members of any name"),
    (Loose, "the value: no Avro schema: it has named members and others of any name"),
    (list[int] | list[str], "the value: no Avro schema: it is one of several kinds of array"),
    (dict[str, Any], "the value: no Avro schema: it allows members of any name"),
    (tuple[()], "the value: no Avro schema: it is a list of nothing"),
    (list[Empty], "the value: no Avro schema: schema: the array's items are always empty"),
    (
        Tree,
        "inner[]: no Avro schema: Tree contains itself, and recursive values can end the process",
    ),
    (Unclear, "x: no Avro schema: it may be absent and may be null"),
]


@pytest.mark.parametrize(("hint", "message"), REFUSED, ids=[each[1] for each in REFUSED])
def test_what_has_no_avro_schema(hint: Any, message: str) -> None:
    with pytest.raises(SchemaError) as caught:
        of(hint)
    assert caught.value.message.startswith(message)
    assert "@avro_function" in str(caught.value.hint)


def test_a_default_tells_absent_from_null() -> None:
    class Clear(BaseModel):
        x: int | None = 3
        y: int | None = None

    schema = of(Clear)
    assert avro.loads(avro.dumps({}, schema), schema) == {"x": 3, "y": None}
    assert avro.loads(avro.dumps({"x": None}, schema), schema) == {"x": None, "y": None}


@FUZZ
@given(schemas_and_values())
def test_any_schema_it_makes_is_one(case: tuple[Any, Any]) -> None:
    """To fastavro, to itself, and through JSON; its own JSON Schema tells what it lets through."""
    json_schema, value = case
    schema = derived(json_schema)
    fastavro.parse_schema(schema)
    again = avro.schema(Codec(json.loads(json.dumps(schema))).json_schema(), name="value")
    fastavro.parse_schema(again)
    assert same(Codec(again).normalize(value, root="data", error=InputError), value)


FIELDS = [{"name": "x", "type": "long"}]
WRONG = [
    ("{", "Avro schema: expected a dict, a list or JSON text, got '{'"),
    (object(), "Avro schema: expected a dict, a list or JSON text"),
    ({"type": "recrd"}, "Avro schema: there is no type {'type': 'recrd'}"),
    ({"type": "record", "name": "a b", "fields": []}, "Avro schema: 'a b' is not a name of a type"),
    ({"type": "record", "name": "string", "fields": []}, "Avro schema: 'string' is not a name"),
    ({"type": "record", "name": "R", "fields": [{"name": "x"}]}, "Avro schema: "),
    ({"type": "record", "name": "R", "fields": [{"name": "x y", "type": "long"}]},
     "Avro schema: 'x y' is not a name of a field"),
    ({"type": "record", "name": "R", "fields": FIELDS * 2}, "Avro schema: 'x' is not a name"),
    ({"type": "record", "name": "R", "fields": [{"name": "x", "type": "S"}]},
     "Avro schema: there is no type S"),
    ({"type": "record", "name": "R", "fields": [{"name": "x", "type": "long", "default": "1"}]},
     "Avro schema: Default value <1> must match schema type: long"),
    ({"type": "array"}, "Avro schema: missing: 'items'"),
    ({"type": "array", "items": "null"}, "Avro schema: the array's items are always empty"),
    (["long", "long"], "Avro schema: a union has types, each once"),
    ([], "Avro schema: a union has types, each once"),
    ([["long"]], "Avro schema: a union has types, each once and none a union, got ['union']"),
    ({"type": "enum", "name": "E", "symbols": ["a b"]}, "Avro schema: Every symbol must match"),
    ({"type": "fixed", "name": "F", "size": "1"}, "Avro schema: size: expected a number"),
    ({"type": "bytes", "logicalType": "decimal"}, "Avro schema: precision: expected a number"),
    ({"type": "bytes", "logicalType": "decimal", "precision": 2, "scale": 3},
     "Avro schema: decimal scale"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "message"), WRONG, ids=[each[1] for each in WRONG])
def test_what_is_no_schema(schema: Any, message: str) -> None:
    with pytest.raises(SchemaError) as caught:
        Codec(checked_schema(schema))
    assert caught.value.message.startswith(message)


def test_a_schema_may_be_text_or_what_fastavro_parsed() -> None:
    schema = of(Order)
    parsed: Any = fastavro.parse_schema(schema)
    assert "__fastavro_parsed" in parsed
    assert checked_schema(json.dumps(schema)) == schema
    assert Codec(checked_schema(parsed)).json_schema() == Codec(schema).json_schema()
    assert not any(key.startswith("__") for key in checked_schema(parsed))
    assert checked_schema("long") == "long"


def test_names_are_found_in_their_name_space() -> None:
    inner = {"type": "record", "name": "In", "fields": [{"name": "out", "type": "long"}]}
    kinds = {"x": ["null", inner], "y": ["null", "a.b.In"], "z": "In"}
    fields = [{"name": name, "type": kind} for name, kind in kinds.items()]
    schema = {"type": "record", "name": "Out", "namespace": "a.b", "fields": fields}
    value = {"x": {"out": 1}, "y": {"out": 2}, "z": {"out": 3}}
    assert avro.loads(avro.dumps(value, schema), schema) == value


def test_the_json_schema_has_only_types_of_json() -> None:
    items = {"type": "array", "items": ["null", "long", "string"]}
    found = Codec(items).json_schema()
    assert found == {"type": "array", "items": {"anyOf": [
        {"type": "integer"}, {"type": "string"}, {"type": "null"}]}}  # fmt: skip


def test_a_type_may_be_named_as_a_kind() -> None:
    record = {"type": "record", "name": "map", "fields": [{"name": "x", "type": "long"}]}
    fields = [{"name": "a", "type": record}, {"name": "b", "type": "map"},
              {"name": "c", "type": {"type": "map", "values": "map"}}]  # fmt: skip
    schema = {"type": "record", "name": "Out", "fields": fields}
    value = {"a": {"x": 1}, "b": {"x": 2}, "c": {"k": {"x": 3}}}
    assert avro.loads(avro.dumps(value, schema), schema) == value


def test_a_type_that_is_there_twice_is_defined_once() -> None:
    class Pair(TypedDict):
        one: list[Color] | None
        other: list[Color] | None

    schema = of(Pair)
    fastavro.parse_schema(schema)
    value = {"one": ["red"], "other": ["blue"]}
    assert avro.loads(avro.dumps(value, schema), schema) == value
