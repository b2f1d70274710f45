"""ONE table: what each function gives for a record, wherever and however it is called.

A caller takes a function's name and a record, and returns the result or raises. See ``check``.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mfimage.load import JsonFunction
from tests.function.test_json import same

FUNCTIONS = Path(__file__).with_name("functions.py")
Caller = Callable[[str, Any], Any]

SETOSA = {
    "sepal length (cm)": 5.1, "sepal width (cm)": 3.5,
    "petal length (cm)": 1.4, "petal width (cm)": 0.2,
}  # fmt: skip
MIXED = {"a": [1, 2.5, None, True, "ü"], "b": {"": {}}, "c d": [[], [0]], "null": "NaN"}
NAN = float("nan")


@dataclass(frozen=True)
class Call:
    """A function, a record, and what comes of it.

    Attributes
    ----------
    expected
        The JSON value.
    error : str
        Instead: name of the exception's type.
    message : str
        What its text starts with.
    """

    function: str
    record: Any
    expected: Any = None
    error: str = ""
    message: str = ""

    def __str__(self) -> str:
        return f"{self.function}({self.record!r})"


def gives(function: str, record: Any, expected: Any) -> Call:
    return Call(function, record, expected)


def raises(function: str, record: Any, error: str, message: str) -> Call:
    return Call(function, record, error=error, message=message)


NO_FORM = "has no JSON form"
CALLS = [
    *(gives("echo", value, value) for value in
      (None, True, 0, -1, 2**53 + 1, 2**64, 1e-7, 0.1, "", "é\u2028\U0001f600", [], {}, MIXED)),
    gives("echo", [0.0, -0.0, 1.0], [0.0, -0.0, 1.0]),
    gives("predict", SETOSA, {"label": "setosa"}),
    gives("predict", {**SETOSA, "more": None}, {"label": "setosa"}),
    gives("make", "scalar", 3),
    gives("make", "float32", 0.10000000149011612),
    gives("make", "bool", {"b": True}),
    gives("make", "array", {"a": [[0, 1, 2], [3, 4, 5]]}),
    gives("make", "large", [2**63, -(2**70)]),
    gives("make", "day", "2020-01-02"),
    gives("make", "size", {"width": 1.5, "height": 1.0}),
    gives("make", "receipt", [{"sum": 2.0}]),
    gives("make", "tuple", [1, [None, "é\u2028"]]),
    gives("typed", {"kind": "pot", "flowers": [{"petals": 3}, {"petals": 4, "name": "n"}]},
          {"sum": 7.0}),
    gives("typed", {"kind": "cut", "when": "2020-01-02"}, {"sum": 0.0}),
    gives("area", {"width": 3, "height": 2.5}, 7.0),
    gives("area", {"width": 3}, 3.0),
    gives("pick", "first", "setosa"),
    gives("pick", 2, "virginica"),
    gives("settings", None, {"threshold": 0.5, "extra": 7.0}),
    gives("names", None, ["labels", "threshold"]),
    gives("later", 1, 2),
    gives("doubled", 4, 8),
    gives("cut", {"petals": 3, "when": "2020-01-02T03:04:05+01:00"},
          {"petals": 3, "when": "2020-01-02T02:04:05Z", "color": "red"}),
    gives("bloom", {"kind": "pot", "flowers": [{"petals": 3}, {"petals": 4, "name": "n"}]},
          [{"petals": 3}, {"petals": 4, "name": "n"}]),
    gives("doubled_later", 4, 8.0),

    raises("predict", {}, "KeyError", "'sepal length (cm)'"),
    raises("predict", [], "InputError", "data: expected dict, got []"),
    raises("predict", None, "InputError", "data: expected dict, got None"),
    raises("echo", {"x": [NAN]}, "InputError", f"data.x[0]: nan {NO_FORM}"),
    raises("make", "nan", "OutputError", f"result.a[1]: nan {NO_FORM}"),
    raises("make", "array nan", "OutputError", f'result["a b"][0][1]: inf {NO_FORM}'),
    raises("make", "set", "OutputError", f"result.deep[0]: set {NO_FORM}"),
    raises("make", "keys", "OutputError", "result.a: expected string keys, got 1"),
    raises("make", "bytes", "OutputError", f"result: bytes {NO_FORM}"),
    raises("make", "object", "OutputError", "result[0]: "),
    raises("make", "nothing", "KeyError", "'nothing'"),
    raises("typed", {}, "InputError", "data.kind: missing"),
    raises("typed", {"kind": "pot", "flowers": [{"petals": "3"}, {}]}, "InputError",
           "data.flowers[0].petals: expected int, got '3'; data.flowers[1].petals: missing"),
    raises("typed", {"kind": "wild"}, "InputError", "data.kind: expected 'cut' or 'pot', got"),
    raises("area", {"width": "3"}, "InputError", "data.width: expected float, got '3'"),
    raises("area", {"width": True}, "InputError", "data.width: expected float, got True"),
    raises("pick", "last", "InputError", "data: expected int or 'first', got 'last'"),
    raises("pick", 1.0, "InputError", "data: expected int or 'first', got 1.0"),
    raises("pick", 5, "IndexError", "list index out of range"),
    raises("wrong", 0, "OutputError", "result: expected int, got None"),
    raises("wrong", 1, "OutputError", "result: expected int, got '1'"),
    raises("wrong", 2, "OutputError", "result: expected int, got 1.5"),
    raises("wrong", 3, "OutputError", "result: expected int, got 2.0"),
    raises("wrong", 4, "OutputError", "result: expected int, got True"),
    raises("wrong", 5, "OutputError", "result: expected int, got {'a': 1}"),
    raises("fails", "refused", "Refused", "refused with 5"),
    raises("fails", "output", "OutputError", ""),
    raises("fails", "missing", "ParameterNotFound", "no parameter 'labls'"),
    raises("fails", "set", "ReadOnlyError", "parameters are read-only: cannot set 'labels'"),
    raises("later", 13, "Refused", "refused with 13"),
    raises("later", "1", "InputError", "data: expected int, got '1'"),
    raises("doubled", 13, "Refused", "refused with 13"),
    raises("cut", {"petals": 2**63, "when": None}, "InputError", "data.petals: input should be"),
    raises("cut", {"when": "today"}, "InputError", "data.petals: missing"),
    raises("cut", {"petals": 1, "when": "today"}, "InputError", "data.when: expected a date and"),
    raises("cut", {"petals": 1, "when": None, "x": 1}, "InputError", "data.x: not expected here"),
    raises("cut", {"petals": 0, "when": None}, "OutputError", "result.petals: expected int, got"),
    raises("cut", {"petals": 13, "when": None}, "Refused", "refused with 13"),
    raises("bloom", {"kind": "pot", "flowers": [{}]}, "InputError", "data.flowers[0].petals: miss"),
    raises("doubled", "1", "InputError", "data: expected int, got '1'"),
    raises("doubled", 0, "OutputError", "result: expected 1 results for 1 records, got 0"),
    raises("doubled_later", 0, "OutputError", "result: expected a list of 1, got NoneType"),
]  # fmt: skip

# What only a caller in Python can say.
PYTHON_CALLS = [
    gives("echo", np.arange(3), [0, 1, 2]),
    gives("echo", {"x": (np.float64(0.5), np.int8(1))}, {"x": [0.5, 1]}),
    gives("doubled", np.uint8(200), 400),
    raises("echo", {"x": {1}}, "InputError", f"data.x: set {NO_FORM}"),
    raises("echo", {1: 2}, "InputError", "data: expected string keys, got 1"),
    raises("echo", np.array([np.nan]), "InputError", f"data[0]: nan {NO_FORM}"),
]


def check(call: Call, caller: Caller) -> None:
    """Make a call and compare."""
    try:
        found = caller(call.function, call.record)
    except Exception as error:
        if not call.error:
            raise
        assert (type(error).__name__, str(error)[: len(call.message)]) == (call.error, call.message)
    else:
        assert not call.error, f"expected {call.error}, got {found!r}"
        assert same(found, call.expected), found


def by_call(functions: Mapping[str, Any], name: str, record: Any) -> Any:
    return functions[name](record)


def by_map(functions: Mapping[str, Any], name: str, record: Any) -> Any:
    (result,) = functions[name].map([record], batch_size=3, on_error="return")
    if isinstance(result, Exception):
        raise result
    return result


def by_acall(functions: Mapping[str, Any], name: str, record: Any) -> Any:
    return asyncio.run(functions[name].acall(record))


def by_submit(functions: Mapping[str, Any], name: str, record: Any) -> Any:
    return functions[name].submit(record).result()


def in_a_loop(functions: Mapping[str, Any], name: str, record: Any) -> Any:
    async def call() -> Any:
        return functions[name](record)

    return asyncio.run(call())


def check_backend(call: Call, functions: Mapping[str, Any], *more: Any) -> None:
    """Make a call by each method of a backend, and by ``more``, and compare."""
    for method in (by_call, by_map, by_acall, by_submit, in_a_loop, *more):
        check(call, partial(method, functions))


def bind_all(folder: Path, task: Any) -> Mapping[str, JsonFunction]:
    """Bind every function of the table to the task of ``flows/train.py``."""
    shutil.copy(FUNCTIONS, folder / "calls_project.py")
    sys.path.insert(0, str(folder))
    try:
        import calls_project  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(folder))
    names = sorted({call.function for call in CALLS})
    return {
        name: JsonFunction(getattr(calls_project, name), task=task, root=folder / "root")
        for name in names
    }
