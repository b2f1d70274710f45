"""Bodies: how large; one list -> its items, and what became of each -> one list."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mfimage.errors import Fault, InputError, OutputError
from mfimage.runtime.calls.queue import Gone, Outcome
from mfimage.runtime.serving.problems import Problem, problem_of

if TYPE_CHECKING:
    from mfimage.runtime.serving.codecs import Wire

Receive = Callable[[], Awaitable[Any]]

_READ = json.JSONDecoder().raw_decode
_SPACE = re.compile(r"[ \t\n\r]*")


async def read_body(headers: Mapping[bytes, bytes], receive: Receive, most: int) -> bytes:
    """Return the whole body.

    Raises
    ------
    Problem
        413, as soon as it is known.
    Gone
        When the client leaves.
    """
    length = headers.get(b"content-length")
    if length is not None and int(length) > most:
        raise too_large(most)
    message = await receive()
    if message["type"] == "http.disconnect":
        raise Gone
    body: bytes = message.get("body", b"")
    if not message.get("more_body", False):
        if len(body) > most:
            raise too_large(most)
        return body
    return await _read_rest(body, receive, most)


async def _read_rest(first: bytes, receive: Receive, most: int) -> bytes:
    parts, size, more = [first], len(first), True
    while more:
        if size > most:
            raise too_large(most)
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message.get("more_body", False)
    if size > most:
        raise too_large(most)
    return b"".join(parts)


def too_large(most: int) -> Problem:
    """Return the 413."""
    return Problem(413, f"expected a body of at most {most} bytes (MFIMAGE_MAX_BODY)")


def read_list(wire: Wire, body: bytes) -> list[bytes]:
    """Return the JSON bytes of each item of a list that came in another form."""
    assert wire.many is not None
    return split_list(wire.many.loads(body))


def split_list(body: bytes) -> list[bytes]:
    """Return the bytes of each item of a JSON list.

    Only where items begin and end is decided here; the function's own parser reads each, so that
    a record means the same alone and in a list.

    Raises
    ------
    InputError
        When the body is no JSON list.
    """
    try:
        text = body.decode()
        at = _after_space(text, 0)
        if text[at : at + 1] != "[":
            raise _no_list(f"expected a list of records, got {_shown(text)}")
        return _items(text, at + 1)
    except RecursionError:
        raise _no_list("nested too deeply") from None
    except ValueError as error:
        raise _no_list(f"not JSON: {error}") from None


def _items(text: str, at: int) -> list[bytes]:
    items: list[bytes] = []
    at = _after_space(text, at)
    if text[at : at + 1] == "]":
        end = at
    else:
        while True:
            _, end = _READ(text, at)
            items.append(text[at:end].encode())
            end = _after_space(text, end)
            if text[end : end + 1] != ",":
                break
            at = _after_space(text, end + 1)
    if text[end : end + 1] != "]" or _after_space(text, end + 1) != len(text):
        raise _no_list(f"not JSON: unexpected text at character {end}")
    return items


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _no_list(message: str) -> InputError:
    return InputError([Fault(path="records", message=message)])


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


def join_list(outcomes: Sequence[Outcome]) -> bytes:
    """Return what became of each item, as a JSON list."""
    return b"[%b]" % b",".join(map(_item, outcomes))


def _item(outcome: Outcome) -> bytes:
    if isinstance(outcome, bytes):
        return b'{"result":%b}' % outcome
    return b'{"error":%b}' % problem_of(outcome).body()


def write_list(wire: Wire, outcomes: Sequence[Outcome]) -> tuple[Sequence[Outcome], bytes]:
    """Return what became of each item, and that in another form.

    A result that has no such form fails alone.
    """
    assert wire.many is not None
    try:
        return outcomes, wire.many.dumps(join_list(outcomes))
    except OutputError:
        written = [_written(wire, outcome) for outcome in outcomes]
        return written, wire.many.dumps(join_list(written))


def _written(wire: Wire, outcome: Outcome) -> Outcome:
    if isinstance(outcome, bytes):
        try:
            wire.dumps(outcome)
        except OutputError as error:
            return error
    return outcome
