"""Avro's bytes and logical types <-> the texts that they are as JSON values."""

from __future__ import annotations

import base64
import binascii
import datetime
import decimal
import re
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

from mfimage.function.avro_types import Type
from mfimage.function.faults import shown

_EPOCH = datetime.datetime(1970, 1, 1)  # naive, as all in here: UTC or local
_DAY = _EPOCH.toordinal()
_DAY_LENGTH = 86_400_000_000
_MICROSECOND = datetime.timedelta(microseconds=1)
_DATE = re.compile(r"(\d{4})-(\d\d)-(\d\d)", re.ASCII)
_TIME = re.compile(r"(\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,6}))?)?", re.ASCII)
_OFFSET = re.compile(r"(?:[Zz]|([+-])(\d\d):?(\d\d)(?::(\d\d))?)", re.ASCII)
_DECIMAL = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,6})?", re.ASCII)

# Python turns no more into an integer.
_MAX_DIGITS = 4000


class Misfit(Exception):
    """A value or bytes that do not fit; ``parts`` lead there, the last one first."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
        self.parts: list[str | int] = []


class Text(NamedTuple):
    """How a raw Avro value is a text: ``write(text) -> raw``, ``read(raw) -> text``."""

    write: Callable[[str], Any]
    read: Callable[[Any], str]


def text_of(made: Type) -> Text | None:
    """Return how values of a type are texts; None for types whose raw values are JSON's own."""
    if made.logical == "decimal":
        return _decimal(made)
    if made.kind in ("bytes", "fixed") and not made.logical:
        return Text(_from_base64, lambda raw: base64.b64encode(raw).decode())
    if made.logical == "uuid" and made.kind == "fixed":
        return Text(lambda text: _uuid(text).bytes, lambda raw: str(uuid.UUID(bytes=raw)))
    return _TEXTS.get(made.logical)


def _from_base64(text: str) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raw = None
    if raw is None or base64.b64encode(raw).decode() != text:
        raise Misfit(f"expected base64 text, got {shown(text)}")
    return raw


def _uuid(text: str) -> uuid.UUID:
    try:
        found = uuid.UUID(text)
    except ValueError:
        raise Misfit(f"expected a UUID, got {shown(text)}") from None
    return found


def _uuid_text(text: str) -> str:
    _uuid(text)
    return text


def _date(text: str) -> int:
    found = _DATE.fullmatch(text)
    try:
        if found:
            return datetime.date(*map(int, found.groups())).toordinal() - _DAY
    except ValueError:
        pass
    raise Misfit(f"expected a date, as 2020-01-31, got {shown(text)}")


def _date_text(days: int) -> str:
    try:
        return datetime.date.fromordinal(days + _DAY).isoformat()
    except (ValueError, OverflowError):
        raise Misfit(f"day {days} is outside of the years 1 to 9999") from None


def _time(text: str) -> int:
    """Return microseconds since midnight."""
    found = _TIME.fullmatch(text)
    if found:
        hour, minute, second, fraction = found.groups("0")
        h, m, s = int(hour), int(minute), int(second)
        if h < 24 and m < 60 and s < 60:
            return ((h * 60 + m) * 60 + s) * 1_000_000 + int(fraction.ljust(6, "0"))
    raise Misfit(f"expected a time without UTC offset, as 12:30:00, got {shown(text)}")


def _time_text(micros: int) -> str:
    if not 0 <= micros < _DAY_LENGTH:
        raise Misfit(f"{micros} microseconds after midnight is no time of the day")
    return (_EPOCH + micros * _MICROSECOND).time().isoformat()


def _moment(text: str, *, aware: bool) -> int:
    """Return microseconds since 1970."""
    time = _TIME.match(text, 11)
    offset = _OFFSET.fullmatch(text, time.end()) if time else None
    is_whole = bool(offset) if aware else bool(time and time.end() == len(text))
    if time is None or text[10] not in "Tt " or not is_whole:
        form = "with UTC offset, as 2020-01-31T12:30:00Z" if aware else "without UTC offset"
        raise Misfit(f"expected a date and time {form}, got {shown(text)}")
    micros = _date(text[:10]) * _DAY_LENGTH + _time(time.group())
    if offset and offset.group(1):
        hours, minutes, seconds = (int(each or 0) for each in offset.groups()[1:])
        away = (hours * 3600 + minutes * 60 + seconds) * 1_000_000
        micros += away if offset.group(1) == "-" else -away
        _moment_text(micros)
    return micros


def _moment_text(micros: int) -> str:
    try:
        return (_EPOCH + micros * _MICROSECOND).isoformat()
    except OverflowError:
        raise Misfit(f"{micros} microseconds from 1970 is outside of the years 1 to 9999") from None


def _millis(whole: Text) -> Text:
    def write(text: str) -> int:
        millis, rest = divmod(whole.write(text), 1000)
        if rest:
            raise Misfit(f"{shown(text)} has more than milliseconds")
        return int(millis)

    return Text(write, lambda millis: whole.read(millis * 1000))


_TIMES = Text(_time, _time_text)
_INSTANTS = Text(lambda text: _moment(text, aware=True), lambda micros: f"{_moment_text(micros)}Z")
_LOCAL = Text(lambda text: _moment(text, aware=False), _moment_text)
_TEXTS = {
    "uuid": Text(_uuid_text, _uuid_text),
    "date": Text(_date, _date_text),
    "time-micros": _TIMES,
    "time-millis": _millis(_TIMES),
    "timestamp-micros": _INSTANTS,
    "timestamp-millis": _millis(_INSTANTS),
    "local-timestamp-micros": _LOCAL,
    "local-timestamp-millis": _millis(_LOCAL),
}


def _decimal(made: Type) -> Text:
    precision, scale = made.precision, made.scale
    limit = 10**precision
    # More bytes are read than are needed: others may write some of no meaning.
    most = made.size or limit.bit_length() // 8 + 8
    kind = f"decimal({precision}, {scale})"

    def write(text: str) -> bytes:
        number: int
        if not _DECIMAL.fullmatch(text):
            raise Misfit(f"expected a decimal number as text, got {shown(text)}")
        sign, digits, exponent = decimal.Decimal(text).as_tuple()
        shift = int(exponent) + scale
        if not any(digits):
            return bytes(made.size or 1)
        if len(digits) + shift > precision or len(digits) > _MAX_DIGITS:
            raise Misfit(f"{shown(text)} does not fit {kind}")
        number = int("".join(map(str, digits)))
        number, rest = (number * 10**shift, 0) if shift >= 0 else divmod(number, 10**-shift)
        if rest:
            raise Misfit(f"{shown(text)} has more digits after the point than {kind}")
        number = -number if sign else number
        size = number.bit_length() // 8 + 1
        if made.size and size > made.size:
            raise Misfit(f"{shown(text)} does not fit {made.size} bytes")
        return number.to_bytes(made.size or size, "big", signed=True)

    def read(raw: bytes) -> str:
        number = int.from_bytes(raw, "big", signed=True) if len(raw) <= most else limit
        if not -limit < number < limit:
            raise Misfit(f"a number that does not fit {kind}")
        digits = str(abs(number)).rjust(scale + 1, "0")
        text = f"{digits[:-scale]}.{digits[-scale:]}" if scale else digits
        return f"-{text}" if number < 0 else text

    return Text(write, read)
