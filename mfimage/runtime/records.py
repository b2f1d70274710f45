"""Running an image's function without a server: records in and out, recorded examples again."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import orjson

from mfimage.errors import MfimageError

if TYPE_CHECKING:
    from mfimage.runtime.loader import LiveFunction

# Another processor rounds differently; that is no other answer.
_RELATIVE, _ABSOLUTE = 1e-6, 1e-9


class RecordFailed(MfimageError):
    """A record of a stream could not be answered."""


def call(fn: LiveFunction, lines: Iterable[bytes], out: IO[bytes]) -> None:
    """Answer each line of JSON with one line of JSON, at once and in order.

    Parameters
    ----------
    fn : LiveFunction
        The function.
    lines : iterable of bytes
        One record each; empty lines are passed over.
    out : binary file
        Where results go.

    Raises
    ------
    RecordFailed
        At the first record that fails; all results before it are written.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            result = fn.dump(fn.invoke(fn.parse(line)))
        except MfimageError as error:
            raise RecordFailed(f"line {number}: {error}", hint=error.hint) from error
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise RecordFailed(f"line {number}: {fn.name} failed: {reason}") from error
        out.write(result + b"\n")
        out.flush()


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


def replay(fn: LiveFunction) -> Iterator[Difference]:
    """Run every recorded example and yield where results differ.

    Floating-point numbers may differ by a millionth: processors round differently.
    """
    for index, example in enumerate(fn.spec.examples):
        try:
            payload = json.dumps(example.input).encode()
            result = json.loads(fn.dump(fn.invoke(fn.parse(payload))))
        except Exception as error:  # noqa: BLE001  (a difference like any other)
            message = f"failed: {type(error).__name__}: {error}"
            yield Difference(example=index, path="result", message=message)
            continue
        for path, message in _differences(example.output, result, "result"):
            yield Difference(example=index, path=path, message=message)


def _differences(expected: Any, found: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in {**expected, **found}:
            where = f"{path}[{json.dumps(key, ensure_ascii=False)}]"
            if key not in found:
                yield where, "missing"
            elif key not in expected:
                yield where, "not recorded"
            else:
                yield from _differences(expected[key], found[key], where)
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for index, pair in enumerate(zip(expected, found, strict=True)):
            yield from _differences(*pair, f"{path}[{index}]")
    elif not _same(expected, found):
        yield path, f"expected {_shown(expected)}, got {_shown(found)}"


def _same(expected: Any, found: Any) -> bool:
    numbers = (int, float)
    if type(expected) in numbers and type(found) in numbers and float in (
        type(expected), type(found),
    ):  # fmt: skip
        return math.isclose(expected, found, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)
    return type(expected) is type(found) and bool(expected == found)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def report(fn: LiveFunction, differences: Iterable[Difference]) -> bytes:
    """Return the outcome of a replay as one line of JSON."""
    found = [vars(difference) for difference in differences]
    summary = {"name": fn.name, "digest": fn.digest, "examples": len(fn.spec.examples)}
    return orjson.dumps({**summary, "differences": found}) + b"\n"
