"""Media types: codecs beside JSON, and content negotiation.

A codec turns request bytes of its media type into JSON bytes and JSON bytes into response bytes,
so that the function's own parser reads each record and its own writer writes each result,
whatever their media types.
"""

from __future__ import annotations

import functools
import itertools
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from mfimage.errors import Fault, InputError, OutputError, SchemaError
from mfimage.function import json as json_values
from mfimage.function.serializers import Serializer, serializers
from mfimage.package.spec import CallableSpec
from mfimage.runtime.calls.queue import Converter
from mfimage.runtime.serving.problems import PROBLEM_SCHEMA, Problem

JSON = "application/json"
VARY = (b"vary", b"accept")

Header = tuple[bytes, bytes]

# What paths in a serializer's faults start with.
_DATA = "data"
_DEFINITIONS = "$defs"

# ``curl -d`` sends the type of a form, and clients do not send forms to a function.
_JSON_TYPES = re.compile(r"application/(json|[\w.+-]+\+json|x-www-form-urlencoded)", re.ASCII)
# Up to the next comma, or semicolon, outside quotes.
_ELEMENT = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+')
_PART = re.compile(r'(?:[^;"]|"(?:[^"\\]|\\.)*"?)+')
_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_RANGE = re.compile(rf"{_NAME}/{_NAME}")
_WEIGHT = re.compile(r"\s*[qQ]\s*=\s*(.*?)\s*")
# With any number of digits, and none before the point: older JDKs send `q=.2`.
_WEIGHTS = re.compile(r"0(\.\d*)?|\.\d+|1(\.0*)?", re.ASCII)

# Clients send few combinations of headers, and short ones; hostile ones are not cached.
_CACHED = 64
_CACHED_LENGTH = 512

log = logging.getLogger("mfimage.serving")


@dataclass(frozen=True, kw_only=True)
class MediaCodec:
    """A media type beside JSON, for one function."""

    serializer: Serializer
    # The serializer's own schemas of a request and a response.
    input: Any
    output: Any
    # What paths in input errors start with.
    data: str
    # The codec of a list of records and of their outcomes, where the serializer has schemas.
    many: MediaCodec | None = None

    @property
    def media_type(self) -> str:
        """The media type."""
        return self.serializer.media_type

    def loads(self, body: bytes) -> bytes:
        """Return a request body as JSON bytes; ``InputError``, whatever the serializer raises."""
        try:
            value = self.serializer.loads(body, self.input)
        except InputError as error:
            raise InputError([self._rename(fault) for fault in error.faults]) from None
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            fault = Fault(path=self.data, message=f"not {self.media_type}: {reason}")
            raise InputError([fault]) from error
        return json_values.dumps(value, root=self.data, error=InputError)

    def dumps(self, payload: bytes) -> bytes:
        """Return JSON bytes as a response body, or raise ``OutputError``."""
        try:
            return self.serializer.dumps(json_values.loads(payload), self.output)
        except InputError as error:  # the client's input was good
            raise OutputError(error.faults) from error

    def _rename(self, fault: Fault) -> Fault:
        """Let a path start with the name of the function's own parameter."""
        rest = fault.path.removeprefix(_DATA)
        if rest == fault.path or rest[:1] not in ("", ".", "["):
            return fault
        return Fault(path=self.data + rest, message=fault.message)


def codecs_of(spec: CallableSpec, *, data: str) -> Mapping[str, MediaCodec]:
    """Return the codecs of a function, by media type.

    There is one for each serializer that is registered in this process and has a schema for the
    function's records and results. The log has the reason why another is left out. ``data`` is
    the name of the function's first parameter.
    """
    codecs = {}
    for name, serializer in serializers().items():
        if name != "json":
            with _left_out_if_it_fails(spec.name, serializer):
                codecs[serializer.media_type] = _codec(spec, serializer, data)
    return codecs


@contextmanager
def _left_out_if_it_fails(where: str, serializer: Serializer) -> Iterator[None]:
    try:
        yield
    except SchemaError as error:
        log.info("%s is not served as %s: %s", where, serializer.media_type, error)
    except Exception:
        # A serializer with a bug must not break the others.
        message = "%s is not served as %s: its serializer failed"
        log.warning(message, where, serializer.media_type, exc_info=True)


