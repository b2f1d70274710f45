"""Which request of Ray Serve is for what of the server, wherever Serve puts the application.

::

    route prefix /                       route prefix /predict
    POST /predict, /predict/batch        POST /predict, /predict/batch
    GET  /docs, /openapi.json            GET  /predict/docs, /predict/openapi.json
    GET  /healthz, /readyz               Serve's own: /-/healthz
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mfimage.package.spec import FunctionSpec
from mfimage.runtime.answers import App, Message, Receive, Scope, Send, headers_of
from mfimage.runtime.front import Front
from mfimage.runtime.metrics import Board
from mfimage.runtime.wire import Wire

_PAGES = ("/docs", "/docs/oauth2-redirect", "/openapi.json", "/redoc")
_HEALTH = ("/healthz", "/readyz")
_NOWHERE = "/-"
_SPACE = b" \t\r\n"


class Routes:
    """The application: finds the way in the server, and tells lists from records.

    Parameters
    ----------
    spec : FunctionSpec
        The function.
    wires : mapping of str to Wire
        What is spoken beside JSON, by media type.
    front : callable
        Returns the server's front.
    """

    def __init__(
        self, spec: FunctionSpec, wires: Mapping[str, Wire], front: Callable[[], Front]
    ) -> None:
        self._record, self._batch = f"/{spec.name}", f"/{spec.name}/batch"
        self._wires = wires
        self._front = front
        self._takes_lists = takes_lists(spec.input_schema)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; Serve asks for a life cycle, too."""
        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["type"] == "http":
            path, scope = self._way(scope)
            if path == self._record and scope["method"] == "POST" and not self._takes_lists:
                is_list, receive = await self._peek(scope, receive)
                path = self._batch if is_list else path
            await self._front()({**scope, "path": path}, receive, send)

    def _way(self, scope: Scope) -> tuple[str, Scope]:
        """Return the path as the server knows it, and the request."""
        root = scope.get("root_path", "").rstrip("/")
        path = scope["path"]
        below = path[len(root) :] if path.startswith(root) else path
        if root:
            ours = {"": self._record, "/": self._record, "/batch": self._batch}
            about = below in ("", "/")
        else:
            ours = {each: each for each in (self._record, self._batch, *_HEALTH)}
            about = below == "/"
        if below in ours and (scope["method"] == "POST" or below in _HEALTH):
            return ours[below], {**scope, "root_path": ""}
        if about:
            return f"{root}/", scope
        if below in _PAGES:
            return path, scope
        if below in ours:  # not with this method
            return ours[below], {**scope, "root_path": ""}
        return f"{root}{_NOWHERE}", scope

    async def _peek(self, scope: Scope, receive: Receive) -> tuple[bool, Receive]:
        """Tell whether the body is a JSON list; return what gives the body from its start."""
        kind = headers_of(scope["headers"]).get(b"content-type", b"").decode("latin-1")
        if kind.partition(";")[0].strip().lower() in self._wires:
            return False, receive
        read: list[Message] = []
        start = b""
        while not start:
            read.append(await receive())
            start = read[-1].get("body", b"").lstrip(_SPACE)
            if not read[-1].get("more_body", False):
                break

        async def again() -> Message:
            return read.pop(0) if read else await receive()

        return start[:1] == b"[", again


async def _live(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


def takes_lists(schema: Mapping[str, Any]) -> bool:
    """Tell whether a list may be one record of a JSON Schema."""
    return _may_be_list(schema, schema, set())


def _may_be_list(schema: Any, root: Mapping[str, Any], seen: set[str]) -> bool:
    if not isinstance(schema, dict):
        return schema is not False
    if "$ref" in schema:
        name = str(schema["$ref"])
        if name in seen:
            return False
        found = root.get("$defs", {}).get(name.rpartition("/")[2], {})
        return _may_be_list(found, root, {*seen, name})
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return any(_may_be_list(each, root, seen) for each in schema[key])
    if "const" in schema or "enum" in schema:
        return any(isinstance(each, list) for each in schema.get("enum", [schema.get("const")]))
    kinds = schema.get("type", "array")
    return "array" in (kinds if isinstance(kinds, list) else [kinds])


def build_pages(spec: FunctionSpec, board: Board, wires: Mapping[str, Wire]) -> App:
    """Return FastAPI's app; its document has the function's operations where they are here."""
    import orjson
    from starlette.responses import Response

    from mfimage.runtime import openapi

    app = openapi.build_pages(spec, board, wires)
    names = {f"/{spec.name}": "", f"/{spec.name}/batch": "/batch"}

    async def pages(scope: Scope, receive: Receive, send: Send) -> None:
        root = scope.get("root_path", "").rstrip("/")
        if scope["path"] != f"{root}/openapi.json" or scope["method"] not in ("GET", "HEAD"):
            await app(scope, receive, send)
            return
        document = app.openapi()
        record = root or f"/{spec.name}"
        paths = {record + rest: document["paths"][path] for path, rest in names.items()}
        content = orjson.dumps({**document, "paths": paths})
        await Response(content, media_type="application/json")(scope, receive, send)

    return pages
