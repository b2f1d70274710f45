"""Request bodies: what kind, how large, and one list -> its items."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from mfimage.errors import Fault, InputError
from mfimage.runtime.dispatch import Gone
from mfimage.runtime.problems import Problem

Receive = Callable[[], Awaitable[Any]]

# ``curl -d`` says "form" unless told otherwise, and nobody sends a form to a function.
_MEDIA_TYPES = re.compile(
    rb"(application/(json|[\w.+-]+\+json|x-www-form-urlencoded))?\s*"
    rb"(;\s*charset=\"?(utf-?8|us-ascii)\"?\s*)?",
    re.IGNORECASE,
)
_READ = json.JSONDecoder().raw_decode
_SPACE = re.compile(r"[ \t\n\r]*")


def check_type(headers: Mapping[bytes, bytes]) -> None:
    """Refuse what says that it is no JSON.

    Raises
    ------
    Problem
        415.
    """
    kind = headers.get(b"content-type")
    if (
        kind is not None
        and kind != b"application/json"
        and not _MEDIA_TYPES.fullmatch(kind.strip())
    ):
        shown = kind.decode("latin-1")
        raise Problem(
            415,
            f"expected application/json in UTF-8, got {shown}",
            headers=[(b"accept-post", b"application/json")],
        )
    encoding = headers.get(b"content-encoding")
    if encoding is not None and encoding.lower() != b"identity":
        shown = encoding.decode("latin-1")
        raise Problem(
            415, f"expected a body that is not compressed, got {shown}",
            headers=[(b"accept-encoding", b"identity")],
        )  # fmt: skip


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
