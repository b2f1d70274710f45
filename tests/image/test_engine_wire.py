from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfimage.image.engine_wire import encode_bytes, encode_int, fields, last_bytes

numbers = st.integers(min_value=1, max_value=536_870_911)


@given(st.lists(st.tuples(numbers, st.one_of(st.integers(0, 2**64 - 1), st.binary()))))
def test_what_was_encoded_is_read_back(written: list[tuple[int, int | bytes]]) -> None:
    message = b"".join(
        encode_int(number, value) if isinstance(value, int) else encode_bytes(number, value)
        for number, value in written
    )
    assert list(fields(message)) == written


def test_fixed_size_fields_are_read_as_bytes() -> None:
    message = b"\x09" + b"12345678" + b"\x15" + b"1234" + encode_int(3, 7)
    assert list(fields(message)) == [(1, b"12345678"), (2, b"1234"), (3, 7)]


@given(st.binary())
def test_anything_else_is_a_value_error(noise: bytes) -> None:
    with contextlib.suppress(ValueError):
        list(fields(noise))


@pytest.mark.parametrize("message", [b"\x0a\x05abc", b"\x80", b"\x09123", b"\x0b", b"\xff" * 11])
def test_a_message_that_is_cut_short_is_refused(message: bytes) -> None:
    with pytest.raises(ValueError, match="protobuf"):
        list(fields(message))


def test_of_several_values_the_last_one_counts() -> None:
    assert last_bytes(encode_bytes(1, b"a") + encode_bytes(1, b"b"), 1) == b"b"
    assert last_bytes(b"", 1) == b""
