"""The routes of the function: ``POST /<name>`` and ``POST /<name>/batch``."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

from mfimage.package.spec import CallableSpec
from mfimage.runtime.calls.queue import Outcome
from mfimage.runtime.serving.body import (
    encode_outcomes,
    join_outcomes,
    read_body,
    split_list,
    whole_body,
)  # fmt: skip
from mfimage.runtime.serving.content import JSON, MediaCodec
from mfimage.runtime.serving.problems import MEDIA_TYPE, problem_of
from mfimage.runtime.serving.route import (
    Described,
    Expectation,
    HttpRequest,
    Operation,
    Response,
    Route,
)  # fmt: skip
from mfimage.runtime.serving.served import Served
from mfimage.runtime.serving.service import Service

# A list larger than this is split in a thread.
_LARGE = 64 * 1024

_PROBLEMS = {
    406: "`Accept` asks for none of the media types of the response.",
    408: "The body did not arrive within `MFIMAGE_TIMEOUT`.",
    413: "The body is larger than `MFIMAGE_MAX_BODY`.",
    415: "The body's media type is none of those of the request.",
    422: "The body is not what its media type says, or does not fit; `errors` says where.",
    500: "The function failed. The log has the reason under the request's id.",
    503: "The function is still loading, the server is shutting down, or too many requests wait.",
    504: "No answer within `MFIMAGE_TIMEOUT`.",
}

log = logging.getLogger("mfimage.serving")


def routes(served: Served) -> tuple[Route, ...]:
    """Return the routes."""
    return tuple(route for name, spec in served.specs.items() for route in _routes(name, spec))


def _routes(name: str, spec: CallableSpec) -> tuple[Route, ...]:
    summary = (spec.description.strip().splitlines() or [name])[0].rstrip(".")
    documented = partial(
        Operation, tag="function", description=spec.description, problems=_PROBLEMS
    )
    identifier = name.replace("/", ".")
    refused = partial(Expectation, media_type=MEDIA_TYPE)
    return (
        Route(
            name="record",
            path=f"/{name}",
            handler=_record,
            function=name,
            method="POST",
            endpoint="record",
            below="",
            operation=documented(
                id=identifier,
                summary=summary,
                request=_record_request,
                response=_record_response,
                success="The result.",
            ),
            expectations=(
                refused(name="malformed-body", status=422, body=b"{"),
                refused(name="content-type", status=415, body=b"a,b", content_type="text/csv"),
            ),
        ),
        Route(
            name="batch",
            path=f"/{name}/batch",
            handler=_batch,
            function=name,
            method="POST",
            endpoint="batch",
            below="/batch",
            operation=documented(
                id=f"{identifier}_batch",
                summary=f"{summary} for a list of records",
                request=_batch_request,
                response=_batch_response,
                success="For each record, in order, its result or its error.",
            ),
        ),
    )


async def _record(service: Service, request: HttpRequest) -> Response | BaseException:
    assert service.media_types is not None
    negotiated = service.media_types.record.negotiate(request.headers)
    calls = service.admit()
    body = whole_body(request, service)
    if body is None:
        body = await calls.arrive(request.started, read_body(request, service))
    outcome = await calls.run(body, request.receive, request.started, negotiated.converter)
    if isinstance(outcome, bytes):
        return Response(outcome, negotiated.headers)
    return outcome


async def _batch(service: Service, request: HttpRequest) -> Response:
    assert service.media_types is not None
    negotiated = service.media_types.batch.negotiate(request.headers)
    calls = service.admit()
    body = whole_body(request, service)
    if body is not None and negotiated.reader is None and len(body) <= _LARGE:
        payloads = split_list(body)
    else:
        reading = _read_list(service, request, negotiated.reader, body)
        payloads = await calls.arrive(request.started, reading)
    outcomes: Sequence[Outcome] = await calls.run_many(
        payloads, request.receive, request.started, at_once=service.settings.max_batch
    )
    if negotiated.writer is None:
        made = join_outcomes(outcomes)
    else:
        encoding = service.loop.run_in_executor(None, encode_outcomes, negotiated.writer, outcomes)
        outcomes, made = await encoding
    _log_failed_items(service.name, outcomes, request.id)
    return Response(made, negotiated.headers)


async def _read_list(
    service: Service, request: HttpRequest, codec: MediaCodec | None, body: bytes | None
) -> list[bytes]:
    if body is None:
        body = await read_body(request, service)
    if codec is not None:
        assert codec.many is not None
        body = await service.loop.run_in_executor(None, codec.many.loads, body)
    if len(body) > _LARGE:
        return await service.loop.run_in_executor(None, split_list, body)
    return split_list(body)


def _log_failed_items(name: str, outcomes: Sequence[Outcome], request_id: str) -> None:
    errors = (item for item in outcomes if not isinstance(item, bytes))
    failed = [error for error in errors if problem_of(error).status == 500]
    if failed:
        message = "%s failed for %d of %d records; the first reason follows"
        arguments = (name, len(failed), len(outcomes))
        log.error(message, *arguments, exc_info=failed[0], extra={"request_id": request_id})


# Documentation: the request and response bodies, by media type


def _record_request(it: Described) -> Mapping[str, Any]:
    inputs = [example.input for example in it.spec.examples]
    return _json(it.record, inputs) | _others(it, "input")


def _record_response(it: Described) -> Mapping[str, Any]:
    outputs = [example.output for example in it.spec.examples]
    return _json(it.result, outputs) | _others(it, "output")


def _batch_request(it: Described) -> Mapping[str, Any]:
    inputs = [example.input for example in it.spec.examples]
    schema = {"type": "array", "items": it.record}
    return _json(schema, [inputs] if inputs else []) | _others(it, "input", many=True)


def _batch_response(it: Described) -> Mapping[str, Any]:
    outcomes = [{"result": example.output} for example in it.spec.examples]
    items = [
        {"type": "object", "required": [key], "properties": {key: schema}}
        for key, schema in (("result", it.result), ("error", it.problem))
    ]
    schema = {"type": "array", "items": {"oneOf": items}}
    return _json(schema, [outcomes] if outcomes else []) | _others(it, "output", many=True)


def _json(schema: Mapping[str, Any], examples: Sequence[Any]) -> dict[str, Any]:
    media: dict[str, Any] = {"schema": schema}
    if examples:
        media["examples"] = {f"example {n}": {"value": v} for n, v in enumerate(examples, 1)}
    return {JSON: media}


def _others(
    it: Described, side: Literal["input", "output"], *, many: bool = False
) -> dict[str, Any]:
    """Document media types beside JSON: OpenAPI has only room for the serializer's own schema."""
    codecs = [each.many if many else each for each in it.codecs.values()]
    return {
        codec.media_type: {
            # A body that is not JSON has no type: the media type says all (OpenAPI 3.1).
            "schema": {"contentMediaType": codec.media_type},
            f"x-{codec.serializer.name}-schema": codec.input if side == "input" else codec.output,
        }
        for codec in codecs
        if codec is not None
    }
