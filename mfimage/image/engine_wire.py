"""The little of the protobuf wire format that talking to BuildKit needs."""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED_SIZES = {_FIXED64: 8, _FIXED32: 4}


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Walk through a message's fields, in the order they were written.

    Parameters
    ----------
    message : bytes
        One serialized message.

    Yields
    ------
    tuple of int and (int or bytes)
        The field's number and its value: an int for varints, bytes for everything else.

    Raises
    ------
    ValueError
        If the bytes are cut short or are no protobuf.
    """
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, position = _varint(message, position)
            yield number, value
            continue
        if kind == _BYTES:
            size, position = _varint(message, position)
        elif kind in _FIXED_SIZES:
            size = _FIXED_SIZES[kind]
        else:
            raise ValueError(f"protobuf: unknown wire type {kind}")
        if position + size > len(message):
            raise ValueError("protobuf: message is cut short")
        yield number, message[position : position + size]
        position += size


def last_bytes(message: bytes, number: int) -> bytes:
    """Return the value of a bytes field, empty if the message has none."""
    found = b""
    for field, value in fields(message):
        if field == number and isinstance(value, bytes):
            found = value  # protobuf: the last one wins
    return found


def encode_bytes(number: int, value: bytes) -> bytes:
    """Serialize one bytes (or string) field."""
    return _encode_varint(number << 3 | _BYTES) + _encode_varint(len(value)) + value


def encode_int(number: int, value: int) -> bytes:
    """Serialize one varint field."""
    return _encode_varint(number << 3 | _VARINT) + _encode_varint(value)


def _varint(message: bytes, position: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        if position >= len(message) or shift > 63:
            raise ValueError("protobuf: varint is cut short or too long")
        byte = message[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
        shift += 7


def _encode_varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
