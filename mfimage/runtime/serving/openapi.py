"""What FastAPI answers: the documentation of the function, the metrics, and unknown paths.

The two ``POST`` operations stand here for their documentation only; ``front.py`` answers them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from mfimage import __version__
from mfimage.package.spec import FunctionSpec
from mfimage.runtime.serving.codecs import Wire
from mfimage.runtime.serving.metrics import Board, render
from mfimage.runtime.serving.problems import MEDIA_TYPE, PROBLEM_SCHEMA, Problem

Responses = dict[int | str, dict[str, Any]]

_COMPONENTS = "#/components/schemas/"
_DEFINITIONS = "#/$defs/"
_OWN_SCHEMAS = ("About", "Problem", "Record", "Result", "Status")
_WRONG = {
    406: "`Accept` asks for none of the media types of the response.",
    413: "The body is larger than `MFIMAGE_MAX_BODY`.",
    415: "The body's media type is none of those of the request.",
    422: "The body is not what its media type says, or does not fit; `errors` says where.",
    500: "The function failed. The log has the reason under the request's id.",
    503: "The function is still loading, the server is shutting down, or too many requests wait.",
    504: "No answer within `MFIMAGE_TIMEOUT`.",
}


def build_pages(spec: FunctionSpec, board: Board, wires: Mapping[str, Wire]) -> FastAPI:
    """Return the app that answers everything but records and health.

    Parameters
    ----------
    spec : FunctionSpec
        The function.
    board : Board
        What was counted.
    wires : mapping of str to Wire
        What is spoken beside JSON, by media type.
    """
    app = FastAPI(
        title=spec.name,
        version=spec.digest.removeprefix("sha256:")[:12],
        description=f"{spec.description}\n\nBound to the Metaflow task `{spec.task}`.".strip(),
        redirect_slashes=False,
    )
    _add_pages(app, spec, board)
    _document(app, spec, wires)
    app.add_exception_handler(HTTPException, _problem)
    app.add_exception_handler(Exception, _failure)
    return app


class About(BaseModel):
    """What is served."""

    name: str
    digest: str
    pathspec: str
    version: str


class Status(BaseModel):
    """How the server is."""

    status: str


def _add_pages(app: FastAPI, spec: FunctionSpec, board: Board) -> None:
    about = About(name=spec.name, digest=spec.digest, pathspec=spec.task, version=__version__)
    not_ready: Responses = {503: _problem_response("Still loading, or shutting down.")}
    text: Responses = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

    @app.get("/", operation_id="about", summary="What is served", tags=["server"])
    def show_about() -> About:
        return about

    @app.get("/healthz", operation_id="healthz", summary="Alive", tags=["server"])
    def healthz() -> Status:
        raise NotImplementedError  # front.py

    @app.get("/readyz", operation_id="readyz", summary="Ready for requests", tags=["server"],
             responses=not_ready)  # fmt: skip
    def readyz() -> Status:
        raise NotImplementedError  # front.py

    @app.get("/metrics", operation_id="metrics", summary="Prometheus metrics", tags=["server"],
             responses=text, response_class=Response)  # fmt: skip
    def metrics(request: Request) -> Response:
        accept = request.headers.get("accept", "")
        content, media_type = render(board, about.model_dump(), accept)
        return Response(content, media_type=media_type)


@dataclass(frozen=True, kw_only=True)
class _Operation:
    """What the documentation says of one ``POST``; bodies by media type."""

    path: str
    name: str
    summary: str
    record: dict[str, Any]
    answer: dict[str, Any]
    answer_is: str


def _document(app: FastAPI, spec: FunctionSpec, wires: Mapping[str, Wire]) -> None:
    """Add the function's two operations, and the schemas they speak of."""
    schemas = Schemas()
    problems: Responses = {status: _problem_response(text) for status, text in _WRONG.items()}
    operations = list(_operations(spec, schemas, wires))
    for operation in operations:
        answer: dict[str, Any] = {"description": operation.answer_is}
        app.add_api_route(
            operation.path,
            _answered_before,
            methods=["POST"],
            name=operation.name,
            operation_id=operation.name,
            summary=operation.summary,
            description=spec.description,
            tags=["function"],
            responses={200: answer, **problems},
            openapi_extra={"requestBody": {"required": True, "content": {}}},
        )

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
            )
            components = document.setdefault("components", {}).setdefault("schemas", {})
            components.update(schemas.components)
            # Behind FastAPI's back, which drops every null: of examples, and Avro's defaults.
            for operation in operations:
                post = document["paths"][operation.path]["post"]
                post["requestBody"]["content"] = operation.record
                post["responses"]["200"]["content"] = operation.answer
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI documents it


