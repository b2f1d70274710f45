from __future__ import annotations

import dataclasses
import io
import json
from typing import Any

import pytest

from mfimage.errors import RecordError
from mfimage.function.decorator import json_function
from mfimage.function.parameters import FunctionParameters
from mfimage.runtime.loading.loader import LiveFunction
from mfimage.runtime.records import run
from mfimage.runtime.records.files import RecordSource, open_sink
from mfimage.runtime.records.formats import choose_format
from tests.runtime.packages import live, make_spec


def half(data: int) -> float:
    if data == 13:
        raise RuntimeError("unlucky")
    return data / 2


def call(*lines: bytes) -> tuple[bytes, str | None]:
    out = io.BytesIO()
    form = choose_format("-")
    source = RecordSource(io.BytesIO(b"\n".join(lines)), "stdin", form)
    try:
        with open_sink(out, form, None) as sink:
            fn = live(half)
            outcomes = run.invoke_each(fn, source.payloads())
            run.stop_at_failure(
                outcomes, sink.append_json, sink.flush, name=fn.name, unit=source.unit
            )
    except RecordError as error:
        return out.getvalue(), error.message
    return out.getvalue(), None


def test_each_line_gives_a_result() -> None:
    assert call(b"1", b"  ", b"3\r") == (b"0.5\n1.5\n", None)
    assert call(b"\xef\xbb\xbf1", b"", b"13")[1] == "line 3: half failed: RuntimeError: unlucky"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b'"x"', "line 2: data: expected int, got 'x'"),
        (b"{", "line 2: data: not JSON"),
        (b"13", "line 2: half failed: RuntimeError: unlucky"),
    ],
)
def test_results_before_the_first_bad_line_are_written(bad: bytes, message: str) -> None:
    out, error = call(b"1", bad, b"3")
    assert out == b"0.5\n"
    assert error
    assert error.startswith(message)


def give(data: Any) -> Any:
    return data["gives"] if isinstance(data, dict) else 1 // data


def differences(*examples: tuple[Any, Any]) -> list[str]:
    decorated = json_function(give)
    spec = dataclasses.replace(make_spec(decorated, examples=examples))
    fn = LiveFunction(spec, decorated, FunctionParameters())
    found = list(run.replay(fn))
    report = json.loads(run.report(fn, found))
    assert (report["name"], report["examples"]) == ("give", len(examples))
    assert len(report["differences"]) == len(found)
    return list(map(str, found))


def test_equal_results_do_not_differ() -> None:
    for value in (None, True, 1, 2**70, "x", [1, {"a": []}], {"b": 0.1}):
        assert differences(({"gives": value}, value)) == []


def test_rounding_is_tolerated() -> None:
    assert differences(({"gives": [0.3, 1.0]}, [0.1 + 0.2, 1])) == []
    assert differences(({"gives": 0.30001}, 0.3)) != []


def test_differences_are_located() -> None:
    assert differences(
        ({"gives": {"a": [1, 2], "b": 1}}, {"a": [1, 3], "c": 1}),
        (1, 1),
        ({"gives": True}, 1),
        (0, 1),
    ) == [
        'example 0: result["a"][1]: expected 3, got 2',
        'example 0: result["c"]: missing',
        'example 0: result["b"]: not recorded',
        "example 2: result: expected 1, got true",
        "example 3: result: failed: ZeroDivisionError: integer division or modulo by zero",
    ]
