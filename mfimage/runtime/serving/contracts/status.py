"""The routes that describe the server: what it serves, health, metrics."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, MutableMapping
from functools import partial
from typing import Any

import orjson

from mfimage import __version__
from mfimage.runtime.serving.content import JSON, VARY, media_ranges, weight_of
from mfimage.runtime.serving.problems import unavailable
from mfimage.runtime.serving.route import (
    JSON_HEADERS,
    Content,
    Expectation,
    Handler,
    HttpRequest,
    Operation,
    Response,
    Route,
)  # fmt: skip
from mfimage.runtime.serving.served import Served
from mfimage.runtime.serving.service import State
from mfimage.runtime.serving.services import Services


def routes(served: Served) -> tuple[Route, ...]:
    """Return the routes."""
    return (
        Route(
            name="about",
            path="/",
            handler=partial(_about, {}),
            while_loading=True,
            below="",
            operation=Operation(
                id="about",
                summary="What is served",
                response=_refer("About"),
                schemas={"About": _object("About", "What is served.", {**about(served), **_ALIVE})},
            ),
            expectations=(Expectation(name="identity", verify=_verify_identity),),
        ),
        *(_functions(served) if served.several else ()),
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


# KServe's protocol v1 asks the root whether the server is alive.
_ALIVE = {"status": "alive"}
_ABOUT_HEADERS = (*JSON_HEADERS, VARY)


def _functions(served: Served) -> tuple[Route, ...]:
    listed = {
        "type": "object",
        "title": "Functions",
        "description": "What is served, by name.",
        "required": ["functions", "default"],
        "properties": {
            "functions": {"type": "array", "items": _STATE},
            "default": {"type": ["string", "null"]},
        },
    }
    return (
        Route(
            name="functions",
            path="/functions",
            handler=_list_functions,
            operation=Operation(
                id="functions",
                summary="The functions, and whether each is loaded",
                response=_refer("Functions"),
                schemas={"Functions": listed},
            ),
            expectations=(Expectation(name="functions", verify=_verify_functions),),
        ),
    )


_STATE = {
    "type": "object",
    "required": ["name", "digest", "task", "state"],
    "properties": {
        "name": {"type": "string"},
        "digest": {"type": "string"},
        "task": {"type": "string"},
        "state": {"enum": [state.value for state in State]},
        "error": {"type": "string", "description": "Why it cannot be loaded."},
    },
}


async def _list_functions(services: Services, request: HttpRequest) -> Response:
    functions = [
        {"name": name, "digest": each.spec.digest, "task": each.spec.task}
        | {"state": each.state.value}
        | ({"error": each.failed} if each.failed else {})
        for name, each in services.by_name.items()
    ]
    listed = {"functions": functions, "default": services.served.default}
    return Response(orjson.dumps(listed))


def _probe(name: str, handler: Handler, summary: str, problems: Mapping[int, str]) -> Route:
    documented = Operation(
        id=name, summary=summary, response=_refer("Status"), problems=problems, schemas=_STATUS
    )
    return Route(
        name=name, path=f"/{name}", handler=handler, endpoint=None, while_loading=True,
        operation=documented, expectations=(Expectation(name=name),),
    )  # fmt: skip


def about(served: Served) -> dict[str, Any]:
    """Return what ``GET /`` says."""
    if served.several:
        return {"functions": len(served.specs), "default": served.default, "version": __version__}
    return next(descriptions(served))


def descriptions(served: Served) -> Iterator[dict[str, str]]:
    """Describe each function."""
    for name, spec in served.specs.items():
        names = {"name": name, "digest": spec.digest, "pathspec": spec.task}
        yield {**names, "version": __version__}


async def _about(
    pages: MutableMapping[str | None, bytes], services: Services, request: HttpRequest
) -> Response | BaseException:
    if services.settings.page != "0" and wants_page(request.headers.get(b"accept", b"")):
        # Imported late, and in a thread: it reads files.
        render = partial(_page, pages, services, request)
        return await services.loop.run_in_executor(None, render)
    if services.loading is not None:
        return unavailable(services.loading)
    found = {**about(services.served), **_ALIVE}
    text = json.dumps(found, ensure_ascii=False, separators=(",", ":"))
    return Response(text.encode(), _ABOUT_HEADERS)


def _page(
    pages: MutableMapping[str | None, bytes], services: Services, request: HttpRequest
) -> Response:
    from mfimage.runtime.serving.page.response import respond

    return respond(pages, services, request)


def wants_page(accept: bytes) -> bool:
    """Return whether a request's ``Accept`` is one of a browser.

    It names HTML, and likes JSON no better. Java's own clients name HTML, too, and then anything:
    browsers also name XHTML.
    """
    if b"text/html" not in accept.lower():
        return False
    ranges = dict(sorted(media_ranges(accept.decode("latin-1")), key=lambda item: item[1]))
    html, json_weight = ranges.get("text/html", 0.0), weight_of(ranges, JSON)
    browser = JSON in ranges or not json_weight or "application/xhtml+xml" in ranges
    return browser and html > 0 and html >= json_weight


async def _healthz(services: Services, request: HttpRequest) -> Response:
    return Response(b'{"status":"alive"}')


async def _readyz(services: Services, request: HttpRequest) -> Response | BaseException:
    reason = services.not_ready()
    return unavailable(reason) if reason else Response(b'{"status":"ready"}')


async def _metrics(services: Services, request: HttpRequest) -> Response:
    accept = request.headers.get(b"accept", b"").decode("latin-1")
    services.metrics.flush()
    # In a thread: it reads files.
    infos = [*descriptions(services.served)]
    render = partial(services.metrics.render, infos, accept)
    body, media_type = await services.loop.run_in_executor(None, render)
    return Response(body, [(b"content-type", media_type.encode())])


# Documentation


def _object(title: str, description: str, example: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of objects that are like an example."""
    kinds = {str: "string", int: "integer", type(None): "null"}
    return {
        "properties": {
            name: {"type": kinds[type(value)], "title": name.title()}
            for name, value in example.items()
        },
        "type": "object",
        "required": [*example],
        "title": title,
        "description": description,
    }


