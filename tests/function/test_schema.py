from __future__ import annotations

import dataclasses
import datetime
import enum
import json
import uuid
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from pydantic import (
    Base64Bytes,
    BaseModel,
    Field,
    HttpUrl,
    JsonValue,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
    computed_field,
    create_model,
)
from typing_extensions import NotRequired, TypedDict

from mfimage.errors import InputError, OutputError, SignatureError
from mfimage.function.decorator import json_function
from mfimage.function.faults import MAX_FAULTS
from mfimage.function.schema import Schema
from tests.function.test_json import json_values, same

UTC = datetime.timezone.utc


def schema_of(data: Any = Any, result: Any = Any) -> Schema:
    def predict(data: Any) -> Any: ...

    predict.__annotations__ = {"data": data, "return": result}
    return json_function(predict).signature.schema


class Kind(enum.Enum):
    A = "a"
    B = "b"


class Point(TypedDict):
    x: int
    label: NotRequired[str]


@dataclasses.dataclass
class Box:
    size: float
    tags: list[str] = dataclasses.field(default_factory=list)


class Item(BaseModel):
    name: str
    kind: Literal["k", "l"] = "k"
    points: list[Point] = []


class Strict(BaseModel, extra="forbid"):
    b: int


class Pair(NamedTuple):
    x: int
    y: str


class Opaque:
    """Only its hint says how it is written."""

    def __repr__(self) -> str:
        return "Opaque()"


Written = Annotated[
    Opaque,
    PlainValidator(lambda value: value),
    PlainSerializer(lambda value: "opaque", return_type=str),
    WithJsonSchema({"type": "string"}),
]
Seconds = Annotated[datetime.datetime, PlainSerializer(lambda at: at.timestamp())]


@dataclasses.dataclass
class Share:
    part: Annotated[float, Field(le=1)]
    link: HttpUrl | None = None


@dataclasses.dataclass
class Counted:
    """What it makes of its arguments is neither made nor asked for again."""

    count: int
    more: dataclasses.InitVar[int]
    total: int = dataclasses.field(init=False, default=0)

    def __post_init__(self, more: int) -> None:
        self.total = self.count + more


@dataclasses.dataclass
class Coded:
    data: Base64Bytes


@dataclasses.dataclass
class NotedBox:
    what: Written


@dataclasses.dataclass(slots=True)
class SecondsBox:
    at: Seconds


@pytest.mark.parametrize(
    ("hint", "payload", "expected"),
    [
        (dict, {"a": [1, None]}, {"a": [1, None]}),
        (Any, [2**70, "NaN 1e999 Infinity"], [2**70, "NaN 1e999 Infinity"]),
        (float, 3, 3.0),
        (int | None, None, None),
        (list[int | str], [1, "a"], [1, "a"]),
        (Point, {"x": 1}, {"x": 1}),
        (Box, {"size": 2}, Box(2.0)),
        (Item, {"name": "n", "points": [{"x": 1}]}, Item(name="n", points=[{"x": 1}])),
        (Kind, "a", Kind.A),
        (datetime.date, "2020-01-02", datetime.date(2020, 1, 2)),
        (uuid.UUID, str(uuid.UUID(int=1)), uuid.UUID(int=1)),
        (tuple[int, str], [1, "a"], (1, "a")),
        (Item | Strict, {"b": 1}, Strict(b=1)),
        (JsonValue, {"a": [1]}, {"a": [1]}),
        (Decimal, "1.50", Decimal("1.50")),
        (set[int], [1, 1], {1}),
        (Base64Bytes, "aGk=", b"hi"),
        (HttpUrl, "http://x.org", HttpUrl("http://x.org/")),
        (Pair, [1, "a"], Pair(1, "a")),
        (datetime.timedelta, "PT1S", datetime.timedelta(seconds=1)),
    ],
    ids=str,
)
def test_records_come_in_as_the_hints_want_them(hint: Any, payload: Any, expected: Any) -> None:
    schema = schema_of(hint)
    for found in (schema.parse(json.dumps(payload).encode()), schema.accept(payload)):
        assert type(found) is type(expected)
        assert found == expected


