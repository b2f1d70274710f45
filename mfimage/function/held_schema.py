"""Records and results held to Avro schemas that were given outright, in whichever form they come.

JSON is held to them as well, so that a function gets the same value however it is called.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

from mfimage.errors import InputError, OutputError
from mfimage.function import json_values
from mfimage.function.avro import Codec
from mfimage.function.avro_json import json_schema_of
from mfimage.function.schema import RESULT, Schema

if TYPE_CHECKING:
    from mfimage.function.signature import Signature

# JSON Schemas that say less than any Avro schema.
_OPEN: tuple[dict[str, Any], ...] = ({}, {"type": "object"})


@dataclass(frozen=True, kw_only=True)
class HeldSchema(Schema):
    """A function's validators behind Avro schemas.

    Attributes
    ----------
    held_input, held_output : Codec or None
        What records and results are held to beside the hints.
    """

    held_input: Codec | None
    held_output: Codec | None

    @classmethod
    def of(cls, signature: Signature) -> HeldSchema:
        """Make the validators; ``SignatureError`` as ``Schema.of`` raises it."""
        plain = Schema.of(signature)
        codecs = {label: Codec(schema) for label, schema in signature.schemas.items()}
        return cls(
            data=plain.data,
            input=plain.input,
            output=plain.output,
            plain_output=plain.plain_output,
            held_input=codecs.get("input"),
            held_output=codecs.get("output"),
        )

    def input_schema(self) -> dict[str, Any]:
        """Return the JSON Schema of one record: of Avro's when the hints say nothing."""
        return _narrowed(super().input_schema(), self.held_input)

    def output_schema(self) -> dict[str, Any]:
        """Return the JSON Schema of one result."""
        return _narrowed(super().output_schema(), self.held_output)

    def parse(self, payload: bytes) -> Any:
        """Return the record in ``payload``; ``InputError`` as ``Schema.parse`` raises it."""
        return super().parse(self._held(payload))

    def accept_json(self, payload: bytes) -> Any:
        """Do what ``accept`` does, for a record that ``json_values.dumps`` has written."""
        return super().accept_json(self._held(payload))

    def _held(self, payload: bytes) -> bytes:
        if self.held_input is None:
            return payload
        try:
            value = from_json(payload)
        except ValueError:
            return payload  # who parses it says what is wrong
        held = self.held_input.hold(value, root=self.data, error=InputError)
        return json_values.dumps(held, root=self.data, error=InputError)

    def dump(self, value: Any) -> bytes:
        """Return a function's result as JSON bytes; ``OutputError`` when it does not fit."""
        payload = super().dump(value)
        if self.held_output is None:
            return payload
        plain = json_values.loads(payload)
        held = self.held_output.hold(plain, root=RESULT, error=OutputError)
        return json_values.dumps(held, root=RESULT)

    def result(self, value: Any) -> Any:
        """Return a function's result as the JSON value that every caller gets."""
        return json_values.loads(self.dump(value))


def _narrowed(schema: dict[str, Any], held: Codec | None) -> dict[str, Any]:
    said = {key: value for key, value in schema.items() if key != "title"}
    if said.get("additionalProperties") is True:
        del said["additionalProperties"]
    return json_schema_of(held.type) if held is not None and said in _OPEN else schema
