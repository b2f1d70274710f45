"""The JSON serializer: values as JSON bytes, files of one record a line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO


class JsonSerializer:
    """JSON; in files, one record a line. The schemas are JSON Schemas."""

    name = "json"
    media_type = "application/json"
    suffixes: tuple[str, ...] = (".jsonl", ".ndjson")

    def schema(self, json_schema: Mapping[str, Any], *, name: str) -> Any:
        """Return the JSON Schema as it is."""
        return dict(json_schema)

    def dumps(self, value: Any, schema: Any = None) -> bytes:
        """Return JSON bytes; ``OutputError`` for what has no JSON form."""
        from mfimage.function import json_values

        return json_values.dumps(value, root="result")

    def loads(self, data: bytes, schema: Any = None) -> Any:
        """Return the value of JSON bytes; ``InputError`` when they are none."""
        return _load(data, "data")

    def read(self, file: BinaryIO, schema: Any = None) -> Iterator[Any]:
        """Yield the value of each line that is not blank."""
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _load(line, f"line {number}")

    @contextmanager
    def write(self, file: BinaryIO, schema: Any = None) -> Iterator[Callable[[Any], None]]:
        """Give a callable that writes a value as a line."""

        def append(record: Any) -> None:
            file.write(self.dumps(record) + b"\n")

        yield append


def _load(data: bytes, path: str) -> Any:
    from pydantic_core import from_json

    from mfimage.errors import Fault, InputError
    from mfimage.function import json_values
    from mfimage.function.schema import may_be_infinite

    try:
        value = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise InputError([Fault(path=path, message=f"not JSON: {error}")]) from None
    if may_be_infinite(data):
        json_values.dumps(value, root=path, error=InputError)
    return value