@pytest.mark.parametrize(
    ("hint", "payload", "faults"),
    [
        (int, b"'", "data: not JSON: expected value at line 1 column 1"),
        (int, b"", "data: not JSON: EOF while parsing a value at line 1 column 0"),
        (int, b"1 2", "data: not JSON: trailing characters at line 1 column 3"),
        (dict, b'{"a": "\xff"}', "data: not JSON: "),
        (list, b"[" * 300 + b"]" * 300, "data: nested too deeply"),
        (dict, b"[1]", "data: expected dict, got [1]"),
        (int, b'"1"', "data: expected int, got '1'"),
        (int, b"1.0", "data: expected int, got 1.0"),
        (int, b"true", "data: expected int, got True"),
        (bool, b"1", "data: expected bool, got 1"),
        (None, b"0", "data: expected None, got 0"),
        (dict[str, int], b'{"a b": null}', 'data["a b"]: expected int, got None'),
        (Item, b"[]", "data: expected Item, got []"),
        (Item, b'{"points": [{"x": "1"}, {}]}',
         "data.name: missing; data.points[0].x: expected int, got '1'; data.points[1].x: missing"),
        (Item, b'{"name": "n", "kind": 5}', "data.kind: expected 'k' or 'l', got 5"),
        (Strict, b'{"b": 1, "c": 2}', "data.c: not expected here"),
        (int | str, b"{}", "data: expected int or str, got {}"),
        (dict[str, int | str], b'{"int": []}', "data.int: expected int or str, got []"),
        (dict[str, int | dict[str, int]], b'{"x": {"int": "a"}}',
         "data.x: expected int, got {'int': 'a'}; data.x.int: expected int, got 'a'"),
        (Item | Strict, b'{"c": 1}',
         "data.name: missing; data.b: missing; data.c: not expected here"),
        (Kind, b'"z"', "data: expected 'a' or 'b', got 'z'"),
        (datetime.date, b'"soon"', "data: input should be a valid date"),
        (Annotated[int, Field(ge=0)], b"-1",
         "data: input should be greater than or equal to 0, got -1"),
        (dict[Literal["a"], int], b'{"c": 1}', "data.c: expected 'a', got 'c'"),
        (dict, b'{"a": [NaN]}', "data.a[0]: nan has no JSON form"),
        (dict[str, float], b'{"a": -Infinity}', "data.a: -inf has no JSON form"),
        (Any, b'{"a": 1e999}', "data.a: inf has no JSON form"),
        (Any, b"[-1E+400]", "data[0]: -inf has no JSON form"),
        (Box, b'{"size": 1e309}', "data.size: inf has no JSON form"),
        (float, b"1" + b"0" * 400, "data: inf has no JSON form"),
        (Any, b"1" + b"0" * 400 + b".5", "data: inf has no JSON form"),
        (str, json.dumps(["x" * 100]).encode(), "data: expected str, got ['" + "x" * 75 + "..."),
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_fit_is_named_by_path(hint: Any, payload: bytes, faults: str) -> None:
    with pytest.raises(InputError) as caught:
        schema_of(hint).parse(payload)
    assert str(caught.value).startswith(faults)


def test_numbers_that_only_look_infinite_pass() -> None:
    payload = b'{"NaN": "Infinity", "a": 1e-400, "b": 1e308, "c": "1e999", "d": 12e100}'
    assert schema_of(dict).parse(payload) == json.loads(payload)
    assert schema_of(Any).parse(b"9" * 4000) == int("9" * 4000)


def test_a_million_faults_are_not_all_told() -> None:
    with pytest.raises(InputError) as caught:
        schema_of(list[int]).parse(b"[" + b"null," * 999 + b"null]")
    assert len(caught.value.faults) == MAX_FAULTS


@given(json_values)
def test_any_json_value_passes_a_function_that_takes_and_gives_any(value: Any) -> None:
    schema = schema_of()
    assert same(schema.accept(value), value)
    assert same(schema.result(value), value)
    assert same(json.loads(schema.dump(value)), value)
    assert same(schema.parse(schema.dump(value)), value)


class Aliased(BaseModel):
    """Its JSON form is not what it takes."""

    inside: int = Field(0, serialization_alias="outside")
    double: Annotated[int, PlainSerializer(lambda value: f"<{value}>", return_type=str)] = 2

    @computed_field
    @property
    def more(self) -> int:
        return self.inside + 1


ALIASED = {"outside": 5, "double": "<2>", "more": 6}
Wide = create_model("Wide", __base__=Strict, extra=(int, 1))


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        (dict, {"p": np.float32(0.5), "a": np.arange(2)}, {"p": 0.5, "a": [0, 1]}),
        (dict, {"m": Aliased(inside=5)}, {"m": ALIASED}),
        (float, 3, 3.0),
        (float, np.int64(3), 3.0),
        (dict[str, float], {"a": 3}, {"a": 3.0}),
        (list[int], np.array([1, 2], "u1"), [1, 2]),
        (list[int], (1, 2), [1, 2]),
        (tuple[int, str], (1, "a"), [1, "a"]),
        (Point, {"x": np.int8(1)}, {"x": 1}),
        (Box, Box(1), {"size": 1.0, "tags": []}),
        (Box, {"size": 1}, {"size": 1.0, "tags": []}),
        (list[Box], [Box(np.float64(1.5), ["t"])], [{"size": 1.5, "tags": ["t"]}]),
        (Aliased, Aliased(inside=5), ALIASED),
        (list[Aliased], [Aliased(inside=5)], [ALIASED]),
        (Aliased, {"inside": np.int8(5)}, ALIASED),
        (Strict, Wide(b=1), {"b": 1}),
        (Kind, Kind.A, "a"),
        (datetime.datetime, datetime.datetime(2020, 1, 2), "2020-01-02T00:00:00"),
        (Point | None, None, None),
        (int, np.uint64(2**64 - 1), 2**64 - 1),
        (bool, np.bool_(True), True),
        # What only pydantic has a JSON form for, in whatever holds it.
        (Share, Share(0.5, HttpUrl("http://x.org/a")), {"part": 0.5, "link": "http://x.org/a"}),
        (list[Share], [Share(1)], [{"part": 1.0, "link": None}]),
        (Counted, Counted(2, 3), {"count": 2, "total": 5}),
        (Coded, Coded(b"hi"), {"data": "aGk="}),
        (Coded, {"data": "aGk="}, {"data": "aGk="}),
        (Base64Bytes, b"hi", "aGk="),
        (dict[str, Decimal], {"a": Decimal("1.50")}, {"a": "1.50"}),
        (Decimal, np.int64(1), "1"),
        (set[int], {1}, [1]),
        (set[int], [1, 1], [1]),
        (list[set[int]], [frozenset([1])], [[1]]),
        (datetime.timedelta, datetime.timedelta(seconds=1), "PT1S"),
        (Pair, Pair(1, "a"), [1, "a"]),
        (tuple[Decimal, HttpUrl], (Decimal(1), HttpUrl("http://x.org")), ["1", "http://x.org/"]),
        pytest.param(list[Written], [Opaque()], ["opaque"], id="written"),
        (NotedBox, NotedBox(Opaque()), {"what": "opaque"}),
        (SecondsBox, SecondsBox(datetime.datetime(1970, 1, 2, tzinfo=UTC)), {"at": 86400.0}),
    ],
    ids=str,
)
def test_results_go_out_as_their_schema_says(hint: Any, value: Any, expected: Any) -> None:
    schema = schema_of(result=hint)
    assert same(schema.result(value), expected)
    assert same(json.loads(schema.dump(value)), expected), "every way gives the same"
    required = schema.output_schema().get("required", [])
    assert set(required) <= set(expected if isinstance(expected, dict) else required)


