"""Running an image's function without a server: records in and out, recorded examples again."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from mfimage.errors import MfimageError, RecordError

if TYPE_CHECKING:
    from mfimage.runtime.loading.loader import LiveFunction
    from mfimage.runtime.records.files import RecordSink


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far floating-point numbers may be apart: another processor rounds differently.

    Attributes
    ----------
    relative : float
        Of the larger of the two.
    absolute : float
        However small they are.
    """

    relative: float = 1e-6
    absolute: float = 1e-9

    def allows(self, expected: float, found: float) -> bool:
        """Tell whether one will do for the other."""
        return math.isclose(expected, found, rel_tol=self.relative, abs_tol=self.absolute)


DEFAULT_TOLERANCE = Tolerance()


def call(
    fn: LiveFunction,
    records: Iterable[tuple[int, bytes]],
    sink: RecordSink,
    *,
    unit: str = "line",
) -> None:
    """Answer each record, at once and in order.

    Parameters
    ----------
    fn : LiveFunction
        The function.
    records : iterable of (int, bytes)
        Records as JSON, with their numbers.
    sink : RecordSink
        Where results go.
    unit : str
        What the numbers count.

    Raises
    ------
    RecordError
        At the first record that fails; all results before it are written.
    """
    for number, payload in records:
        try:
            result = fn.dump(fn.invoke(fn.parse(payload)))
        except Exception as error:
            raise failed(fn.name, f"{unit} {number}", error) from error
        sink.append_json(result)
        sink.flush()


def failed(name: str, place: str, error: Exception) -> RecordError:
    """Return the error that says which record of the function ``name`` failed, and why."""
    if isinstance(error, MfimageError):
        return RecordError(f"{place}: {error}", hint=error.hint)
    return RecordError(f"{place}: {name} failed: {type(error).__name__}: {error}")


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Where a result is not what was recorded.

    Attributes
    ----------
    example : int
        Which example, from 0.
    path : str
        Where in the result, as ``result.prediction``.
    message : str
        What was expected and what came.
    """

    example: int
    path: str
    message: str

    def __str__(self) -> str:
        return f"example {self.example}: {self.path}: {self.message}"


def replay(fn: LiveFunction, tolerance: Tolerance = DEFAULT_TOLERANCE) -> Iterator[Difference]:
    """Run every recorded example and yield where results differ."""
    for index, example in enumerate(fn.spec.examples):
        try:
            payload = json.dumps(example.input).encode()
            result = json.loads(fn.dump(fn.invoke(fn.parse(payload))))
        except Exception as error:  # noqa: BLE001  (a difference like any other)
            message = f"failed: {type(error).__name__}: {error}"
            yield Difference(example=index, path="result", message=message)
            continue
        for path, message in differences(example.output, result, tolerance):
            yield Difference(example=index, path=path, message=message)


def differences(
    expected: Any,
    found: Any,
    tolerance: Tolerance = DEFAULT_TOLERANCE,
    *,
    path: str = "result",
) -> Iterator[tuple[str, str]]:
    """Yield the path and a message for each place where two JSON values differ."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in {**expected, **found}:
            where = f"{path}[{json.dumps(key, ensure_ascii=False)}]"
            if key not in found:
                yield where, "missing"
            elif key not in expected:
                yield where, "not recorded"
            else:
                yield from differences(expected[key], found[key], tolerance, path=where)
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for index, pair in enumerate(zip(expected, found, strict=True)):
            yield from differences(*pair, tolerance, path=f"{path}[{index}]")
    elif not _same(expected, found, tolerance):
        yield path, f"expected {_shown(expected)}, got {_shown(found)}"


def _same(expected: Any, found: Any, tolerance: Tolerance) -> bool:
    numbers = (int, float)
    if type(expected) in numbers and type(found) in numbers and float in (
        type(expected), type(found),
    ):  # fmt: skip
        return tolerance.allows(expected, found)
    return type(expected) is type(found) and bool(expected == found)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def report(fn: LiveFunction, found: Iterable[Difference]) -> bytes:
    """Return the outcome of a replay as one line of JSON."""
    differing = [vars(difference) for difference in found]
    summary = {"name": fn.name, "digest": fn.digest, "examples": len(fn.spec.examples)}
    return orjson.dumps({**summary, "differences": differing}) + b"\n"
