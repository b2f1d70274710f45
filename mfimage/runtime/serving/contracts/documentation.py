"""The routes of the documentation: the OpenAPI document, and pages that show it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mfimage.runtime.serving import openapi
from mfimage.runtime.serving.problems import Problem
from mfimage.runtime.serving.route import (
    JSON_HEADERS,
    Expectation,
    Handler,
    HttpRequest,
    Response,
    Route,
)  # fmt: skip
from mfimage.runtime.serving.served import Served
from mfimage.runtime.serving.services import Services
from mfimage.runtime.settings import path_prefix

_DOCUMENT, _DOCS = "/openapi.json", "/docs"
_FORWARDED = b"x-forwarded-prefix"
# Of the distribution fastapi-offline, which is not imported: media types by name.
_ASSETS = {
    "swagger-ui-bundle.js": b"text/javascript",
    "swagger-ui.css": b"text/css",
    "redoc.standalone.js": b"text/javascript",
    "favicon.png": b"image/png",
}
# Relative links lead to the same server behind any path prefix.
_PAGES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    _DOCS: ("swagger_ui", {
        "swagger_js_url": "docs/swagger-ui-bundle.js",
        "swagger_css_url": "docs/swagger-ui.css",
        "swagger_favicon_url": "docs/favicon.png",
    }),
    "/redoc": ("redoc", {
        "redoc_js_url": "docs/redoc.standalone.js",
        "redoc_favicon_url": "docs/favicon.png",
        "with_google_fonts": False,
    }),
}  # fmt: skip


def routes(served: Served) -> tuple[Route, ...]:
    """Return the routes."""
    return (
        Route(
            name="openapi",
            path=_DOCUMENT,
            handler=_openapi,
            below=_DOCUMENT,
            expectations=(Expectation(name="openapi", verify=_verify_openapi),),
        ),
        *(
            Route(name=path[1:], path=path, handler=_page(kind, options), below=path)
            for path, (kind, options) in _PAGES.items()
        ),
        *(
            Route(name=name, path=path, handler=_asset(name, kind), below=path)
            for name, kind in _ASSETS.items()
            for path in [f"{_DOCS}/{name}"]
        ),
    )


async def _openapi(services: Services, request: HttpRequest) -> Response:
    codecs = {
        name: service.media_types.codecs
        for name, service in services.by_name.items()
        if service.media_types is not None
    }
    try:
        prefix = path_prefix(request.headers.get(_FORWARDED, b"").decode("latin-1"))
    except ValueError:
        prefix = ""
    server = prefix or services.settings.root_path
    render = partial(openapi.render, services.served, codecs, request.routes, server)
    headers = [*JSON_HEADERS, (b"vary", _FORWARDED)]
    return Response(await services.loop.run_in_executor(None, render), headers)


def _page(kind: str, options: Mapping[str, Any]) -> Handler:
    def render(title: str) -> bytes:
        from fastapi.openapi import docs

        page = getattr(docs, f"get_{kind}_html")
        return bytes(page(openapi_url=_DOCUMENT[1:], title=title, **options).body)

    async def handler(services: Services, request: HttpRequest) -> Response:
        # In a thread: importing FastAPI takes half a second.
        page = await services.loop.run_in_executor(None, render, services.served.title)
        return Response(page, [(b"content-type", b"text/html; charset=utf-8")])

    return handler


def _asset(name: str, kind: bytes) -> Handler:
    def read() -> bytes | None:
        found = find_spec("fastapi_offline")
        if found is None or found.origin is None:
            return None
        return Path(found.origin).with_name("static").joinpath(name).read_bytes()

    async def handler(services: Services, request: HttpRequest) -> Response | Problem:
        content = await services.loop.run_in_executor(None, read)
        if content is None:
            return Problem(404, "fastapi-offline, which has this file, is not installed here")
        return Response(content, [(b"content-type", kind), (b"cache-control", b"max-age=86400")])

    return handler


# What `mfimage test` verifies


def _verify_openapi(served: Served, body: bytes) -> str:
    document = json.loads(body)
    if not isinstance(document, dict) or not str(document.get("openapi", "")).startswith("3."):
        raise ValueError("GET /openapi.json does not say which version of OpenAPI 3 it is")
    operations = document.get("paths") or {}
    for path in (f"/{name}{more}" for name in served.specs for more in ("", "/batch")):
        if "post" not in operations.get(path, {}):
            raise ValueError(f"GET /openapi.json: POST {path} is missing")
    broken = [ref for ref in _references(document) if not _resolves(document, ref)]
    if broken:
        raise ValueError(f"GET /openapi.json: the reference {broken[0]} leads nowhere")
    return f"OpenAPI {document['openapi']}, {len(operations)} paths"


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        if isinstance(target := value.get("$ref"), str):
            yield target
        for item in value.values():
            yield from _references(item)
    elif isinstance(value, list):
        for item in value:
            yield from _references(item)


def _resolves(found: Any, reference: str) -> bool:
    root, *parts = reference.split("/")
    for part in parts:
        name = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, Mapping) or name not in found:
            return False
        found = found[name]
    return root == "#"