@pytest.mark.parametrize(
    ("hint", "value", "faults"),
    [
        (dict, [1], "result: expected dict, got [1]"),
        (int, 1.0, "result: expected int, got 1.0"),
        (float, "3", "result: expected float, got '3'"),
        (Point, {"x": np.float32(3)}, "result.x: expected int, got 3.0"),
        (Box, {"tags": [1]}, "result.size: missing; result.tags[0]: expected str, got 1"),
        (Box, Box(float("nan")), "result.size: nan has no JSON form"),
        (Item, Item.model_construct(name=5), "result.name: expected str, got 5"),
        # A dataclass checks nothing when it is made.
        (Box, Box("high"), "result.size: expected float, got 'high'"),
        (list[Box], [Box(1.0, [2])], "result[0].tags[0]: expected str, got 2"),
        (Share, Share(3.0), "result.part: input should be less than or equal to 1, got 3.0"),
        (Share, {"part": 0.5, "link": "x"}, "result.link: input should be a valid URL"),
        (Share, Share(float("inf"), HttpUrl("http://x.org")), "result.part: inf has no JSON form"),
        (set[int], {"a"}, "result[0]: expected int, got 'a'"),
        (tuple[int, str], (1,), "result[1]: missing"),
        (Pair, [1], "result[1]: missing"),
        (
            dict[str, Any],
            {"a": Opaque()},
            "result.a: tests.function.test_schema.Opaque has no JSON",
        ),
        (Point, {"x": Opaque()}, "result.x: tests.function.test_schema.Opaque has no JSON form"),
        (Point, {"x": Decimal(1)}, "result.x: expected int, got '1'"),
        (dict, {"a": {1, 2}}, "result.a: set has no JSON form"),
        (Any, print, "result: builtin_function_or_method has no JSON form"),
    ],
    ids=str,
)
def test_results_that_do_not_fit_are_named_by_path(hint: Any, value: Any, faults: str) -> None:
    schema = schema_of(result=hint)
    for way in (schema.result, schema.dump):
        with pytest.raises(OutputError) as caught:
            way(value)
        assert str(caught.value).startswith(faults)


def test_json_schemas_say_what_comes_in_and_what_goes_out() -> None:
    schema = schema_of(Box, Aliased)
    assert schema.input_schema()["required"] == ["size"]
    assert set(schema.output_schema()["properties"]) == {"outside", "double", "more"}
    assert schema_of(dict).input_schema() == {"additionalProperties": True, "type": "object"}


class Odd:
    @classmethod
    def __get_pydantic_core_schema__(cls, *_: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.is_instance_schema(cls)


def test_a_hint_that_has_no_json_schema_after_all_is_a_signature_error() -> None:
    with pytest.raises(SignatureError, match="data: no JSON Schema: "):
        schema_of(Odd).input_schema()
    with pytest.raises(SignatureError, match="return: no JSON Schema: "):
        schema_of(result=Odd).output_schema()


@dataclasses.dataclass
class Unfinished:
    inside: NotThere  # type: ignore[name-defined]  # noqa: F821


def test_a_name_that_is_not_there_is_told_before_any_call() -> None:
    with pytest.raises(SignatureError, match=r"predict: data: .*'NotThere' is not defined"):
        schema_of(Unfinished)
