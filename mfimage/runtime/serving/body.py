"""Request and response bodies: their size, and lists of records."""

from __future__ import annotations

import json
import re
from codecs import BOM_UTF8
from collections.abc import Sequence

from mfimage.errors import Fault, InputError, OutputError
from mfimage.runtime.calls.queue import Disconnected, Outcome
from mfimage.runtime.serving.content import MediaCodec
from mfimage.runtime.serving.problems import Problem, problem_of
from mfimage.runtime.serving.route import REFUSED, WHOLE, HttpRequest
from mfimage.runtime.serving.service import Service

_DECODE = json.JSONDecoder().raw_decode
_SPACE = re.compile(r"[ \t\n\r]*")


def whole_body(request: HttpRequest, service: Service) -> bytes | None:
    """Return the request body if it came with the head, which ``read_body`` takes longer to find.

    What ``read_body`` counts and raises, this does.
    """
    body: bytes | None = request.scope.get(WHOLE)
    if body is not None:
        if len(body) > service.settings.max_body:
            raise _too_large(service.settings.max_body)
        service.bodies.hold(len(body))
        request.held = len(body)
    return body


async def read_body(request: HttpRequest, service: Service) -> bytes:
    """Return the whole request body; raise ``Disconnected``, or a 413 as soon as it is known.

    Its bytes count in ``Service.bodies`` until the request ends; a 503 if they are too many.
    """
    limit = service.settings.max_body
    if int(request.headers.get(b"content-length", 0)) > limit:
        raise _too_large(limit)
    receive, scope = request.receive, request.scope
    whole = bytearray()  # one block: the allocator does not give many small ones back
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        if REFUSED in scope:
            raise scope.pop(REFUSED)
        body: bytes = message.get("body", b"")
        size += len(body)
        if size > limit:
            raise _too_large(limit)
        service.bodies.hold(len(body))
        request.held = size
        more = message.get("more_body", False)
        if not more and not whole:
            return body
        whole += body
        del message, body  # not twice in memory while more is waited for
    return bytes(whole)


def _too_large(limit: int) -> Problem:
    return Problem(413, f"expected a body of at most {limit} bytes (MFIMAGE_MAX_BODY)")


def split_list(body: bytes) -> list[bytes]:
    """Return the bytes of each item of a JSON list, or raise ``InputError``.

    Only where items begin and end is decided here; the function's own parser reads each, so that
    a record means the same alone and in a list.
    """
    try:
        text = body.removeprefix(BOM_UTF8).decode()
        at = _skip_space(text, 0)
        if text[at : at + 1] == "[":
            return _items(text, at + 1)
        shown = repr(text if len(text) <= 40 else text[:37] + "...")
        message = f"expected a list of records, got {shown}"
    except RecursionError:
        message = "nested too deeply"
    except ValueError as error:
        message = f"not JSON: {error}"
    raise InputError([Fault(path="records", message=message)])


def _items(text: str, at: int) -> list[bytes]:
    items: list[bytes] = []
    at = _skip_space(text, at)
    if text[at : at + 1] == "]":
        end = at
    else:
        while True:
            _, end = _DECODE(text, at)
            items.append(text[at:end].encode())
            end = _skip_space(text, end)
            if text[end : end + 1] != ",":
                break
            at = _skip_space(text, end + 1)
    if text[end : end + 1] != "]" or _skip_space(text, end + 1) != len(text):
        raise ValueError(f"unexpected text at character {end}")
    return items


def _skip_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def join_outcomes(outcomes: Sequence[Outcome]) -> bytes:
    """Return the outcome of each item, as a JSON list."""
    items = (
        b'{"result":%b}' % each
        if isinstance(each, bytes)
        else b'{"error":%b}' % problem_of(each).body()
        for each in outcomes
    )
    return b"[%b]" % b",".join(items)


def encode_outcomes(
    codec: MediaCodec, outcomes: Sequence[Outcome]
) -> tuple[Sequence[Outcome], bytes]:
    """Return the outcomes, and their list in a media type; an unfit result fails alone."""
    assert codec.many is not None
    try:
        return outcomes, codec.many.dumps(join_outcomes(outcomes))
    except OutputError:
        encoded = [_encodable(codec, outcome) for outcome in outcomes]
        return encoded, codec.many.dumps(join_outcomes(encoded))


def _encodable(codec: MediaCodec, outcome: Outcome) -> Outcome:
    try:
        if isinstance(outcome, bytes):
            codec.dumps(outcome)
    except OutputError as error:
        return error
    return outcome
