"""Media types: codecs beside JSON, and content negotiation.

A codec turns request bytes of its media type into JSON bytes and JSON bytes into response bytes,
so that the function's own parser reads each record and its own writer writes each result,
whatever their media types.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mfimage.errors import Fault, InputError, OutputError, SchemaError
from mfimage.function import json as json_values
from mfimage.function.serializers import Serializer, serializers
from mfimage.package.spec import FunctionSpec
from mfimage.runtime.calls.queue import Converter
from mfimage.runtime.serving.problems import PROBLEM_SCHEMA, Problem

JSON = "application/json"
VARY = (b"vary", b"accept")

Header = tuple[bytes, bytes]

# What paths in a serializer's faults start with.
_DATA = "data"
_DEFINITIONS = "$defs"

# ``curl -d`` sends the type of a form, and clients do not send forms to a function.
_JSON_TYPES = re.compile(
    r"application/(json|[\w.+-]+\+json|x-www-form-urlencoded)\s*"
    r"(;\s*charset=\"?(utf-?8|us-ascii)\"?\s*)?",
    re.IGNORECASE | re.ASCII,
)
# Up to the next comma, or semicolon, outside quotes.
_ELEMENT = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+')
_PART = re.compile(r'(?:[^;"]|"(?:[^"\\]|\\.)*"?)+')
_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_RANGE = re.compile(rf"{_NAME}/{_NAME}")
_WEIGHT = re.compile(r"\s*[qQ]\s*=\s*(.*?)\s*")
_WEIGHTS = re.compile(r"0(\.\d{0,3})?|1(\.0{0,3})?", re.ASCII)

# Clients send few combinations of headers, and short ones; hostile ones are not cached.
_CACHED = 64
_CACHED_LENGTH = 512

log = logging.getLogger("mfimage.serving")


@dataclass(frozen=True, kw_only=True)
class MediaCodec:
    """A media type beside JSON, for one function.

    Attributes
    ----------
    serializer : Serializer
        Reads and writes it.
    input, output : Any
        The serializer's own schemas of a request and a response.
    data : str
        What paths in input errors start with.
    many : MediaCodec or None
        The codec of a list of records and of their outcomes; None when the serializer has no
        schema for those.
    """

    serializer: Serializer
    input: Any
    output: Any
    data: str
    many: MediaCodec | None = None

    @property
    def media_type(self) -> str:
        """The media type."""
        return self.serializer.media_type

    def loads(self, body: bytes) -> bytes:
        """Return a request body as JSON bytes.

        Raises
        ------
        InputError
            When the serializer cannot read it, whatever it raises then.
        """
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
        """Return JSON bytes as a response body.

        Raises
        ------
        OutputError
            When the serializer cannot write the value.
        """
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


def codecs_of(spec: FunctionSpec, *, data: str) -> Mapping[str, MediaCodec]:
    """Return the codecs of a function, by media type.

    There is one for each serializer that is registered in this process and has a schema for the
    function's records and results. The log has the reason why another is left out.

    Parameters
    ----------
    spec : FunctionSpec
        The function.
    data : str
        Name of its first parameter.
    """
    codecs = {}
    for name, serializer in serializers().items():
        if name == "json":
            continue
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


def _codec(spec: FunctionSpec, serializer: Serializer, data: str) -> MediaCodec:
    given = spec.schemas.get(serializer.name, {})

    def schema(side: str, json_schema: Mapping[str, Any]) -> Any:
        explicit = given.get(side)
        return _schema(serializer, json_schema, spec.name) if explicit is None else explicit

    return MediaCodec(
        serializer=serializer,
        input=schema("input", spec.input_schema),
        output=schema("output", spec.output_schema),
        data=data,
        many=_list_codec(spec, serializer),
    )


def _schema(serializer: Serializer, json_schema: Mapping[str, Any], name: str) -> Any:
    made = serializer.schema(json_schema, name=name)
    try:
        json_values.dumps(made, root="schema")
    except OutputError as error:
        raise SchemaError(
            f"{serializer.name}: schema() must return a JSON value: {error}"
        ) from None
    return made


def _list_codec(spec: FunctionSpec, serializer: Serializer) -> MediaCodec | None:
    given = spec.schemas.get(serializer.name, {})
    sides = {"input": spec.input_schema, "output": spec.output_schema}
    for side, explicit in given.items():
        sides[side] = {f"x-{serializer.name}-schema": explicit}
    with _left_out_if_it_fails(f"{spec.name}/batch", serializer):
        return MediaCodec(
            serializer=serializer,
            input=_schema(serializer, _list_schema(sides["input"]), spec.name),
            output=_schema(serializer, _outcomes_schema(sides["output"]), spec.name),
            data="records",
        )
    return None


def _list_schema(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON Schema of a list of records."""
    item, definitions = _split_definitions(record)
    made = {"type": "array", "items": item}
    return {**made, _DEFINITIONS: definitions} if definitions else made


