"""What the package of an avro function has besides that of a json function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mfimage.errors import SchemaError
from mfimage.function.decorator import DecoratedFunction


def given_schemas(
    function: DecoratedFunction, input_schema: Mapping[str, Any], output_schema: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return the schemas that a function was declared with, by serializer.

    Raises
    ------
    SchemaError
        When an avro function has none for its records or results, and none can be derived from its
        hints.
    """
    if function.kind != "avro":
        return {}
    from mfimage.function.avro_schema import derive_schema

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
    """Return the modules that a function needs and its code does not import -> why."""
    return {"fastavro": "reads and writes Avro"} if function.kind == "avro" else {}
