"""``Content-Type`` and ``Accept`` -> what reads a request, and what writes its answer.

JSON is always spoken; beside it, what ``wire.py`` found for the function.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mfimage.runtime.calls.queue import Crossing
from mfimage.runtime.serving.problems import Problem

if TYPE_CHECKING:
    from mfimage.runtime.loading.loader import LiveFunction
    from mfimage.runtime.serving.codecs import Wire

Header = tuple[bytes, bytes]
Headers = Mapping[bytes, bytes]

JSON = "application/json"
VARY = (b"vary", b"accept")

# ``curl -d`` says "form" unless told otherwise, and nobody sends a form to a function.
_JSON_TYPES = re.compile(
    r"application/(json|[\w.+-]+\+json|x-www-form-urlencoded)\s*"
    r"(;\s*charset=\"?(utf-?8|us-ascii)\"?\s*)?",
    re.IGNORECASE | re.ASCII,
)
# Up to the next comma, or semicolon, that is in no quotes.
_ELEMENT = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+')
_PART = re.compile(r'(?:[^;"]|"(?:[^"\\]|\\.)*"?)+')
_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_RANGE = re.compile(rf"{_NAME}/{_NAME}")
_WEIGHT = re.compile(r"\s*[qQ]\s*=\s*(.*?)\s*")
_WEIGHTS = re.compile(r"0(\.\d{0,3})?|1(\.0{0,3})?", re.ASCII)

# Few clients send more than a handful of combinations, and none sends long ones.
_MOST_KNOWN = 64
_LONGEST_KNOWN = 512


@dataclass(frozen=True, kw_only=True)
class _Translated:
    """A crossing by way of JSON."""

    parse: Callable[[bytes], Any]
    dump: Callable[[Any], bytes]


def _then(first: Callable[[Any], Any], second: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: second(first(value))


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a request and its answer are written in.

    Attributes
    ----------
    reader, writer : Wire or None
        None for JSON.
    crossing : Crossing or None
        How a record comes in and its result goes out; None when both are JSON.
    headers : list of (name, value)
        What goes into an answer that is a result.
    """

    reader: Wire | None
    writer: Wire | None
    crossing: Crossing | None
    headers: list[Header]


class Negotiation:
    """Decides which of a function's media types a request speaks, and which its answer.

    Parameters
    ----------
    wires : mapping of str to Wire
        What is spoken beside JSON, by media type.
    fn : Crossing
        The function's own, of JSON.
    assume_json : bool
        Whether a body without a ``Content-Type`` is JSON.
    """

    def __init__(self, wires: Mapping[str, Wire], fn: Crossing, *, assume_json: bool) -> None:
        self._wires: dict[str, Wire | None] = {JSON: None, **wires}
        self._fn = fn
        self._assume_json = assume_json
        self._vary = [VARY] if wires else []
        self._shown = " or ".join(self._wires)
        self._known: dict[tuple[bytes | None, bytes | None], Terms] = {}
        self._terms = {
            (reader, writer): self._terms_of(reader, writer)
            for reader in self._wires
            for writer in self._wires
        }

    def agree(self, headers: Headers) -> Terms:
        """Return what a request's headers ask for.

        Raises
        ------
        Problem
            415 or 406.
        """
        key = headers.get(b"content-type"), headers.get(b"accept")
        terms = self._known.get(key)
        if terms is None:
            terms = self._look(*key)
        encoding = headers.get(b"content-encoding")
        if encoding is not None and encoding.lower() != b"identity":
            shown = encoding.decode("latin-1")
            raise Problem(
                415, f"expected a body that is not compressed, got {shown}",
                headers=[(b"accept-encoding", b"identity")],
            )  # fmt: skip
        return terms

    def _look(self, kind: bytes | None, accept: bytes | None) -> Terms:
        reader = self._reader(None if kind is None else kind.decode("latin-1").strip())
        writer = self._writer((accept or b"").decode("latin-1"), reader)
        terms = self._terms[reader, writer]
        if len(kind or b"") + len(accept or b"") <= _LONGEST_KNOWN:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[kind, accept] = terms
        return terms

    def _reader(self, kind: str | None) -> str:
        if not kind:
            if self._assume_json:
                return JSON
            got = "a request without Content-Type"
        else:
            essence = kind.partition(";")[0].strip().lower()
            if essence != JSON and essence in self._wires:
                return essence
            if _JSON_TYPES.fullmatch(kind):
                return JSON
            got = kind
        wanted = self._shown.replace(JSON, f"{JSON} in UTF-8")
        spoken = ", ".join(self._wires).encode()
        raise Problem(415, f"expected {wanted}, got {got}", headers=[(b"accept-post", spoken)])

    def _writer(self, accept: str, reader: str) -> str:
        ranges = dict(_heaviest(media_ranges(accept)))
        # Of equals, what the client writes itself; then JSON.
        names = [reader, *(name for name in self._wires if name != reader)]
        weights = [_weight(ranges, name) for name in names]
        best = max(weights)
        if not ranges:
            return reader
        if best > 0:
            return names[weights.index(best)]
        detail = f"can answer in {self._shown}; the request accepts {accept}"
        raise Problem(406, detail, headers=self._vary)

    def _terms_of(self, reader: str, writer: str) -> Terms:
        reads, writes = self._wires[reader], self._wires[writer]
        crossing = None
        if reads or writes:
            crossing = _Translated(
                parse=_then(reads.loads, self._fn.parse) if reads else self._fn.parse,
                dump=_then(self._fn.dump, writes.dumps) if writes else self._fn.dump,
            )
        headers = [(b"content-type", writer.encode()), *self._vary]
        return Terms(reader=reads, writer=writes, crossing=crossing, headers=headers)


@dataclass(frozen=True, kw_only=True)
class Speech:
    """What a function's server speaks: of one record, and of a list of them."""

    record: Negotiation
    batch: Negotiation

    @classmethod
    def of(cls, fn: LiveFunction, wires: Mapping[str, Wire]) -> Speech:
        """Return what is spoken with a function.

        A body without ``Content-Type`` is JSON, unless the function's own form is another: then
        it may well be that, and some bytes can be read as both.
        """
        assume = fn.spec.kind == "json"
        lists = {name: wire for name, wire in wires.items() if wire.many is not None}
        return cls(
            record=Negotiation(wires, fn, assume_json=assume),
            batch=Negotiation(lists, fn, assume_json=assume),
        )


def media_ranges(accept: str) -> Iterator[tuple[str, float]]:
    """Return an ``Accept`` header's media ranges with their weights.

    Elements that cannot be understood are passed over. So are all parameters but ``q``.
    """
    for element in _ELEMENT.findall(accept):
        media, *parameters = (part.strip() for part in _PART.findall(element) or [""])
        weight = _weight_of(parameters)
        if _RANGE.fullmatch(media) and weight is not None:
            yield media.lower(), weight


def _weight_of(parameters: Iterable[str]) -> float | None:
    for parameter in parameters:
        match = _WEIGHT.fullmatch(parameter)
        if match:
            return float(match[1]) if _WEIGHTS.fullmatch(match[1]) else None
    return 1.0


def _heaviest(ranges: Iterable[tuple[str, float]]) -> Iterator[tuple[str, float]]:
    """Return ranges so that, of those that say the same, the one with most weight comes last."""
    return iter(sorted(ranges, key=lambda item: item[1]))


def _weight(ranges: Mapping[str, float], name: str) -> float:
    """Return a media type's weight: what the most specific range that it is in says."""
    for media in (name, f"{name.partition('/')[0]}/*", "*/*"):
        if media in ranges:
            return ranges[media]
    return 0.0
