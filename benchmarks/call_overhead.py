"""The overhead of calling a loaded function over calling the plain one.

Run it with ``python -m benchmarks.call_overhead``: a trivial function of a small dict and one
parameter, plain and loaded, in turns. The minimum of many repeats counts, since other work on the
machine only adds time. Further rows: one more parameter, a result with hints, reading a parameter.
"""

from __future__ import annotations

import sys
import tempfile
import timeit
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mfimage.function.parameters import FunctionParameters
from mfimage.load import function_from_json
from tests.support.packages import make_package

REPEATS, NUMBER = 60, 2_000
LIMIT = 5.0

_HEAD = """
import dataclasses
from typing import TypedDict
from mfimage.function.decorator import json_function
from mfimage.function.parameters import FunctionParameters

class Flower(TypedDict):
    petals: int
    length: float
    name: str

@dataclasses.dataclass
class Size:
    total: float
    known: bool
"""
_FUNCTIONS = {
    "dict -> dict": "(data: dict, params: FunctionParameters) -> dict:\n    "
    "return {'prediction': data['petals'] + params.offset}",
    "Any -> Any": "(data, params):\n    return {'prediction': data['petals'] + params.offset}",
    "TypedDict -> dict[str, float]": "(data: Flower, params: FunctionParameters) -> "
    "dict[str, float]:\n    return {'prediction': data['length'] + params.offset}",
    "TypedDict -> dataclass": "(data: Flower, params: FunctionParameters) -> Size:\n    "
    "return Size(total=data['length'] + params.offset, known=True)",
}
RECORD = {"petals": 5, "length": 1.4, "name": "setosa"}
WITH_NONE = {**RECORD, "name": None}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Microseconds per call."""

    raw: float
    loaded: float

    @property
    def over(self) -> float:
        return self.loaded - self.raw


def measure(calls: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Return the minimum of microseconds per call of each, measured in turns."""
    timers = {name: timeit.Timer(call) for name, call in calls.items()}
    least = dict.fromkeys(calls, float("inf"))
    for _ in range(REPEATS):
        for name, timer in timers.items():
            least[name] = min(least[name], timer.timeit(NUMBER) / NUMBER * 1e6)
    return least


def cost_of(source: str, record: Any, folder: Path) -> Cost:
    """Bind, load, and call both ways."""
    code = f"{_HEAD}\n@json_function\ndef predict{source}\n"
    function = function_from_json(make_package(folder, {"predict.py": code}, {"offset": 1}))
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(code, space)
    plain, params = space["predict"].__wrapped__, FunctionParameters(offset=1)
    found = measure({"raw": lambda: plain(record, params), "loaded": lambda: function(record)})
    return Cost(**found)


def main() -> int:
    """Print the table; return 1 if the first row misses its goal."""
    with tempfile.TemporaryDirectory() as text:
        costs = {name: cost_of(source, RECORD, Path(text)) for name, source in _FUNCTIONS.items()}
        first = next(iter(_FUNCTIONS))
        costs[f"{first}, one value null"] = cost_of(_FUNCTIONS[first], WITH_NONE, Path(text))
    print(f"{'microseconds a call':36}{'raw':>8}{'loaded':>8}{'over':>8}{'ratio':>8}")
    for name, cost in costs.items():
        ratio = cost.loaded / cost.raw
        print(f"{name:36}{cost.raw:8.2f}{cost.loaded:8.2f}{cost.over:8.2f}{ratio:8.1f}")
    params, plain = FunctionParameters(offset=1), type("Plain", (), {"offset": 1})()
    reads = measure({"params": lambda: params.offset, "object": lambda: plain.offset})
    print(f"{'reading params.offset':36}{reads['object']:8.3f}{reads['params']:8.3f}")
    return int(costs[first].over > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