def _codec(spec: CallableSpec, serializer: Serializer, data: str) -> MediaCodec:
    given = spec.schemas.get(serializer.name, {})
    sides = {"input": spec.input_schema, "output": spec.output_schema}
    own = {
        side: _schema(serializer, schema, spec.name) if given.get(side) is None else given[side]
        for side, schema in sides.items()
    }
    many = None
    sides |= {side: {f"x-{serializer.name}-schema": schema} for side, schema in given.items()}
    # Definitions belong at the root.
    definitions = sides["input"].get(_DEFINITIONS)
    record = {name: value for name, value in sides["input"].items() if name != _DEFINITIONS}
    records = {"type": "array", "items": record}
    if definitions:
        records[_DEFINITIONS] = definitions
    with _left_out_if_it_fails(f"{spec.name}/batch", serializer):
        many = MediaCodec(
            serializer=serializer,
            input=_schema(serializer, records, spec.name),
            output=_schema(serializer, _outcomes_schema(sides["output"]), spec.name),
            data="records",
        )
    return MediaCodec(serializer=serializer, **own, data=data, many=many)


def _schema(serializer: Serializer, json_schema: Mapping[str, Any], name: str) -> Any:
    made = serializer.schema(json_schema, name=name)
    try:
        json_values.dumps(made, root="schema")
    except OutputError as error:
        message = f"{serializer.name}: schema() must return a JSON value: {error}"
        raise SchemaError(message) from None
    return made


