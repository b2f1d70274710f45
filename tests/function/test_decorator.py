from __future__ import annotations

import asyncio
import copy
import inspect
import json
import pickle
from typing import Any

import pytest
from typing_extensions import TypedDict

from mfimage.errors import InputError, OutputError, SchemaError
from mfimage.function.decorator import DecoratedFunction, avro_function, json_function
from mfimage.function.parameters import FunctionParameters


@json_function
def predict(data: dict, params: FunctionParameters) -> dict:
    """Run inference."""
    return {"x": data["x"] * params.factor}


@json_function(batch=True)
async def many(data: list[int]) -> list[int]:
    return [each + 1 for each in data]


def plain(data: dict) -> dict:
    return data


renamed = json_function(plain)


def test_it_is_still_a_plain_function() -> None:
    """No validation, nothing bound: as in a unit test."""
    assert predict({"x": 2}, FunctionParameters(factor=3)) == {"x": 6}
    assert predict(params=FunctionParameters(factor=3), data={"x": "a"}) == {"x": "aaa"}
    assert asyncio.run(many([1, 2])) == [2, 3]
    with pytest.raises(KeyError):
        predict({}, FunctionParameters(factor=3))


def test_it_looks_like_the_function_it_wraps() -> None:
    assert (predict.__name__, predict.__doc__) == ("predict", "Run inference.")
    assert list(inspect.signature(predict).parameters) == ["data", "params"]
    assert "return" in inspect.get_annotations(predict.__wrapped__)
    assert repr(predict).endswith("test_decorator.predict>")
    assert (many.signature.batch, many.signature.is_async) == (True, True)


def test_attributes_of_the_function_do_not_hide_its_own() -> None:
    def odd(data: dict) -> dict:
        return data

    odd.signature = odd.kind = "mine"  # type: ignore[attr-defined]
    assert json_function(odd).signature.data == "data"


def test_it_pickles_by_name_as_functions_do() -> None:
    again: Any = pickle.loads(pickle.dumps(predict))
    assert again is predict
    assert copy.deepcopy(predict) is predict
    with pytest.raises(pickle.PicklingError, match="not what its name refers to"):
        pickle.dumps(renamed)
    assert isinstance(renamed, DecoratedFunction)


class Flower(TypedDict):
    petals: int
    name: str


FLOWER = {
    "type": "record",
    "name": "Flower",
    "fields": [
        {"name": "petals", "type": "long"},
        {"name": "cut", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "color", "type": "string", "default": "red"},
    ],
}


@avro_function(schema=FLOWER, output_schema="double")
def held(data: dict) -> Any:
    return data["petals"]


@avro_function(batch=True)
def hinted(data: list[Flower]) -> list[int]:
    return [each["petals"] for each in data]


def test_an_avro_function_is_a_function_like_others() -> None:
    assert (held.kind, hinted.kind, predict.kind) == ("avro", "avro", "json")
    assert held({"petals": "any"}) == "any"
    assert pickle.loads(pickle.dumps(held)) is held
    assert repr(held).startswith("<avro_function ")


def test_json_is_held_to_an_avro_schema_that_is_given() -> None:
    schema = held.signature.schema
    record = {"petals": 3, "cut": "2020-01-02T03:04:05+01:00"}
    whole = {"petals": 3, "cut": "2020-01-02T02:04:05Z", "color": "red"}
    assert schema.accept(record) == schema.parse(json.dumps(record).encode()) == whole
    assert (schema.dump(2), schema.result(2)) == (b"2.0", 2.0)
    for bad, message in (
        ({**record, "petals": "3"}, "data.petals: expected int, got '3'"),
        ({**record, "more": 1}, "data.more: not expected here"),
        ({"petals": 3}, "data.cut: missing"),
        ([], "data: expected dict, got []"),
    ):
        with pytest.raises(InputError) as caught:
            schema.parse(json.dumps(bad).encode())
        assert str(caught.value) == message
    with pytest.raises(InputError, match="data: not JSON: EOF"):
        schema.parse(b"{")
    with pytest.raises(OutputError, match="result: expected float, got '2'"):
        schema.dump("2")


def test_the_json_schema_says_what_the_avro_schema_lets_through() -> None:
    found = held.signature.schema.input_schema()
    assert (found["required"], found["additionalProperties"]) == (["petals", "cut"], False)
    assert found["properties"]["cut"] == {
        "type": "string", "format": "date-time", "title": "Cut"}  # fmt: skip
    assert held.signature.schema.output_schema() == {"type": "number"}
    assert hinted.signature.schema.input_schema()["title"] == "Flower", "the hints say it"


def test_hints_and_schema_are_both_held_to() -> None:
    @avro_function(schema={**FLOWER, "fields": FLOWER["fields"][:1]})
    def both(data: Flower) -> int:
        return 0

    assert both.signature.schema.input_schema()["title"] == "Flower"
    with pytest.raises(InputError, match=r"data\.name: missing"):
        both.signature.schema.accept({"petals": 3})
    with pytest.raises(InputError, match=r"data\.name: not expected here"):
        both.signature.schema.accept({"petals": 3, "name": "n"})


def test_a_schema_is_checked_when_it_is_given() -> None:
    wrong = {**FLOWER, "fields": [{"name": "x", "type": "lnog"}]}
    for kind, label in (("schema", "input"), ("output_schema", "output")):
        with pytest.raises(SchemaError) as caught:
            avro_function(**{kind: wrong})(plain)
        assert str(caught.value) == f"plain: {label}: Avro schema: there is no type lnog"
    given = json.loads(json.dumps(FLOWER))
    function = avro_function(schema=given)(plain)
    given["fields"].clear()
    assert function.signature.schemas["input"] == FLOWER, "what is done to the dict comes too late"
