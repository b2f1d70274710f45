"""The OpenAPI document, made from the routes."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mfimage.runtime.serving.content import MediaCodec
from mfimage.runtime.serving.problems import MEDIA_TYPE, PROBLEM_SCHEMA
from mfimage.runtime.serving.route import Described, Operation, Route
from mfimage.runtime.serving.served import Served

_VERSION = "3.1.0"
_COMPONENTS = "#/components/schemas/"
_DEFINITIONS = "#/$defs/"
_PROBLEM = {"$ref": f"{_COMPONENTS}Problem"}
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]")

# Media types beside JSON, by function.
Codecs = Mapping[str, Mapping[str, MediaCodec]]


def render(served: Served, codecs: Codecs, routes: Sequence[Route], server: str = "") -> bytes:
    """Return the document as JSON; ``server`` is the URL below which its paths are."""
    made = document(served, codecs, routes)
    if server:
        made["servers"] = [{"url": server}]
    return json.dumps(made, ensure_ascii=False, separators=(",", ":")).encode()


def document(served: Served, codecs: Codecs, routes: Sequence[Route]) -> dict[str, Any]:
    """Return the document of the routes that are to be documented."""
    operations = [
        (route, route.operation)
        for route in routes
        if route.operation is not None and route.documented
    ]
    given = {name: schema for _, each in operations for name, schema in each.schemas.items()}
    schemas = Schemas(reserved=given)
    schemas.components.update(sorted(given.items()))
    described = {
        name: Described(
            spec=spec,
            codecs=codecs.get(name, {}),
            record=schemas.add(_component(served, name, "Record"), spec.input_schema),
            result=schemas.add(_component(served, name, "Result"), spec.output_schema),
            problem=_PROBLEM,
        )
        for name, spec in served.specs.items()
    }
    schemas.components["Problem"] = PROBLEM_SCHEMA
    any_function = next(iter(described.values()))
    paths: dict[str, dict[str, Any]] = {}
    for route, operation in operations:
        of = any_function if route.function is None else described[route.function]
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(operation, of)
    components = {"schemas": schemas.components}
    return {"openapi": _VERSION, "info": _info(served), "paths": paths, "components": components}


def _component(served: Served, name: str, kind: str) -> str:
    return f"{_NOT_IN_NAMES.sub('_', name)}.{kind}" if served.several else kind


def _info(served: Served) -> dict[str, str]:
    if served.several:
        digests = "".join(spec.digest for spec in served.specs.values())
        description, version = "", hashlib.sha256(digests.encode()).hexdigest()
    else:
        (spec,) = served.specs.values()
        description = f"{spec.description}\n\nBound to the Metaflow task `{spec.task}`.".strip()
        version = spec.digest.removeprefix("sha256:")
    return {"title": served.title, "description": description, "version": version[:12]}


def _operation(operation: Operation, described: Described) -> dict[str, Any]:
    made: dict[str, Any] = {"tags": [operation.tag], "summary": operation.summary}
    if operation.description:
        made["description"] = operation.description
    made["operationId"] = operation.id
    if operation.request is not None:
        made["requestBody"] = {"content": operation.request(described), "required": True}
    success = {"description": operation.success, "content": operation.response(described)}
    problem = {MEDIA_TYPE: {"schema": described.problem}}
    made["responses"] = {"200": success} | {
        str(status): {"description": text, "content": problem}
        for status, text in operation.problems.items()
    }
    return made


class Schemas:
    """JSON Schemas as components of a document; definitions get unique, unreserved names."""

    def __init__(self, reserved: Collection[str] = ()) -> None:
        self.components: dict[str, Any] = {}
        self._reserved = {"Problem", "Record", "Result", *reserved}

    def add(self, name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
        """Add a schema with its definitions; return a reference to it."""
        own = dict(copy.deepcopy(schema))
        definitions = own.pop("$defs", {})
        names = {old: self._free(name, old, definitions) for old in definitions}
        for old, definition in definitions.items():
            self.components[names[old]] = definition
        for part in (own, *definitions.values()):
            _redirect(part, names)
        self.components[name] = own
        return {"$ref": _COMPONENTS + name}

    def _free(self, prefix: str, name: str, others: Mapping[str, Any]) -> str:
        """Return a name for a definition that is unique in the document."""
        if name not in self.components and name not in self._reserved:
            return name
        name = f"{prefix}{name}"
        while name in self.components or name in others:
            name += "_"
        return name


def _redirect(schema: Any, names: Mapping[str, str]) -> None:
    """Point every reference to a definition to where it is now."""
    if isinstance(schema, list):
        for item in schema:
            _redirect(item, names)
    elif isinstance(schema, dict):
        for key, value in schema.items():
            if key in ("const", "default", "enum", "examples"):
                continue  # values, whatever they look like
            # Of "$ref", and of a discriminator's "mapping".
            if isinstance(value, str) and value.startswith(_DEFINITIONS):
                name = value.removeprefix(_DEFINITIONS)
                schema[key] = _COMPONENTS + names.get(name, name)
            else:
                _redirect(value, names)
