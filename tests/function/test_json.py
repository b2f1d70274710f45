from __future__ import annotations

import dataclasses
import datetime
import enum
import json
import math
import uuid
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from pydantic import BaseModel

from mfimage.errors import InputError, OutputError, join_path
from mfimage.function.json import MAX_DEPTH, dumps, loads

text = st.text(st.characters(exclude_categories=["Cs"]))
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | numbers | text,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(text, inner, max_size=5),
    max_leaves=20,
)


def same(left: Any, right: Any) -> bool:
    """Tell equal values of equal types; 1, 1.0 and True differ, as do 0.0 and -0.0."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float):
        return left == right and math.copysign(1, left) == math.copysign(1, right)
    return bool(left == right)


@given(json_values)
@example({"null": None, "NaN": "NaN 1e999"})
@example([2**63, -(2**63) - 1, 2**64, 10**4000, -0.0, 5e-324, 1.7976931348623157e308])
def test_any_json_value_comes_back_equal(value: Any) -> None:
    data = dumps(value, root="result")
    assert same(loads(data), value)
    assert same(json.loads(data), value), "other parsers read the same"


SCALARS = [
    np.bool_, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64,
    np.float16, np.float32, np.float64, np.longdouble,
]  # fmt: skip


@given(st.data(), st.sampled_from(SCALARS))
@settings(max_examples=300)
def test_numpy_scalars_become_the_equal_number(data: st.DataObject, kind: type) -> None:
    dtype = np.dtype(kind)
    if kind is np.longdouble:
        value = np.longdouble(data.draw(st.floats(allow_nan=False, allow_infinity=False)))
    else:
        value = data.draw(npst.from_dtype(dtype, allow_nan=False, allow_infinity=False))
    for plain in (loads(dumps(value, root="result")), loads(dumps([None, value], root="x"))[1]):
        assert type(plain) in (bool, int, float)
        assert kind(plain) == value, "nothing is lost on the way back"
        assert type(plain) is type(kind(1).item()) or kind is np.longdouble


@given(
    npst.arrays(
        dtype=st.sampled_from([np.dtype(kind) for kind in SCALARS[:-1]]),
        shape=npst.array_shapes(min_dims=0, max_dims=3, max_side=4),
        elements={"allow_nan": False, "allow_infinity": False},
    )
)
def test_numpy_arrays_become_equal_lists(array: np.ndarray[Any, Any]) -> None:
    plain = loads(dumps({"a": array, "none": None}, root="result"))["a"]
    back = np.array(plain, dtype=array.dtype).reshape(array.shape)
    assert np.array_equal(back, array)
    views = array.T, array[..., ::-1] if array.ndim else array  # not contiguous
    for view in views:
        assert same(loads(dumps(view, root="result")), view.tolist())


class Color(enum.Enum):
    RED = "red"


class Level(str, enum.Enum):
    LOW = "low"


class Point(NamedTuple):
    x: int
    y: float


@dataclasses.dataclass
class Box:
    _hidden: int
    items: list[Any]


class Model(BaseModel):
    when: datetime.date
    box: Box


class Loud(str):
    def __str__(self) -> str:
        return "LOUD"


AMSTERDAM = datetime.timezone(datetime.timedelta(minutes=19, seconds=32))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Color.RED, "red"),
        ({Level.LOW: Level.LOW}, {"low": "low"}),
        ((1, (2.0, None)), [1, [2.0, None]]),
        (Point(1, 2.5), [1, 2.5]),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (Loud("soft"), "soft"),
        ({Loud("soft"): [Loud("soft"), 2**70]}, {"soft": ["soft", 2**70]}),
        (Box(1, [np.int8(2)]), {"_hidden": 1, "items": [2]}),
        (Box(1, [None]), {"_hidden": 1, "items": [None]}),
        (
            Model(when=datetime.date(2020, 1, 2), box=Box(1, [])),
            {"when": "2020-01-02", "box": {"_hidden": 1, "items": []}},
        ),
        (uuid.UUID(int=7), "00000000-0000-0000-0000-000000000007"),
        (datetime.datetime(2020, 1, 2, 3, 4, 5, 6), "2020-01-02T03:04:05.000006"),
        (datetime.datetime(2020, 1, 2, tzinfo=AMSTERDAM), "2020-01-02T00:00:00+00:19:32"),
        (datetime.time(1, 2), "01:02:00"),
        (np.str_("a"), "a"),
        (np.datetime64("2020-01-02"), "2020-01-02"),
        (np.datetime64("2020-01-02T03:04:05.123456789"), "2020-01-02T03:04:05.123456789"),
        (np.array(["2020-01-02", "2021-01-02"], "M8[D]"), ["2020-01-02", "2021-01-02"]),
        (np.array([1, "a", None, [2]], object), [1, "a", None, [2]]),
        (np.ma.masked_array([1, 2], [False, True]), [1, None]),
        (np.array(5), 5),
        (np.zeros((0, 2)), []),
        ({"a": np.float32(0.1)}, {"a": 0.10000000149011612}),
    ],
    ids=repr,
)
def test_values_with_an_equal_json_form(value: Any, expected: Any) -> None:
    assert same(loads(dumps(value, root="result")), expected)
    # The slower way, which None and large integers take, says the same.
    assert same(loads(dumps([value, None, 2**70], root="result"))[0], expected)


NAN, INF = float("nan"), float("inf")
CIRCLE: list[Any] = []
CIRCLE.append(CIRCLE)


class Broken(BaseModel):
    number: int


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (NAN, "result: nan has no JSON form; use None or leave it out"),
        ({"a": [1, {"b c": -INF}]}, 'result.a[1]["b c"]: -inf has no JSON form'),
        ({"a": None, "b": NAN}, "result.b: nan has no JSON form"),
        ({"null": "null", "b": INF}, "result.b: inf has no JSON form"),
        (np.array([[1.0, np.nan]]), "result[0][1]: nan has no JSON form"),
        ([np.float32("inf")], "result[0]: inf has no JSON form"),
        (np.longdouble("nan"), "result: nan has no JSON form"),
        (Box(1, [NAN]), "result.items[0]: nan has no JSON form"),
        (Broken.model_construct(number=INF), "Broken has no JSON form: "),
        (np.datetime64("NaT", "D"), "result: numpy.datetime64 has no JSON form"),
        (np.array(["2020", "NaT"], "M8[Y]"), "result[1]: numpy.datetime64 has no JSON form"),
        (np.timedelta64(5, "ns"), "result: numpy.timedelta64 has no JSON form"),
        (np.array([(1, 2)], [("a", int), ("b", int)]), "result[0]: numpy.void has no JSON form"),
        (np.complex128(1), "result: complex has no JSON form"),
        (np.bytes_(b"a"), "result: bytes has no JSON form"),
        ([{1}], "result[0]: set has no JSON form"),
        ({"a": b""}, "result.a: bytes has no JSON form"),
        ({"a": object}, "result.a: type has no JSON form"),
        ({1: 2}, "result: expected string keys, got 1; use str(key)"),
        ({"a": {None: 2}}, "result.a: expected string keys, got None"),
        ({"a": "\ud800"}, "result.a: text '\\ud800' is not valid Unicode"),
        ({"\ud800": 1}, "result: text '\\ud800' is not valid Unicode"),
        ([10**5000], "result[0]: an integer of more than 4000 digits"),
        (CIRCLE, "nested too deeply, or refers to itself"),
        (np.longdouble(1) / 3, "result: numpy.longdouble has no JSON form"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_what_has_no_json_form_is_refused_by_path(value: Any, fault: str) -> None:
    if isinstance(value, np.longdouble) and float(value) == value:
        pytest.skip("a long double is a double on this machine")
    with pytest.raises(OutputError) as caught:
        dumps(value, root="result")
    assert fault in str(caught.value)
    with pytest.raises(InputError):
        dumps(value, root="data", error=InputError)


@given(json_values, st.sampled_from([NAN, INF, -INF, np.float32("nan")]), st.randoms())
def test_nan_anywhere_is_an_error_that_names_its_path(value: Any, bad: Any, random: Any) -> None:
    path = "result"
    for _ in range(random.randint(0, 4)):
        key = random.choice(["a", "b c", "", "null"])
        if random.random() < 0.5:
            others = [value] * random.randint(0, 2)
            bad, path_end = [*others, bad], len(others)
        else:
            bad, path_end = {"other": value, key: bad}, key
        path = join_path("result", path_end) + path.removeprefix("result")
    with pytest.raises(OutputError) as caught:
        dumps(bad, root="result")
    assert caught.value.faults[0].path == path


def test_depth_is_limited_alike_everywhere() -> None:
    value: Any = 1
    for _ in range(MAX_DEPTH - 1):
        value = [value]
    assert loads(dumps(value, root="x")) == value
    assert loads(dumps([None, value], root="x")) == [None, value]
