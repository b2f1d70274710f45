"""What is said to fit is accepted, and what is said never to fit is not, by the real validators."""

from __future__ import annotations

import datetime
import enum
from typing import Annotated, Any, Literal, Union

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field
from typing_extensions import NotRequired, TypedDict

from mfimage.errors import InputError
from mfimage.function.schema import Schema
from mfimage.package.fit import FITS, MAY_FIT, NEVER_FITS, fit


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Chain(BaseModel):
    value: int
    rest: Chain | None = None


class Names(BaseModel):
    value: str
    rest: Names | None = None


class Row(TypedDict):
    a: int
    b: NotRequired[str]


class Wide(TypedDict):
    a: float
    c: NotRequired[list[int]]


class Table(TypedDict):
    rows: list[Row]


class Tables(TypedDict):
    rows: list[Wide]


def compared(one: Any, other: Any) -> tuple[str, list[str]]:
    found = fit(schema(one, None).output_schema(), schema(None, other).input_schema(), path="r")
    return found.verdict, [f"{m.path}: {m.given} / {m.wanted}" for m in found.misfits]


def schema(result: Any, record: Any) -> Schema:
    return Schema.of(record, result, function="f", data="data", avro={})


@pytest.mark.parametrize(
    ("one", "other", "verdict", "places"),
    [
        (Row, Wide, FITS, []),
        (Wide, Row, MAY_FIT, ["r.a: number / integer"]),
        (dict, Row, MAY_FIT, ["r.a: any value / integer", "r.b: any value / string"]),
        (
            dict[str, int], Row, MAY_FIT,
            ["r.a: a value or nothing / integer", "r.b: integer / string"],
        ),
        (dict[str, str], Row, NEVER_FITS, ["r.a: string / integer"]),
        (Table, Tables, FITS, []),
        (Tables, Table, MAY_FIT, ["r.rows[].a: number / integer"]),
        (Chain, Chain, FITS, []),
        (Chain, Names, NEVER_FITS, ["r.value: integer / string"]),
        (list[int], list[str], NEVER_FITS, ["r[]: integer / string"]),
        (list[int], tuple[int, int], MAY_FIT, None),
        (tuple[int, int], list[int], FITS, []),
        (int | None, int, MAY_FIT, ["r: integer or null / integer"]),
        (int, int | None, FITS, []),
        (Literal["a", "b"], Literal["a"], MAY_FIT, ['r: "a" or "b" / "a"']),
        (Literal["a"], Literal["b"], NEVER_FITS, ['r: "a" / "b"']),
        (Color, str, FITS, []),
        (str, datetime.datetime, MAY_FIT, ["r: string / string (format date-time)"]),
        (bool, int, NEVER_FITS, ["r: boolean / integer"]),
        (
            Annotated[int, Field(ge=5)], Annotated[int, Field(le=4)], NEVER_FITS,
            ["r: integer (at least 5) / integer (at most 4)"],
        ),
    ],
)  # fmt: skip
def test_verdicts(one: Any, other: Any, verdict: str, places: list[str] | None) -> None:
    found, misfits = compared(one, other)
    assert found == verdict
    assert places is None or misfits == places


def test_a_member_that_is_never_there_and_one_that_may_be() -> None:
    class Needs(TypedDict):
        a: int
        z: int

    assert compared(Row, Needs) == (NEVER_FITS, ["r.z: nothing / integer"])

    class Maybe(TypedDict):
        a: NotRequired[int]

    class Must(TypedDict):
        a: int

    assert compared(Maybe, Must) == (MAY_FIT, ["r.a: a value or nothing / integer"])


# Hints, each with values that a function may return by it; lists and mappings are not empty.
LEAVES: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(-3, 9),
    float: st.floats(-3, 9),
    str: st.sampled_from(["", "a", "red", "2024-01-01T00:00:00"]),
    bool: st.booleans(),
    type(None): st.none(),
    Color: st.sampled_from(Color),
    datetime.datetime: st.just(datetime.datetime(2024, 1, 1)),
    Literal["red", 7]: st.sampled_from(["red", 7]),
    Literal["blue"]: st.just("blue"),
    Annotated[int, Field(ge=0, le=4)]: st.integers(0, 4),
    Annotated[int, Field(gt=4)]: st.integers(5, 9),
    Annotated[str, Field(max_length=1)]: st.sampled_from(["", "b"]),
    Row: st.fixed_dictionaries({"a": st.integers(), "b": st.just("x")}),
    Wide: st.fixed_dictionaries({"a": st.floats(-1, 1), "c": st.just([1])}),
    Chain: st.just(Chain(value=1, rest=Chain(value=2))),
    Names: st.just(Names(value="x")),
    Any: st.sampled_from([1, "a", None, [1], {"a": 1}]),
    dict: st.sampled_from([{"a": 1}, {"a": "x"}, {"q": [1]}]),
}
Pair = tuple[Any, st.SearchStrategy[Any]]


def _list(pair: Pair) -> Pair:
    return list[pair[0]], st.lists(pair[1], min_size=1, max_size=2)  # type: ignore[name-defined]


def _mapping(pair: Pair) -> Pair:
    names = st.sampled_from(["a", "b", "q"])
    return dict[str, pair[0]], st.dictionaries(names, pair[1], min_size=1)  # type: ignore[name-defined]


def _union(pairs: tuple[Pair, Pair]) -> Pair:
    (one, values), (other, more) = pairs
    return Union[one, other], values | more  # noqa: UP007  (hints that are values)


def _tuple(pairs: tuple[Pair, Pair]) -> Pair:
    (one, values), (other, more) = pairs
    return tuple[one, other], st.tuples(values, more)


def _record(pairs: tuple[Pair, Pair]) -> Pair:
    (one, values), (other, more) = pairs

    class Made(TypedDict):
        a: one  # type: ignore[valid-type]
        b: NotRequired[other]  # type: ignore[valid-type]

    Made.__annotations__ = {"a": one, "b": NotRequired[other]}  # names of this function
    return Made, st.fixed_dictionaries({"a": values, "b": more})


leaves = st.sampled_from(list(LEAVES.items()))
typed = st.sampled_from([(hint, values) for hint, values in LEAVES.items() if hint is not Any])
hints = st.recursive(
    leaves,
    lambda inner: (
        inner.map(_list) | inner.map(_mapping) | st.tuples(typed, typed).map(_union)
        | st.tuples(inner, inner).map(_tuple) | st.tuples(inner, inner).map(_record)
    ),
    max_leaves=3,
)  # fmt: skip


@given(st.data(), hints, hints)
@settings(max_examples=600)
def test_verdicts_hold_for_real_values(data: st.DataObject, one: Pair, other: Pair) -> None:
    before, after = schema(one[0], None), schema(None, other[0])
    verdict = fit(before.output_schema(), after.input_schema(), path="r").verdict
    value = before.result(data.draw(one[1]))
    try:
        after.accept(value)
    except InputError:
        assert verdict != FITS
    else:
        assert verdict != NEVER_FITS
