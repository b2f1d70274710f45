"""The loop over records, and the replay of a function's recorded examples."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from mfimage.errors import MfimageError, RecordError, ValueFault, shorten

if TYPE_CHECKING:
    from mfimage.runtime.loading.loader import LiveFunction
    from mfimage.runtime.records.files import Payload


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far floating-point numbers may differ, since processors round differently."""

    relative: float = 1e-6
    absolute: float = 1e-9


DEFAULT_TOLERANCE = Tolerance()


def write_results(
    outcomes: Iterable[tuple[int, Any]], append: Callable[[Any], object]
) -> Iterator[tuple[int, BaseException | None]]:
    """Append each result to a file; yield each record's number and the error it failed with."""
    # The one loop over records: of ``call`` and ``map``, in an image, and of a batch job's parts.
    # An outcome is a result or an exception. ``append`` raises ``ValueFault`` for a result that the
    # file's format cannot represent.
    for number, outcome in outcomes:
        if isinstance(outcome, BaseException):
            yield number, outcome
            continue
        try:
            append(outcome)
        except ValueFault as error:
            yield number, error
        else:
            yield number, None


def stop_at_failure(
    outcomes: Iterable[tuple[int, Any]],
    append: Callable[[Any], object],
    flush: Callable[[], None],
    *,
    name: str,
    unit: str,
) -> None:
    """Write each result at once; raise ``RecordError`` for the first record that fails."""
    for number, error in write_results(outcomes, append):
        if error is not None:
            raise failed(name, f"{unit} {number}", error) from error
        flush()


def invoke_each(
    fn: LiveFunction, payloads: Iterable[tuple[int, Payload]]
) -> Iterator[tuple[int, bytes | BaseException]]:
    """Yield the outcome of each record, called one by one in this process."""
    for number, payload in payloads:
        if not isinstance(payload, bytes):
            yield number, payload
            continue
        try:
            yield number, fn.dump(fn.invoke(fn.parse(payload)))
        except Exception as error:  # noqa: BLE001  (it replaces the result)
            yield number, error


def failed(name: str, place: str, error: BaseException) -> RecordError:
    """Return the error for a record at which the function ``name`` failed."""
    if isinstance(error, MfimageError):
        return RecordError(f"{place}: {error}", hint=error.hint)
    return RecordError(f"{place}: {name} failed: {type(error).__name__}: {error}")


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A difference between a result and the recorded one, at a path as ``result.prediction``."""

    example: int
    path: str
    message: str

    def __str__(self) -> str:
        return f"example {self.example}: {self.path}: {self.message}"


def replay(fn: LiveFunction, tolerance: Tolerance = DEFAULT_TOLERANCE) -> Iterator[Difference]:
    """Run every recorded example and yield the differences."""
    for index, example in enumerate(fn.spec.examples):
        try:
            payload = json.dumps(example.input).encode()
            result = json.loads(fn.dump(fn.invoke(fn.parse(payload))))
        except Exception as error:  # noqa: BLE001  (reported as a difference)
            message = f"failed: {type(error).__name__}: {error}"
            yield Difference(example=index, path="result", message=message)
            continue
        for path, message in differences(example.output, result, tolerance):
            yield Difference(example=index, path=path, message=message)


def differences(
    expected: Any, found: Any, tolerance: Tolerance = DEFAULT_TOLERANCE, *, path: str = "result"
) -> Iterator[tuple[str, str]]:
    """Yield the path and a message of each difference between two JSON values."""
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
        texts = [shorten(json.dumps(each, ensure_ascii=False)) for each in (expected, found)]
        yield path, f"expected {texts[0]}, got {texts[1]}"


def _same(expected: Any, found: Any, tolerance: Tolerance) -> bool:
    if {type(expected), type(found)} in ({float}, {int, float}):
        limits = {"rel_tol": tolerance.relative, "abs_tol": tolerance.absolute}
        return math.isclose(expected, found, **limits)
    return type(expected) is type(found) and bool(expected == found)


def report(fn: LiveFunction, found: Iterable[Difference]) -> bytes:
    """Return the differences of a replay as one line of JSON."""
    differing = [vars(difference) for difference in found]
    summary = {"name": fn.name, "digest": fn.digest, "examples": len(fn.spec.examples)}
    return orjson.dumps({**summary, "differences": differing}) + b"\n"
