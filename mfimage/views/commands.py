"""How an image is run: what to type, for terminals and pages."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

FILES = ("oci:", "oci-archive:", "docker-archive:")
_DEPTH = 5  # of a record that is made from a schema


def how_to_run(
    name: str, *, target: str, title: str, function: str, record: Any
) -> Iterator[tuple[str, str]]:
    """Yield what each command is for, and a line for a shell.

    ``title`` names an image that has no name of its own; ``function`` is called with ``record``.
    """
    run = shlex.quote(name)
    if name.startswith(FILES):
        # A label, which can be anything.
        title = (title or "image").lower().rpartition("/")[2]
        run = shlex.quote(f"registry.example.com/{title}:1")
        yield "push", f"mfimage push {shlex.quote(name)} {run}"
    if target == "fastapi":
        yield "run", f"docker run --rm -p 8000:8000 {run}"
        yield "call", f"curl -s localhost:8000/{shlex.quote(function)} -d {quoted(record)}"
    elif target == "ray":
        folders = "--input /data/records.jsonl --output /data/results"
        user = '--user "$(id -u)" -v "$PWD/data:/data"'
        yield "run", f"docker run --rm {user} {run} batch {folders}"
    elif target == "step":
        yield "run", f"python flow.py run --with docker:image={run}"
    else:
        yield "run", f"docker run --rm -it {run}"


def quoted(record: Any) -> str:
    """Return a record as JSON, quoted for a shell."""
    return shlex.quote(json.dumps(record, ensure_ascii=False))


_SAMPLES: Mapping[str, Any] = {"boolean": False, "array": [], "object": {}, "null": None}


def sample(schema: Any) -> Any:
    """Return a value that is valid by most schemas, to be edited: the required members."""
    try:
        return _sample(schema, schema.get("$defs") or {}, _DEPTH)
    except (AttributeError, LookupError, TypeError):  # a label can be anything
        return {}


def _sample(schema: Any, defs: Mapping[str, Any], depth: int) -> Any:
    if not isinstance(schema, Mapping) or not depth:
        return {}
    given = [schema[key] for key in ("const", "default") if key in schema]
    given += [next(iter(schema.get(key) or ()), ...) for key in ("examples", "enum")]
    for value in given:
        if value is not ...:
            return value
    inner = [defs.get(str(schema["$ref"]).rpartition("/")[2])] if "$ref" in schema else []
    for key in ("anyOf", "oneOf", "allOf"):
        inner += schema.get(key) or []
    if inner:
        return _sample(inner[0], defs, depth - 1)
    if members := schema.get("properties"):
        names = schema.get("required") or members
        return {name: _sample(members.get(name), defs, depth - 1) for name in names}
    if "items" in schema:
        return [_sample(schema["items"], defs, depth - 1)] * max(1, schema.get("minItems", 1))
    kind = schema.get("type", "object")
    return _scalar(kind if isinstance(kind, str) else kind[0], schema)


def _scalar(kind: str, schema: Mapping[str, Any]) -> Any:
    if kind in ("integer", "number"):
        return _number(schema, 1 if kind == "integer" else 1.0)
    if kind == "string":
        return "x" * schema.get("minLength", 0)
    return _SAMPLES.get(kind, {})


def _number(schema: Mapping[str, Any], one: Any) -> Any:
    """Return a number within the bounds: zero if it is, else the nearest bound."""
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    low = schema.get("minimum", -math.inf if above is None else above)
    high = schema.get("maximum", math.inf if below is None else below)
    found = min(max(0 * one, low), high)
    if found in (above, below):
        inward = one if found == above else -one
        found = low + (high - low) / 2 if high - low < 2 else found + inward
    return type(one)(found)
