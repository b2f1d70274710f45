"""JSON values -> Avro's binary encoding, each in the branch of a union that keeps it as it is."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from typing import Any

from mfimage.function.avro_defaults import default_value
from mfimage.function.avro_fit import fitting
from mfimage.function.avro_texts import Misfit, text_of
from mfimage.function.avro_types import NO_DEFAULT, Field, Type
from mfimage.function.faults import shown

# Takes a value and appends its bytes.
Writer = Callable[[Any, bytearray], None]
_pack_float = struct.Struct("<f").pack
_pack_double = struct.Struct("<d").pack


def compile_writer(made: Type, *, drop: bool = False) -> Writer:
    """Return what writes a value of a type; it raises ``Misfit``.

    Parameters
    ----------
    made : Type
        The type.
    drop : bool
        Whether to pass over members that the schema does not have, as Avro does when a file has
        another schema than its reader, instead of refusing them.
    """
    return _compile(made, {}, drop)


def _compile(made: Type, done: dict[Type, Writer], drop: bool) -> Writer:
    text = text_of(made)
    writer = _plain(made, done, drop)
    if text is None:
        return writer
    to_raw = text.write

    def write(value: Any, out: bytearray) -> None:
        if not isinstance(value, str):
            raise Misfit(f"expected str, got {shown(value)}")
        writer(to_raw(value), out)

    return write


def _plain(made: Type, done: dict[Type, Writer], drop: bool) -> Writer:
    if made.kind == "record":
        return _record(made, done, drop)
    if made.kind == "union":
        return _union(made, [_compile(branch, done, drop) for branch in made.branches])
    if made.items is not None:
        items = _compile(made.items, done, drop)
        return _array(items) if made.kind == "array" else _map(items)
    if made.kind == "enum":
        return _enum(made.symbols)
    if made.kind == "fixed":
        return _fixed(made.size)
    return _PRIMITIVES[made.kind]


def write_long(number: int, out: bytearray) -> None:
    """Append an integer of at most 64 bits."""
    rest = (number << 1) ^ (number >> 63)
    while rest > 0x7F:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    out.append(rest)


def _whole(bits: int) -> Writer:
    def write(value: Any, out: bytearray) -> None:
        if not isinstance(value, int) or isinstance(value, bool):
            raise Misfit(f"expected int, got {shown(value)}")
        if not -(1 << bits - 1) <= value < 1 << bits - 1:
            raise Misfit(f"{value} has more than {bits} bits"[:100])
        write_long(value, out)

    return write


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Misfit(f"expected float, got {shown(value)}")
    if isinstance(value, float):
        if not math.isfinite(value):
            raise Misfit(f"{value} has no JSON form")
        return value
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if number != value:
        raise Misfit(f"the integer {value} is no double"[:100])
    return number


def _double(value: Any, out: bytearray) -> None:
    out += _pack_double(_number(value))


def _single(value: Any, out: bytearray) -> None:
    try:
        out += _pack_float(_number(value))
    except OverflowError:
        raise Misfit(f"{value} is too large for a float of 32 bits") from None


def _boolean(value: Any, out: bytearray) -> None:
    if not isinstance(value, bool):
        raise Misfit(f"expected bool, got {shown(value)}")
    out.append(value)


def _null(value: Any, out: bytearray) -> None:
    if value is not None:
        raise Misfit(f"expected None, got {shown(value)}")


def _bytes(value: bytes, out: bytearray) -> None:
    write_long(len(value), out)
    out += value


def _string(value: Any, out: bytearray) -> None:
    if not isinstance(value, str):
        raise Misfit(f"expected str, got {shown(value)}")
    try:
        _bytes(value.encode(), out)
    except UnicodeEncodeError:
        raise Misfit(f"text {value!r} is not valid Unicode") from None


_PRIMITIVES: dict[str, Writer] = {
    "null": _null,
    "boolean": _boolean,
    "int": _whole(32),
    "long": _whole(64),
    "float": _single,
    "double": _double,
    "bytes": _bytes,
    "string": _string,
}


def _fixed(size: int) -> Writer:
    def write(value: bytes, out: bytearray) -> None:
        if len(value) != size:
            raise Misfit(f"expected {size} bytes, got {len(value)}")
        out += value

    return write


def _enum(symbols: tuple[str, ...]) -> Writer:
    indexes = {symbol: index for index, symbol in enumerate(symbols)}

    def write(value: Any, out: bytearray) -> None:
        index = indexes.get(value) if isinstance(value, str) else None
        if index is None:
            raise Misfit(f"expected {' or '.join(map(repr, symbols))}, got {shown(value)}")
        write_long(index, out)

    return write


def _union(made: Type, writers: list[Writer]) -> Writer:
    kinds = [branch.kind for branch in made.branches]
    if len(kinds) == 2 and "null" in kinds:
        return _optional(kinds.index("null"), writers)

    def write(value: Any, out: bytearray) -> None:
        index = fitting(value, made)
        write_long(index, out)
        writers[index](value, out)

    return write


def _optional(null: int, writers: list[Writer]) -> Writer:
    """Write a union of null and another: what most are."""
    other = 1 - null
    inner = writers[other]

    def write(value: Any, out: bytearray) -> None:
        if value is None:
            out.append(null << 1)
            return
        out.append(other << 1)
        inner(value, out)

    return write


def _record(made: Type, done: dict[Type, Writer], drop: bool) -> Writer:
    if made in done:
        return done[made]
    fields: list[tuple[str, Writer, Writer | None]] = []
    keys = frozenset(each.key for each in made.fields)

    def write(value: Any, out: bytearray) -> None:
        if not isinstance(value, dict):
            raise Misfit(f"expected dict, got {shown(value)}")
        found = 0
        key = ""
        try:
            for key, writer, absent in fields:
                if key in value:
                    found += 1
                    writer(value[key], out)
                elif absent is None:
                    raise Misfit("missing")
                else:
                    absent(value, out)
        except Misfit as misfit:
            misfit.parts.append(key)
            raise
        if found != len(value) and not drop:
            raise _unexpected(value, keys)

    done[made] = write  # before its fields: they may be of its own type
    fields += [(each.key, *_member(each, _compile(each.type, done, drop))) for each in made.fields]
    return write


def _member(each: Field, writer: Writer) -> tuple[Writer, Writer | None]:
    """Return what writes a member, and what writes one that is not there."""
    if each.absent:
        return _never_null(writer), lambda _, out: writer(None, out)
    if each.json_default is not NO_DEFAULT:
        value = each.json_default
    elif each.default is not NO_DEFAULT:
        value = default_value(each.type, each.default)
    else:
        return writer, None
    return writer, lambda _, out: writer(value, out)


def _never_null(writer: Writer) -> Writer:
    def write(value: Any, out: bytearray) -> None:
        if value is None:
            raise Misfit("null is what Avro writes for one that is absent: leave it out")
        writer(value, out)

    return write


def _unexpected(value: Mapping[Any, Any], keys: frozenset[str]) -> Misfit:
    misfit = Misfit("not expected here: the Avro schema does not have it")
    misfit.parts.append(next(str(key) for key in value if key not in keys))
    return misfit


def _array(items: Writer) -> Writer:
    def write(value: Any, out: bytearray) -> None:
        if not isinstance(value, list):
            raise Misfit(f"expected list, got {shown(value)}")
        index = 0
        if value:
            write_long(len(value), out)
        try:
            for index, item in enumerate(value):  # noqa: B007  (errors tell it)
                items(item, out)
        except Misfit as misfit:
            misfit.parts.append(index)
            raise
        out.append(0)

    return write


def _map(items: Writer) -> Writer:
    def write(value: Any, out: bytearray) -> None:
        if not isinstance(value, dict):
            raise Misfit(f"expected dict, got {shown(value)}")
        if value:
            write_long(len(value), out)
        for key, item in value.items():
            _string(key, out)
            try:
                items(item, out)
            except Misfit as misfit:
                misfit.parts.append(key)
                raise
        out.append(0)

    return write