def _operations(
    spec: FunctionSpec, schemas: Schemas, wires: Mapping[str, Wire]
) -> Iterator[_Operation]:
    record = schemas.add("Record", spec.input_schema)
    result = schemas.add("Result", spec.output_schema)
    schemas.components["Problem"] = PROBLEM_SCHEMA
    summary = (spec.description.strip().splitlines() or [spec.name])[0].rstrip(".")
    inputs = [example.input for example in spec.examples]
    outputs = [example.output for example in spec.examples]
    yield _Operation(
        path=f"/{spec.name}",
        name=spec.name,
        summary=summary,
        record=_json(record, inputs) | _others(wires.values(), "input"),
        answer=_json(result, outputs) | _others(wires.values(), "output"),
        answer_is="The result.",
    )
    lists = [wire.many for wire in wires.values() if wire.many is not None]
    alternatives = (("result", result), ("error", {"$ref": _COMPONENTS + "Problem"}))
    item = {
        "oneOf": [
            {"type": "object", "required": [key], "properties": {key: schema}}
            for key, schema in alternatives
        ]
    }
    yield _Operation(
        path=f"/{spec.name}/batch",
        name=f"{spec.name}_batch",
        summary=f"{summary} for a list of records",
        record=_json({"type": "array", "items": record}, [inputs] if inputs else [])
        | _others(lists, "input"),
        answer=_json(
            {"type": "array", "items": item},
            [[{"result": output} for output in outputs]] if outputs else [],
        )
        | _others(lists, "output"),
        answer_is="For each record, in order, its result or its error.",
    )


def _answered_before() -> None:
    raise NotImplementedError  # front.py


def _json(schema: Mapping[str, Any], examples: Sequence[Any]) -> dict[str, Any]:
    media: dict[str, Any] = {"schema": schema}
    if examples:
        media["examples"] = {f"example {n}": {"value": v} for n, v in enumerate(examples, 1)}
    return {"application/json": media}


def _others(wires: Iterable[Wire], side: Literal["input", "output"]) -> dict[str, Any]:
    """Document media types that are no JSON; each one's own schema, in which no OpenAPI is."""
    return {
        wire.media_type: {
            # A body that is no JSON has no type: the media type says all (OpenAPI 3.1).
            "schema": {"contentMediaType": wire.media_type},
            f"x-{wire.serializer.name}-schema": wire.input if side == "input" else wire.output,
        }
        for wire in wires
    }


def _problem_response(description: str) -> dict[str, Any]:
    schema = {"$ref": _COMPONENTS + "Problem"}
    return {"description": description, "content": {MEDIA_TYPE: {"schema": schema}}}


class Schemas:
    """JSON Schemas as an OpenAPI document holds them: definitions apart, by unique names."""

    def __init__(self) -> None:
        self.components: dict[str, Any] = {}

    def add(self, name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
        """Add a schema with its definitions; return what refers to it."""
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
        """Return a name for a definition that nothing else in the document has."""
        if name not in self.components and name not in _OWN_SCHEMAS:
            return name
        name = f"{prefix}{name}"
        while name in self.components or name in others:
            name += "_"
        return name


def _redirect(schema: Any, names: Mapping[str, str]) -> None:
    """Let every reference to a definition follow it to where it is now."""
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


def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    details = {
        404: "no such path; /docs lists what there is",
        405: f"{request.method} is not answered here",
    }
    headers = [
        (key.lower().encode(), value.encode()) for key, value in (error.headers or {}).items()
    ]
    detail = details.get(error.status_code, str(error.detail))
    return _response(request, Problem(error.status_code, detail, headers=headers))


def _failure(request: Request, error: Exception) -> Response:
    return _response(request, Problem(500, "the server failed; the log has the reason"))


def _response(request: Request, problem: Problem) -> Response:
    content = problem.body(request.scope.get("mfimage.request_id"))
    response = Response(content, status_code=problem.status, media_type=MEDIA_TYPE)
    response.raw_headers += problem.headers
    return response
