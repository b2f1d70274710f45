from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfimage.errors import InputError
from mfimage.runtime.calls.queue import Disconnected
from mfimage.runtime.serving.body import read_body, split_list
from mfimage.runtime.serving.problems import Problem
from mfimage.runtime.serving.route import HttpRequest
from mfimage.runtime.serving.service import Bodies
from mfimage.runtime.settings import Settings

SPACE = st.text(" \t\n\r", max_size=2)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(VALUES), SPACE, st.booleans())
def test_items_of_a_list_come_apart_as_they_were_written(
    values: list[Any], space: str, ascii_only: bool
) -> None:
    written = [json.dumps(value, ensure_ascii=ascii_only) for value in values]
    text = f"{space}[{space}{f'{space},{space}'.join(written)}{space}]{space}"
    assert split_list(text.encode()) == [item.encode() for item in written]


def test_a_list_with_a_byte_order_mark_is_read() -> None:
    assert split_list("\ufeff [1, 2]".encode()) == [b"1", b"2"]


@given(st.binary(max_size=30) | st.text('[]{},":0aN \\', max_size=12).map(str.encode))
def test_any_bytes_are_split_or_refused(body: bytes) -> None:
    try:
        items = split_list(body)
    except InputError:
        return
    # As text: NaN is not equal to itself.
    whole = json.loads(body.decode("utf-8-sig"))
    assert json.dumps([json.loads(item) for item in items]) == json.dumps(whole)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "expected a list"),
        (b'{"a": 1}', "expected a list"),
        (b"[1", "not JSON"),
        (b"[1 2]", "not JSON"),
        (b"[1,]", "not JSON"),
        (b"[1] 2", "not JSON"),
        (b"[\xff]", "not JSON"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_not_a_list_is_refused(body: bytes, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        split_list(body)


def read(messages: list[dict[str, Any]], limit: int, **headers: bytes) -> bytes:
    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    given = {k.replace("_", "-").encode(): v for k, v in headers.items()}
    service: Any = SimpleNamespace(settings=Settings(max_body=limit), bodies=Bodies(100))
    return asyncio.run(read_body(HttpRequest({}, receive, given, "1", 0.0, ()), service))


def chunk(body: bytes, *, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


def test_a_body_in_parts_is_put_together() -> None:
    parts = [chunk(b"a", more=True), chunk(b"", more=True), chunk(b"bc", more=False)]
    assert read(parts, 3) == b"abc"


def test_a_body_too_large_is_refused_before_it_is_read() -> None:
    with pytest.raises(Problem, match="at most 3 bytes"):
        read([], 3, content_length=b"4")


def test_a_body_too_large_is_refused_while_it_is_read() -> None:
    parts = [chunk(b"aa", more=True), chunk(b"bb", more=True), chunk(b"never", more=True)]
    with pytest.raises(Problem):
        read(parts, 3)
    assert parts == [chunk(b"never", more=True)]


def test_a_client_that_leaves_while_it_sends_is_noticed() -> None:
    with pytest.raises(Disconnected):
        read([chunk(b"a", more=True), {"type": "http.disconnect"}], 3)
