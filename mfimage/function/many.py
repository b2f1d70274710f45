"""Many records at once, for a batch function: one call of the validator instead of one for each.

Only what is good in every place goes this way. Whoever gets None looks at each by itself, and gives
the same values, or says what is wrong with which.
"""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import SchemaError, SchemaValidator, core_schema

from mfimage.errors import ValueFault
from mfimage.function import json_values
from mfimage.function.schema import RESULT, Schema


class Many:
    """How lists of records come in and lists of results go out.

    Parameters
    ----------
    schema : Schema
        How one does.
    """

    def __init__(self, schema: Schema) -> None:
        self._input = _list_of(schema.input)
        self._output = _list_of(schema.output) if schema.plain_output else None

    def accept(self, lines: bytes) -> list[Any] | None:
        """Return the records that ``json_values.dumps`` has written, one a line."""
        if self._input is None:
            return None
        try:
            found: list[Any] = self._input.validate_json(_joined(lines), strict=True)
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


def _joined(lines: bytes) -> bytes:
    return b"[%b]" % lines.replace(b"\n", b",")
