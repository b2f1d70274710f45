"""The routes that describe the server: what it serves, health, metrics."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from mfimage import __version__
from mfimage.package.spec import FunctionSpec
from mfimage.runtime.serving.content import JSON
from mfimage.runtime.serving.problems import unavailable
from mfimage.runtime.serving.route import (
    Content,
    Expectation,
    Handler,
    HttpRequest,
    Operation,
    Response,
    Route,
)  # fmt: skip
from mfimage.runtime.serving.service import Service


def routes(spec: FunctionSpec) -> tuple[Route, ...]:
    """Return the routes."""
    return (
        Route(
            name="about",
            path="/",
            handler=_about,
            below="",
            operation=Operation(
                id="about",
                summary="What is served",
                response=_refer("About"),
                schemas={"About": _object("About", "What is served.", *about(spec))},
            ),
            expectations=(Expectation(name="identity", verify=_verify_identity),),
        ),
        _probe("healthz", _healthz, "Alive", {}),
        _probe("readyz", _readyz, "Ready for requests", {503: "Still loading, or shutting down."}),
        Route(
            name="metrics",
            path="/metrics",
            handler=_metrics,
            endpoint=None,
            local=True,
            operation=Operation(
                id="metrics",
                summary="Prometheus metrics",
                response=lambda _: {"text/plain": {"schema": {"type": "string"}}},
            ),
            expectations=(
                Expectation(name="metrics", media_type="text/plain", verify=_verify_metrics),
            ),
        ),
    )


def _probe(name: str, handler: Handler, summary: str, problems: Mapping[int, str]) -> Route:
    documented = Operation(
        id=name, summary=summary, response=_refer("Status"), problems=problems, schemas=_STATUS
    )
    return Route(
        name=name, path=f"/{name}", handler=handler, endpoint=None, while_loading=True,
        operation=documented, expectations=(Expectation(name=name),),
    )  # fmt: skip


def about(spec: FunctionSpec) -> dict[str, str]:
    """Return what ``GET /`` says."""
    names = {"name": spec.name, "digest": spec.digest, "pathspec": spec.task}
    return {**names, "version": __version__}


async def _about(service: Service, request: HttpRequest) -> Response:
    text = json.dumps(about(service.spec), ensure_ascii=False, separators=(",", ":"))
    return Response(text.encode())


async def _healthz(service: Service, request: HttpRequest) -> Response:
    return Response(b'{"status":"alive"}')


async def _readyz(service: Service, request: HttpRequest) -> Response | BaseException:
    reason = service.not_ready()
    return unavailable(reason) if reason else Response(b'{"status":"ready"}')


async def _metrics(service: Service, request: HttpRequest) -> Response:
    accept = request.headers.get(b"accept", b"").decode("latin-1")
    # In a thread: it reads files.
    render = partial(service.metrics.render, about(service.spec), accept)
    body, media_type = await service.loop.run_in_executor(None, render)
    return Response(body, [(b"content-type", media_type.encode())])


# Documentation


def _object(title: str, description: str, *names: str) -> dict[str, Any]:
    return {
        "properties": {name: {"type": "string", "title": name.title()} for name in names},
        "type": "object",
        "required": [*names],
        "title": title,
        "description": description,
    }


_STATUS = {"Status": _object("Status", "How the server is.", "status")}


def _refer(name: str) -> Content:
    return lambda _: {JSON: {"schema": {"$ref": f"#/components/schemas/{name}"}}}


# What `mfimage test` verifies


def _verify_identity(spec: FunctionSpec, body: bytes) -> str:
    found = json.loads(body)
    for name, expected in about(spec).items():
        # Another version of mfimage may have built the image.
        if name != "version" and (not isinstance(found, dict) or found.get(name) != expected):
            raise ValueError(f"GET / does not say that its {name} is {expected}")
    return spec.digest[:19]


def _verify_metrics(spec: FunctionSpec, body: bytes) -> str:
    lines = body.decode(errors="replace").splitlines()
    names = {line.partition("{")[0].partition(" ")[0] for line in lines}
    ours = {name for name in names if name.startswith("mfimage_")}
    if not ours:
        raise ValueError("GET /metrics has no line that starts with mfimage_")
    return f"{len(ours)} metrics"
