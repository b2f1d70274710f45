"""What an avro function's package has beside that of a json function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mfimage.errors import SchemaError
from mfimage.function.avro_schema import derive_schema
from mfimage.function.decorator import DecoratedFunction


def given_schemas(
    function: DecoratedFunction, input_schema: Mapping[str, Any], output_schema: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return the schemas that a function was given, by serializer.

    Raises
    ------
    SchemaError
        When an avro function has none for its records or results, and none can be made of its
        hints.
    """
    if function.kind != "avro":
        return {}
    given = dict(function.signature.schemas)
    name = function.__name__
    for label, root, schema in (
        ("input", function.signature.data, input_schema),
        ("output", "result", output_schema),
    ):
        if label not in given:
            try:
                derive_schema(schema, name=name, root=root)
            except SchemaError as error:
                raise SchemaError(f"{name}: {error}", hint=error.hint) from None
    return {"avro": given} if given else {}


def needed_modules(function: DecoratedFunction) -> dict[str, str]:
    """Return what a function needs that its code does not import -> why."""
    return {"fastavro": "reads and writes Avro"} if function.kind == "avro" else {}
