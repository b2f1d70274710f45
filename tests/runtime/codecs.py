"""Forms beside JSON, for the server to speak."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

LITERAL = "application/x-literal"


class Literals:
    """Python's literals: a serializer that knows nothing of our errors."""

    name = "literal"
    media_type = LITERAL

    def schema(self, json_schema: Mapping[str, Any], *, name: str) -> Any:
        return {"of": json_schema.get("type"), "name": name}

    def dumps(self, value: Any, schema: Any) -> bytes:
        return repr(value).encode()

    def loads(self, data: bytes, schema: Any) -> Any:
        return ast.literal_eval(data.decode())
