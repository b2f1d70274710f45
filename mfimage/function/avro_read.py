"""Avro's binary encoding -> JSON values.

fastavro reads faster, but trusts the bytes: an index of -1 gives the last symbol, a byte of 7 is
true, a million nested records end the process. These come from anywhere.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any

from mfimage.function.avro_texts import Misfit, text_of
from mfimage.function.avro_types import Type

# Takes the bytes and a place in them; returns the value and the place behind it.
Reader = Callable[[bytes, int], tuple[Any, int]]
_SHORT = "the data end before it does"


def compile_reader(made: Type) -> Reader:
    """Return what reads a value of a type; it raises ``Misfit``."""
    return _compile(made, {})


def _compile(made: Type, done: dict[Type, Reader]) -> Reader:
    text = text_of(made)
    reader = _plain(made, done)
    if text is None:
        return reader
    read_text = text.read

    def read(data: bytes, pos: int) -> tuple[Any, int]:
        raw, pos = reader(data, pos)
        return read_text(raw), pos

    return read


def _plain(made: Type, done: dict[Type, Reader]) -> Reader:
    if made.kind == "record":
        return _record(made, done)
    if made.kind == "union":
        return _union([_compile(branch, done) for branch in made.branches])
    if made.items is not None:
        items = _compile(made.items, done)
        return _array(items) if made.kind == "array" else _map(items)
    if made.kind == "enum":
        return _enum(made.symbols)
    if made.kind == "fixed":
        return lambda data, pos: _take(data, pos, made.size)
    return _PRIMITIVES[made.kind]


def read_long(data: bytes, pos: int) -> tuple[int, int]:
    """Return the integer at a place, and the place behind it."""
    try:
        byte = data[pos]
        number, shift = byte & 0x7F, 7
        while byte & 0x80:
            pos += 1
            byte = data[pos]
            number |= (byte & 0x7F) << shift
            shift += 7
            if shift > 70:
                break
    except IndexError:
        raise Misfit(_SHORT) from None
    if number >> 64 or byte & 0x80:
        raise Misfit("an integer of more than 64 bits")
    return (number >> 1) ^ -(number & 1), pos + 1


def _int(data: bytes, pos: int) -> tuple[int, int]:
    number, pos = read_long(data, pos)
    if not -(2**31) <= number < 2**31:
        raise Misfit(f"{number} has more than 32 bits")
    return number, pos


def _boolean(data: bytes, pos: int) -> tuple[bool, int]:
    raw, end = _take(data, pos, 1)
    if raw not in (b"\0", b"\1"):
        raise Misfit(f"a byte of {raw[0]} is no boolean")
    return raw == b"\1", end


def _float(form: str) -> Reader:
    unpack, size = struct.Struct(form).unpack_from, struct.calcsize(form)

    def read(data: bytes, pos: int) -> tuple[float, int]:
        end = pos + size
        if end > len(data):
            raise Misfit(_SHORT)
        (number,) = unpack(data, pos)
        if not math.isfinite(number):
            raise Misfit(f"{number} has no JSON form")
        return number, end

    return read


def _take(data: bytes, pos: int, size: int) -> tuple[bytes, int]:
    end = pos + size
    if end > len(data):
        raise Misfit(_SHORT)
    return data[pos:end], end


def _bytes(data: bytes, pos: int) -> tuple[bytes, int]:
    size, pos = read_long(data, pos)
    if size < 0:
        raise Misfit(f"a length of {size}")
    return _take(data, pos, size)


def _string(data: bytes, pos: int) -> tuple[str, int]:
    raw, pos = _bytes(data, pos)
    try:
        return raw.decode(), pos
    except UnicodeDecodeError:
        raise Misfit("text that is not valid Unicode") from None


_PRIMITIVES: dict[str, Reader] = {
    "null": lambda _, pos: (None, pos),
    "boolean": _boolean,
    "int": _int,
    "long": read_long,
    "float": _float("<f"),
    "double": _float("<d"),
    "bytes": _bytes,
    "string": _string,
}


def _enum(symbols: tuple[str, ...]) -> Reader:
    def read(data: bytes, pos: int) -> tuple[str, int]:
        index, pos = read_long(data, pos)
        if not 0 <= index < len(symbols):
            raise Misfit(f"there is no symbol {index}")
        return symbols[index], pos

    return read


def _union(branches: list[Reader]) -> Reader:
    def read(data: bytes, pos: int) -> tuple[Any, int]:
        index, pos = read_long(data, pos)
        if not 0 <= index < len(branches):
            raise Misfit(f"there is no branch {index}")
        return branches[index](data, pos)

    return read


def _record(made: Type, done: dict[Type, Reader]) -> Reader:
    if made in done:
        return done[made]
    fields: list[tuple[str, Reader, bool]] = []

    def read(data: bytes, pos: int) -> tuple[dict[str, Any], int]:
        record = {}
        key = ""
        try:
            for key, reader, absent in fields:
                value, pos = reader(data, pos)
                if not (absent and value is None):
                    record[key] = value
        except Misfit as misfit:
            misfit.parts.append(key)
            raise
        return record, pos

    done[made] = read  # before its fields: they may be of its own type
    fields += [(each.key, _compile(each.type, done), each.absent) for each in made.fields]
    return read


def _block(data: bytes, pos: int) -> tuple[int, int]:
    """Return how many items follow, and where they start."""
    count, pos = read_long(data, pos)
    if count < 0:
        _, pos = read_long(data, pos)  # the block's size, for who passes over it
    if abs(count) > len(data) - pos:
        raise Misfit(_SHORT)  # each takes a byte, at least
    return abs(count), pos


def _array(items: Reader) -> Reader:
    def read(data: bytes, pos: int) -> tuple[list[Any], int]:
        values: list[Any] = []
        count, pos = _block(data, pos)
        try:
            while count:
                for _ in range(count):
                    value, pos = items(data, pos)
                    values.append(value)
                count, pos = _block(data, pos)
        except Misfit as misfit:
            misfit.parts.append(len(values))
            raise
        return values, pos

    return read


def _map(items: Reader) -> Reader:
    def read(data: bytes, pos: int) -> tuple[dict[str, Any], int]:
        values: dict[str, Any] = {}
        count, pos = _block(data, pos)
        while count:
            for _ in range(count):
                key, pos = _string(data, pos)
                if key in values:
                    raise Misfit(f"the key {key!r} twice")
                try:
                    values[key], pos = items(data, pos)
                except Misfit as misfit:
                    misfit.parts.append(key)
                    raise
            count, pos = _block(data, pos)
        return values, pos

    return read