_STATUS = {"Status": _object("Status", "How the server is.", {"status": ""})}


def _refer(name: str) -> Content:
    return lambda _: {JSON: {"schema": {"$ref": f"#/components/schemas/{name}"}}}


# What `mfimage test` verifies


def _verify_identity(served: Served, body: bytes) -> str:
    found = json.loads(body)
    for name, expected in about(served).items():
        # Another version of mfimage may have built the image.
        if name != "version" and (not isinstance(found, dict) or found.get(name) != expected):
            raise ValueError(f"GET / does not say that its {name} is {expected}")
    return _identity(served)


def _identity(served: Served) -> str:
    if served.several:
        return f"{len(served.specs)} functions"
    return next(spec.digest[:19] for spec in served.specs.values())


def _verify_functions(served: Served, body: bytes) -> str:
    found = json.loads(body)
    listed = found.get("functions") if isinstance(found, dict) else None
    states = {each.get("name"): each for each in listed or () if isinstance(each, dict)}
    for name, spec in served.specs.items():
        if states.get(name, {}).get("digest") != spec.digest:
            raise ValueError(f"GET /functions does not say that the digest of {name} is its own")
    return _identity(served)


def _verify_metrics(served: Served, body: bytes) -> str:
    lines = body.decode(errors="replace").splitlines()
    names = {line.partition("{")[0].partition(" ")[0] for line in lines}
    ours = {name for name in names if name.startswith("mfimage_")}
    if not ours:
        raise ValueError("GET /metrics has no line that starts with mfimage_")
    return f"{len(ours)} metrics"
