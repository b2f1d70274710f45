"""The routes of the documentation: the OpenAPI document, and FastAPI's pages that show it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from mfimage.package.spec import FunctionSpec
from mfimage.runtime.serving import openapi
from mfimage.runtime.serving.route import Expectation, Handler, HttpRequest, Response, Route
from mfimage.runtime.serving.service import Service

_DOCUMENT, _DOCS, _REDOC = "/openapi.json", "/docs", "/redoc"
_REDIRECT = f"{_DOCS}/oauth2-redirect"


def routes(spec: FunctionSpec) -> tuple[Route, ...]:
    """Return the routes."""
    return (
        Route(
            name="openapi",
            path=_DOCUMENT,
            handler=_openapi,
            below=_DOCUMENT,
            expectations=(Expectation(name="openapi", verify=_verify_openapi),),
        ),
        Route(name="docs", path=_DOCS, handler=_page(_swagger), below=_DOCS),
        Route(name="redirect", path=_REDIRECT, handler=_page(_redirect), below=_REDIRECT),
        Route(name="redoc", path=_REDOC, handler=_page(_redoc), below=_REDOC),
    )


async def _openapi(service: Service, request: HttpRequest) -> Response:
    assert service.media_types is not None
    codecs = service.media_types.codecs
    render = partial(openapi.render, service.spec, codecs, request.routes)
    return Response(await service.loop.run_in_executor(None, render))


def _page(render: Callable[[FunctionSpec, str], Any]) -> Handler:
    async def handler(service: Service, request: HttpRequest) -> Response:
        # In a thread: importing FastAPI takes half a second.
        page = await service.loop.run_in_executor(None, render, service.spec, request.root)
        return Response(page.body, [(b"content-type", b"text/html; charset=utf-8")])

    return handler


def _swagger(spec: FunctionSpec, root: str) -> Any:
    from fastapi.openapi.docs import get_swagger_ui_html

    return get_swagger_ui_html(
        openapi_url=root + _DOCUMENT, title=f"{spec.name} - Swagger UI",
        oauth2_redirect_url=root + _REDIRECT,
    )  # fmt: skip


def _redirect(spec: FunctionSpec, root: str) -> Any:
    from fastapi.openapi.docs import get_swagger_ui_oauth2_redirect_html

    return get_swagger_ui_oauth2_redirect_html()


def _redoc(spec: FunctionSpec, root: str) -> Any:
    from fastapi.openapi.docs import get_redoc_html

    return get_redoc_html(openapi_url=root + _DOCUMENT, title=f"{spec.name} - ReDoc")


# What `mfimage test` verifies


def _verify_openapi(spec: FunctionSpec, body: bytes) -> str:
    document = json.loads(body)
    if not isinstance(document, dict) or not str(document.get("openapi", "")).startswith("3."):
        raise ValueError("GET /openapi.json does not say which version of OpenAPI 3 it is")
    operations = document.get("paths") or {}
    for path in (f"/{spec.name}", f"/{spec.name}/batch"):
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
