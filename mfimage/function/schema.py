"""Validators and JSON Schemas of a function's hints, by pydantic: of one record, and of many."""

from __future__ import annotations

import sys
import threading
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import (
    PydanticSerializationError,
    SchemaError,
    SchemaValidator,
    core_schema,
    from_json,
)

from mfimage.errors import Fault, InputError, OutputError, SignatureError, ValueFault
from mfimage.function import json as json_values
from mfimage.function.avro import Codec
from mfimage.function.faults import explain
from mfimage.function.json import may_be_infinite

# Hints for which the validated value is the JSON value itself.
_PLAIN = (Any, dict, list, str, int, bool, None, type(None), dict[str, Any], list[Any])
RESULT = "result"
_LOCK = threading.Lock()


# JSON Schemas that every Avro schema is narrower than.
_OPEN: tuple[dict[str, Any], ...] = ({}, {"type": "object"})


@dataclass(frozen=True, kw_only=True)
class Schema:
    """Validators of one record and of its result, both JSON bytes.

    ``data`` is the start of the paths in input errors. JSON is validated against given Avro schemas
    as well, so that a function gets the same value in either form. With ``plain_output``, a
    validated result is the JSON value itself. ``instances`` also validates the fields of
    dataclasses, which check nothing when they are made.
    """

    data: str
    input: TypeAdapter[Any]
    output: TypeAdapter[Any]
    plain_output: bool
    instances: SchemaValidator | None
    avro_input: Codec | None = None
    avro_output: Codec | None = None

    @classmethod
    def of(
        cls, record: Any, result: Any, *, function: str, data: str, avro: Mapping[str, Any]
    ) -> Schema:
        """Make the validators; ``SignatureError`` if pydantic has no schema for a hint."""
        codecs = {label: Codec(schema) for label, schema in avro.items()}
        output = _adapter(result, f"{function}: return")
        checking = _checking_instances(output.core_schema)
        return cls(
            data=data,
            input=_adapter(record, f"{function}: {data}"),
            output=output,
            instances=SchemaValidator(checking) if checking != output.core_schema else None,
            plain_output=any(result is plain or result == plain for plain in _PLAIN),
            avro_input=codecs.get("input"),
            avro_output=codecs.get("output"),
        )

    def input_schema(self) -> dict[str, Any]:
        """Return the JSON Schema of one record."""
        made = _json_schema(self.data, lambda: self.input.json_schema(mode="validation"))
        return _narrowed(made, self.avro_input)

    def output_schema(self) -> dict[str, Any]:
        """Return the JSON Schema of one result."""
        made = _json_schema("return", lambda: self.output.json_schema(mode="serialization"))
        return _narrowed(made, self.avro_output)

    def parse(self, payload: bytes) -> Any:
        """Return the record in ``payload``, which comes from anywhere, as the hints have it."""
        payload = payload.removeprefix(BOM_UTF8)
        value = self.accept_json(payload)
        if may_be_infinite(payload):
            json_values.dumps(value, root=self.data, error=InputError)
        return value

    def accept(self, record: Any) -> Any:
        """Return a caller's record as the hints have it; ``InputError``."""
        return self.accept_json(json_values.dumps(record, root=self.data, error=InputError))

    def accept_json(self, payload: bytes) -> Any:
        """Do what ``accept`` does, for a record that ``json.dumps`` has encoded.

        NaN and infinities, which it refuses, are not searched again: that costs more than the rest.
        """
        if self.avro_input is not None:
            payload = _by_avro(self.avro_input, payload, self.data, InputError)
        return _validate(self.input, payload, self.data, InputError)

    def dump(self, value: Any) -> bytes:
        """Return a function's result as JSON bytes; ``OutputError`` where it does not fit."""
        if self.plain_output:
            payload = json_values.dumps(value, root=RESULT)
            _validate(self.output, payload, RESULT, OutputError)
        else:
            payload = self._typed(value)
        if self.avro_output is not None:
            payload = _by_avro(self.avro_output, payload, RESULT, OutputError)
        return payload

    def result(self, value: Any) -> Any:
        """Return a function's result as the JSON value that every caller gets."""
        if self.avro_output is not None or not self.plain_output:
            return json_values.loads(self.dump(value))
        payload = json_values.dumps(value, root=RESULT)
        return _validate(self.output, payload, RESULT, OutputError)

    def _typed(self, value: Any) -> bytes:
        """Return the JSON form of the output's schema: with its aliases and defaults."""
        refusal = None
        try:
            payload = json_values.dumps(value, root=RESULT, default=json_values.typed)
        except OutputError as error:
            refusal = error
            # NaN, for one, has no form whatever the hint is.
            json_values.dumps(value, root=RESULT, default=json_values.opaque)
        # The value itself if possible: a model does not always accept its own JSON form.
        with suppress(ValidationError, PydanticSerializationError):
            checked = self.output.validate_python(value, strict=True)
            if self.instances is not None:
                self.instances.validate_python(checked, strict=True)
            return self._written(checked)
        # What validating changes, as Base64Bytes does, is only valid as it is written.
        with suppress(ValidationError, PydanticSerializationError):
            written = self._written(value)
            (self.instances or self.output.validator).validate_json(written, strict=True)
            return written
        if refusal is not None:
            raise refusal
        checked = _validate(self.output, payload, RESULT, OutputError)
        try:
            return self._written(checked)
        except PydanticSerializationError as error:
            message = " ".join(str(error).split())
            raise OutputError([Fault(path=RESULT, message=message)]) from error

    def _written(self, value: Any) -> bytes:
        return self.output.dump_json(value, by_alias=True, warnings="error")