def _outcomes_schema(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON Schema of the outcomes of a list of records."""
    item = dict(result)
    definitions = dict(item.pop(_DEFINITIONS, {}))

    def define(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
        key = name
        while key in definitions:
            key += "_"
        definitions[key] = {"title": name, **schema}
        return {"$ref": f"#/{_DEFINITIONS}/{key}"}

    problem = define("Problem", PROBLEM_SCHEMA)
    # Named, for schema languages that name their types.
    items = [
        define(name, {"type": "object", "required": [key], "properties": {key: schema}})
        for name, key, schema in (("Answer", "result", item), ("Refusal", "error", problem))
    ]
    return {"type": "array", "items": {"oneOf": items}, _DEFINITIONS: definitions}


# Content negotiation


@dataclass(frozen=True, kw_only=True)
class _ByCodec:
    """A converter by way of JSON."""

    parse: Callable[[bytes], Any]
    dump: Callable[[Any], bytes]


def _then(first: Callable[[Any], Any], second: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: second(first(value))


@dataclass(frozen=True, kw_only=True, slots=True)
class Negotiated:
    """The media types of a request and of its response; None stands for JSON."""

    reader: MediaCodec | None
    writer: MediaCodec | None
    # Reads a record and writes its result; None when both are JSON.
    converter: Converter | None
    # Of a successful response.
    headers: list[Header]


class Negotiation:
    """Chooses the media types of a request and of its response.

    ``fn`` is the function's own converter, of JSON; ``assume_json``: whether a body without a
    ``Content-Type`` is JSON.
    """

    __slots__ = ("_choices", "_pairs")

    def __init__(
        self, codecs: Mapping[str, MediaCodec], fn: Converter, *, assume_json: bool
    ) -> None:
        self._choices = _choices((JSON, *codecs), assume_json)
        every: dict[str, MediaCodec | None] = {JSON: None, **codecs}
        self._pairs = {
            (reader, writer): self._pair(every[reader], every[writer], fn)
            for reader, writer in itertools.product(every, repeat=2)
        }

    def negotiate(self, headers: Mapping[bytes, bytes]) -> Negotiated:
        """Return what a request's headers ask for, or raise a 415 or 406."""
        choices = self._choices
        key = headers.get(b"content-type"), headers.get(b"accept")
        pair = choices.cache.get(key) or choices.choose(*key)
        encoding = headers.get(b"content-encoding")
        if encoding is not None and encoding.lower() != b"identity":
            detail = f"expected a body that is not compressed, got {encoding.decode('latin-1')}"
            raise Problem(415, detail, headers=[(b"accept-encoding", b"identity")])
        return choices.json if pair == _JSON_BOTH else self._pairs[pair]

    def _pair(
        self, reads: MediaCodec | None, writes: MediaCodec | None, fn: Converter
    ) -> Negotiated:
        if reads is None and writes is None:
            return self._choices.json
        converter = _ByCodec(
            parse=_then(reads.loads, fn.parse) if reads else fn.parse,
            dump=_then(fn.dump, writes.dumps) if writes else fn.dump,
        )
        headers = self._choices.headers(writes.media_type if writes else JSON)
        return Negotiated(reader=reads, writer=writes, converter=converter, headers=headers)


class _Choices:
    """What headers ask for: the same for all functions with the same media types."""

    def __init__(self, names: tuple[str, ...], *, assume_json: bool) -> None:
        self._names = names
        self._assume_json = assume_json
        self._vary = [VARY] if len(names) > 1 else []
        self._shown = " or ".join(names)
        self.cache: dict[tuple[bytes | None, bytes | None], tuple[str, str]] = {}
        self.json = Negotiated(reader=None, writer=None, converter=None, headers=self.headers(JSON))

    def headers(self, writer: str) -> list[Header]:
        """Return the headers of a successful response in a media type."""
        return [(b"content-type", writer.encode()), *self._vary]

    def choose(self, kind: bytes | None, accept: bytes | None) -> tuple[str, str]:
        """Return the media types of a request and its response, or raise a 415 or 406."""
        reader = self._reader((kind or b"").decode("latin-1").strip())
        writer = self._writer((accept or b"").decode("latin-1"), reader)
        found = _JSON_BOTH if (reader, writer) == _JSON_BOTH else (reader, writer)
        if len(kind or b"") + len(accept or b"") <= _CACHED_LENGTH:
            if len(self.cache) >= _CACHED:
                self.cache.clear()
            self.cache[kind, accept] = found
        return found

    def _reader(self, kind: str) -> str:
        essence = kind.partition(";")[0].strip().lower()
        if essence != JSON and essence in self._names:
            return essence
        if _JSON_TYPES.fullmatch(essence) or (self._assume_json and not kind):
            return JSON
        got = kind or "a request without Content-Type"
        expected = self._shown.replace(JSON, f"{JSON} in UTF-8")
        supported = ", ".join(self._names).encode()
        raise Problem(415, f"expected {expected}, got {got}", headers=[(b"accept-post", supported)])

    def _writer(self, accept: str, reader: str) -> str:
        # Of equal ranges the one with the highest weight counts.
        ranges = dict(sorted(media_ranges(accept), key=lambda item: item[1]))
        # Of equal weights the request's own media type wins, then JSON.
        names = [reader, *(name for name in self._names if name != reader)]
        best = max(names, key=lambda name: weight_of(ranges, name))
        if ranges and not weight_of(ranges, best):
            detail = f"can answer in {self._shown}; the request accepts {accept}"
            raise Problem(406, detail, headers=self._vary)
        return best


_JSON_BOTH = (JSON, JSON)


@functools.cache
def _choices(names: tuple[str, ...], assume_json: bool) -> _Choices:
    return _Choices(names, assume_json=assume_json)


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaTypes:
    """The media types of a function: its codecs, and the negotiation of records and of lists."""

    codecs: Mapping[str, MediaCodec]
    record: Negotiation
    batch: Negotiation

    @classmethod
    def of(cls, spec: CallableSpec, fn: Converter, *, data: str) -> MediaTypes:
        """Return the media types of a function; ``data`` is the name of its first parameter."""
        codecs = codecs_of(spec, data=data)
        lists = {name: codec for name, codec in codecs.items() if codec.many is not None}
        # Not for a function of another media type: some bytes can be read as both.
        negotiation = partial(Negotiation, fn=fn, assume_json=spec.kind == "json")
        return cls(codecs=codecs, record=negotiation(codecs), batch=negotiation(lists))


def media_ranges(accept: str) -> Iterator[tuple[str, float]]:
    """Yield the valid media ranges of an ``Accept`` header, with their weights."""
    for element in _ELEMENT.findall(accept):
        media, *parameters = (part.strip() for part in _PART.findall(element) or [""])
        media = "*/*" if media == "*" else media  # as older JDKs and curl scripts have it
        weight = next((match[1] for match in map(_WEIGHT.fullmatch, parameters) if match), "1")
        if _RANGE.fullmatch(media) and _WEIGHTS.fullmatch(weight):
            yield media.lower(), float(weight)


def weight_of(ranges: Mapping[str, float], name: str) -> float:
    """Return the weight of a media type: that of the most specific range that matches it."""
    matching = (name, f"{name.partition('/')[0]}/*", "*/*")
    return next((ranges[media] for media in matching if media in ranges), 0.0)
