"""Validators and JSON Schemas of a signature, by pydantic."""

from __future__ import annotations

import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import PydanticSerializationError

from mfimage.errors import Fault, InputError, OutputError, SignatureError, ValueFault
from mfimage.function import hints, json_values
from mfimage.function.faults import explain

if typing.TYPE_CHECKING:
    from mfimage.function.signature import Signature

# Hints for which the validated value is the JSON value itself.
_PLAIN = (Any, dict, list, str, int, bool, None, type(None), dict[str, Any], list[Any])
RESULT = "result"

# Every digit to 0, "E" to "e", no "+": one search then finds any exponent of three digits.
_TO_ZERO = bytes.maketrans(b"123456789E", b"000000000e")


@dataclass(frozen=True, kw_only=True)
class Schema:
    """How one record comes in and its result goes out, both as JSON bytes."""

    data: str
    input: TypeAdapter[Any]
    output: TypeAdapter[Any]
    plain_output: bool

    @classmethod
    def of(cls, signature: Signature) -> Schema:
        """Make the validators.

        Raises
        ------
        SignatureError
            When pydantic can make no schema of a hint.
        """
        input_hint, output_hint = signature.record_hints()
        name = signature.fn.__name__
        return cls(
            data=signature.data,
            input=_adapter(input_hint, f"{name}: {signature.data}"),
            output=_adapter(output_hint, f"{name}: return"),
            plain_output=any(output_hint is plain or output_hint == plain for plain in _PLAIN),
        )

    def input_schema(self) -> dict[str, Any]:
        """Return the JSON Schema of one record."""
        return _told(self.data, lambda: self.input.json_schema(mode="validation"))

    def output_schema(self) -> dict[str, Any]:
        """Return the JSON Schema of one result."""
        return _told("return", lambda: self.output.json_schema(mode="serialization"))

    def parse(self, payload: bytes) -> Any:
        """Return the record in ``payload``, from anywhere, as the function's hints want it.

        Raises
        ------
        InputError
            With a path and a message for every place that does not fit.
        """
        value = _validate(self.input, payload, self.data, InputError)
        if may_be_infinite(payload):
            json_values.dumps(value, root=self.data, error=InputError)
        return value

    def accept(self, record: Any) -> Any:
        """Return a caller's record as the function's hints want it; ``InputError``."""
        return self.accept_json(json_values.dumps(record, root=self.data, error=InputError))

    def accept_json(self, payload: bytes) -> Any:
        """Do what ``accept`` does, for a record that ``json_values.dumps`` has written.

        What that refuses is not looked for again, as ``parse`` does: it costs more than the rest.
        """
        return _validate(self.input, payload, self.data, InputError)

    def dump(self, value: Any) -> bytes:
        """Return a function's result as JSON bytes.

        Raises
        ------
        OutputError
            When it does not fit the hints, or a part of it has no JSON form.
        """
        payload = json_values.dumps(value, root=RESULT)
        if not self.plain_output:
            return self._typed(value, payload)
        _validate(self.output, payload, RESULT, OutputError)
        return payload

    def result(self, value: Any) -> Any:
        """Return a function's result as the JSON value that every caller gets."""
        payload = json_values.dumps(value, root=RESULT)
        if not self.plain_output:
            return json_values.loads(self._typed(value, payload))
        return _validate(self.output, payload, RESULT, OutputError)

    def _typed(self, value: Any, payload: bytes) -> bytes:
        """Return the JSON form that the output's schema promises: its aliases, its defaults."""
        try:
            # As it is, when it can be: a model's JSON form is not always what it takes.
            checked = self.output.validate_python(value, strict=True)
        except ValidationError:
            checked = _validate(self.output, payload, RESULT, OutputError)
        try:
            return self.output.dump_json(checked, by_alias=True, warnings="error")
        except PydanticSerializationError as error:
            message = " ".join(str(error).split())
            raise OutputError([Fault(path=RESULT, message=message)]) from error


def _validate(adapter: TypeAdapter[Any], payload: bytes, root: str, error: type[ValueFault]) -> Any:
    try:
        return adapter.validator.validate_json(payload, strict=True)
    except ValidationError as failure:
        raise error(explain(failure, payload, root)) from None


def may_be_infinite(payload: bytes) -> bool:
    """Tell whether a number in ``payload`` may be NaN or past the largest float.

    Python's parsers take such tokens; JSON does not know them.
    """
    if b"NaN" in payload or b"Infinity" in payload:
        return True
    digits = payload.translate(_TO_ZERO, b"+")
    return b"0e000" in digits or b"0" * 308 in digits


def _adapter(hint: Any, where: str) -> TypeAdapter[Any]:
    try:
        adapter = TypeAdapter(hints.adaptable(hint))
        adapter.rebuild(raise_errors=True)  # else a name that is not there is told at a call
        return adapter
    except PydanticUserError as error:
        raise SignatureError(f"{where}: {error.message}") from None
    except NameError as error:
        raise SignatureError(f"{where}: {error}") from None


def _told(label: str, schema: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return schema()
    except PydanticUserError as error:
        raise SignatureError(f"{label}: no JSON Schema: {error.message}") from None