def _checking_instances(schema: Any) -> Any:
    """Return a copy of a core schema by which the fields of dataclass instances are validated."""
    if isinstance(schema, list | tuple):
        return type(schema)(map(_checking_instances, schema))
    if not isinstance(schema, dict):
        return schema
    made = {key: _checking_instances(each) for key, each in schema.items()}
    if made.get("type") == "dataclass" and "__pydantic_validator__" not in vars(made["cls"]):
        made |= {"revalidate_instances": "always", "post_init": False}
    elif made.get("type") == "dataclass-args":
        kept = [each for each in made["fields"] if not each.get("init_only")]
        made |= {"fields": [{**each, "init": True} for each in kept], "collect_init_only": False}
    return made


def _validate(adapter: TypeAdapter[Any], payload: bytes, root: str, error: type[ValueFault]) -> Any:
    try:
        return adapter.validator.validate_json(payload, strict=True)
    except ValidationError as failure:
        raise error(explain(failure, payload, root)) from None


def _adapter(hint: Any, where: str) -> TypeAdapter[Any]:
    with _typed_dicts():
        try:
            adapter = TypeAdapter(hint)
            adapter.rebuild(raise_errors=True)  # else an unknown name fails at a call
            return adapter
        except (PydanticUserError, NameError) as error:
            raise SignatureError(f"{where}: {getattr(error, 'message', error)}") from None


@contextmanager
def _typed_dicts() -> Iterator[None]:
    """Let pydantic accept ``typing.TypedDict`` before Python 3.12.

    It refuses them for mistakes in ``__required_keys__``, but the marks of members win there.
    """
    if sys.version_info >= (3, 12):
        yield
        return
    from pydantic._internal import _generate_schema

    with _LOCK:
        before = _generate_schema._SUPPORTS_TYPEDDICT
        _generate_schema._SUPPORTS_TYPEDDICT = True
        try:
            yield
        finally:
            _generate_schema._SUPPORTS_TYPEDDICT = before


def _json_schema(label: str, schema: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return schema()
    except PydanticUserError as error:
        raise SignatureError(f"{label}: no JSON Schema: {error.message}") from None


def _narrowed(schema: dict[str, Any], codec: Codec | None) -> dict[str, Any]:
    """Return the Avro schema's JSON Schema where the hints allow any value or object."""
    known = {key: value for key, value in schema.items() if key != "title"}
    if known.get("additionalProperties") is True:
        del known["additionalProperties"]
    return codec.json_schema() if codec is not None and known in _OPEN else schema


def _by_avro(codec: Codec, payload: bytes, root: str, error: type[ValueFault]) -> bytes:
    """Return the JSON bytes that a payload reads as once it was Avro."""
    try:
        value = from_json(payload)
    except ValueError:
        return payload  # the parser's error says why
    return json_values.dumps(codec.normalize(value, root=root, error=error), root=root, error=error)


class Many:
    """Validators of many records at once, for a batch function.

    They accept what is good in every place. When they return None, each record is validated
    alone, with the same values, or an error that names the place.
    """

    def __init__(self, schema: Schema) -> None:
        self._input = _list_of(schema.input)
        self._output = _list_of(schema.output) if schema.plain_output else None

    def accept(self, lines: bytes) -> list[Any] | None:
        """Return the records that ``json.dumps`` has encoded, one per line."""
        if self._input is None:
            return None
        joined = b"[%b]" % lines.replace(b"\n", b",")
        try:
            found: list[Any] = self._input.validate_json(joined, strict=True)
        except ValidationError:
            return None
        return found

    def dump(self, results: list[Any]) -> bytes | None:
        """Return results as one JSON array."""
        if self._output is None:
            return None
        try:
            payload = json_values.dumps(results, root=RESULT)
            self._output.validate_json(payload, strict=True)
        except (ValidationError, ValueFault):
            return None
        return payload


def _list_of(adapter: TypeAdapter[Any]) -> SchemaValidator | None:
    try:
        return SchemaValidator(core_schema.list_schema(adapter.core_schema, strict=True))
    except SchemaError:
        return None