def _outcomes_schema(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON Schema of the outcomes of a list of records."""
    item, definitions = _split_definitions(result)

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


def _split_definitions(schema: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a schema without its definitions, and them: they belong at the root."""
    own = dict(schema)
    return own, dict(own.pop(_DEFINITIONS, {}))


# Content negotiation


@dataclass(frozen=True, kw_only=True)
class _ByCodec:
    """A converter by way of JSON."""

    parse: Callable[[bytes], Any]
    dump: Callable[[Any], bytes]


def _then(first: Callable[[Any], Any], second: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: second(first(value))


@dataclass(frozen=True, kw_only=True)
class Negotiated:
    """The media types of a request and of its response.

    Attributes
    ----------
    reader, writer : MediaCodec or None
        Of the request and the response; None for JSON.
    converter : Converter or None
        Reads a record and writes its result; None when both are JSON.
    headers : list of (name, value)
        The headers of a successful response.
    """

    reader: MediaCodec | None
    writer: MediaCodec | None
    converter: Converter | None
    headers: list[Header]


class Negotiation:
    """Chooses the media types of a request and of its response.

    Parameters
    ----------
    codecs : mapping of str to MediaCodec
        The codecs beside JSON, by media type.
    fn : Converter
        The function's own, of JSON.
    assume_json : bool
        Whether a body without a ``Content-Type`` is JSON.
    """

    def __init__(
        self, codecs: Mapping[str, MediaCodec], fn: Converter, *, assume_json: bool
    ) -> None:
        self._codecs: dict[str, MediaCodec | None] = {JSON: None, **codecs}
        self._fn = fn
        self._assume_json = assume_json
        self._vary = [VARY] if codecs else []
        self._shown = " or ".join(self._codecs)
        self._cache: dict[tuple[bytes | None, bytes | None], Negotiated] = {}
        self._pairs = {
            (reader, writer): self._pair(reader, writer)
            for reader in self._codecs
            for writer in self._codecs
        }

    def negotiate(self, headers: Mapping[bytes, bytes]) -> Negotiated:
        """Return what a request's headers ask for.

        Raises
        ------
        Problem
            415 or 406.
        """
        key = headers.get(b"content-type"), headers.get(b"accept")
        found = self._cache.get(key)
        if found is None:
            found = self._choose(*key)
        encoding = headers.get(b"content-encoding")
        if encoding is not None and encoding.lower() != b"identity":
            shown = encoding.decode("latin-1")
            raise Problem(
                415, f"expected a body that is not compressed, got {shown}",
                headers=[(b"accept-encoding", b"identity")],
            )  # fmt: skip
        return found

    def _choose(self, kind: bytes | None, accept: bytes | None) -> Negotiated:
        reader = self._reader(None if kind is None else kind.decode("latin-1").strip())
        writer = self._writer((accept or b"").decode("latin-1"), reader)
        found = self._pairs[reader, writer]
        if len(kind or b"") + len(accept or b"") <= _CACHED_LENGTH:
            if len(self._cache) >= _CACHED:
                self._cache.clear()
            self._cache[kind, accept] = found
        return found

    def _reader(self, kind: str | None) -> str:
        if not kind:
            if self._assume_json:
                return JSON
            got = "a request without Content-Type"
        else:
            essence = kind.partition(";")[0].strip().lower()
            if essence != JSON and essence in self._codecs:
                return essence
            if _JSON_TYPES.fullmatch(kind):
                return JSON
            got = kind
        expected = self._shown.replace(JSON, f"{JSON} in UTF-8")
        supported = ", ".join(self._codecs).encode()
        raise Problem(415, f"expected {expected}, got {got}", headers=[(b"accept-post", supported)])

    def _writer(self, accept: str, reader: str) -> str:
        # Of equal ranges the one with the highest weight counts.
        ranges = dict(sorted(media_ranges(accept), key=lambda item: item[1]))
        # Of equal weights the request's own media type wins, then JSON.
        names = [reader, *(name for name in self._codecs if name != reader)]
        weights = [_weight(ranges, name) for name in names]
        best = max(weights)
        if not ranges:
            return reader
        if best > 0:
            return names[weights.index(best)]
        detail = f"can answer in {self._shown}; the request accepts {accept}"
        raise Problem(406, detail, headers=self._vary)

    def _pair(self, reader: str, writer: str) -> Negotiated:
        reads, writes = self._codecs[reader], self._codecs[writer]
        converter = None
        if reads or writes:
            converter = _ByCodec(
                parse=_then(reads.loads, self._fn.parse) if reads else self._fn.parse,
                dump=_then(self._fn.dump, writes.dumps) if writes else self._fn.dump,
            )
        headers = [(b"content-type", writer.encode()), *self._vary]
        return Negotiated(reader=reads, writer=writes, converter=converter, headers=headers)


@dataclass(frozen=True, kw_only=True)
class MediaTypes:
    """The media types of a function: its codecs, and the negotiation of records and of lists.

    A body without ``Content-Type`` is JSON, unless the function's own media type is another:
    some bytes can be read as both.
    """

    codecs: Mapping[str, MediaCodec]
    record: Negotiation
    batch: Negotiation

    @classmethod
    def of(cls, spec: FunctionSpec, fn: Converter, *, data: str) -> MediaTypes:
        """Return the media types of a function; ``data`` is the name of its first parameter."""
        codecs = codecs_of(spec, data=data)
        assume = spec.kind == "json"
        lists = {name: codec for name, codec in codecs.items() if codec.many is not None}
        return cls(
            codecs=codecs,
            record=Negotiation(codecs, fn, assume_json=assume),
            batch=Negotiation(lists, fn, assume_json=assume),
        )


def media_ranges(accept: str) -> Iterator[tuple[str, float]]:
    """Return an ``Accept`` header's media ranges with their weights.

    Invalid elements are ignored, and so are all parameters but ``q``.
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


def _weight(ranges: Mapping[str, float], name: str) -> float:
    """Return the weight of a media type: that of the most specific range that matches it."""
    for media in (name, f"{name.partition('/')[0]}/*", "*/*"):
        if media in ranges:
            return ranges[media]
    return 0.0
