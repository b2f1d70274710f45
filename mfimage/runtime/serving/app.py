"""The ASGI app: finds the route of a request, counts and logs it, sends the response."""

from __future__ import annotations

import itertools
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, cast

from mfimage.runtime.calls.queue import Disconnected
from mfimage.runtime.serving.content import Header
from mfimage.runtime.serving.logs import AccessLog, request_members
from mfimage.runtime.serving.problems import Problem, problem_of, unavailable
from mfimage.runtime.serving.route import (
    HttpRequest,
    Reply,
    Response,
    Route,
    Scope,
    Send,
    problem_response,
)  # fmt: skip
from mfimage.runtime.serving.service import Handler, Receive, Service
from mfimage.runtime.serving.services import Services

_CLIENT_LEFT = 499
CLOSE = (b"connection", b"close")
_VARY = (b"vary", b"origin")
_EXPOSED = (b"access-control-expose-headers", b"x-request-id, retry-after")
# Characters that need no escape in a header or in JSON.
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
_UNREAD = request_members("", "")
_NO_PATHS: Mapping[str, Any] = {}

# Sends a whole response: its status, headers and body.
Respond = Callable[[int, list[Header], bytes], Awaitable[None]]

log = logging.getLogger("mfimage.serving")


class App:
    """Dispatches requests by a table of routes; of two for one path and method the first counts.

    FastAPI's own routing and validation cost 57 to 106 us a request, more than many a function.
    """

    def __init__(
        self, services: Services, routes: Sequence[Route], *, access: AccessLog | None
    ) -> None:
        self.services = services
        self.routes = routes
        self.access = access
        self.ids = map(f"{os.urandom(4).hex()}-{{:x}}".format, itertools.count())
        self._table: dict[str, dict[str, _Endpoint]] = {}  # by method and path
        self._claims = {route.claims: route.errors for route in routes if route.claims}
        self.origins = {origin.encode() for origin in services.settings.cors_origins}
        for route in routes:
            # A proxy may strip the prefix or not.
            for path in {route.path, services.settings.root_path + route.path}:
                for method in ("GET", "HEAD") if route.method == "GET" else (route.method,):
                    paths = self._table.setdefault(method, {})
                    if path not in paths:
                        paths[path] = _Endpoint(self, route, method)

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Respond to one HTTP request of an ASGI server."""

        async def respond(status: int, headers: list[Header], body: bytes) -> None:
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})

        return self.serve(scope, receive, respond)

    def serve(self, scope: Scope, receive: Receive, respond: Respond) -> Awaitable[None]:
        """Respond to one HTTP request, at once: ASGI has a message for each part of a response."""
        endpoint = self._table.get(scope["method"], _NO_PATHS).get(scope["path"])
        if endpoint is None:
            endpoint = self._unknown(scope)
        return endpoint.serve(scope, receive, respond)

    def refuse(self, problem: Problem, started: float) -> Response:
        """Count and log what is refused before it has a route; return the response."""
        request_id = next(self.ids)
        meter = self.services.metrics.meter("other")
        meter.begin()
        seconds = time.monotonic() - started
        meter.end(problem.status, seconds)
        if self.access is not None:
            self.access.write(_UNREAD, request_id, problem.status, seconds)
        reply = problem_response(problem, request_id)
        reply.headers = [*reply.headers, (b"x-request-id", request_id.encode())]
        return reply

    def _unknown(self, scope: Scope) -> _Endpoint:
        """Return an endpoint for a path without a route, or for a method that its routes lack."""
        methods = [method for method, paths in self._table.items() if scope["path"] in paths]
        allowed = ", ".join(methods).encode()
        path = scope["path"].removeprefix(self.services.settings.root_path)
        claimed = (errors for start, errors in self._claims.items() if path.startswith(start))
        errors = next(claimed, None)
        if methods:
            detail = f"{scope['method']} is not answered here"
            problem = Problem(405, detail, headers=[(b"allow", allowed)])
        elif errors:
            problem = Problem(404, f"no such path; there are {self.services.served.shown}")
        else:
            problem = Problem(404, self.services.served.unknown)

        async def handler(services: Services, request: HttpRequest) -> Response | BaseException:
            preflight = methods and request.headers.get(b"access-control-request-method")
            if preflight and self.origins and scope["method"] == "OPTIONS":
                names = request.headers.get(b"access-control-request-headers", b"*")
                return Response(b"", [
                    (b"access-control-allow-methods", allowed),
                    (b"access-control-allow-headers", names),
                    (b"access-control-max-age", b"600"),
                ])  # fmt: skip
            return problem

        route = Route(
            name="unknown", path=scope["path"], handler=handler, errors=errors or problem_response
        )
        return _Endpoint(self, route, scope["method"])

    def cors(self, origin: bytes) -> list[Header]:
        """Return what a response to a request from an origin has, if origins are allowed."""
        allowed = b"*" if b"*" in self.origins else origin
        if allowed not in self.origins:
            return [_VARY]
        return [_VARY, (b"access-control-allow-origin", allowed), _EXPOSED]


class _Endpoint:
    """A route for one method: its requests are counted, logged, and never without a response."""

    # Of hundreds of functions, what every request reads should be in few lines of a cache.
    __slots__ = (
        "_app", "_handler", "_members", "_meter", "_route", "_service", "_while_loading",
        "_with_body",
    )  # fmt: skip

    def __init__(self, app: App, route: Route, method: str) -> None:
        services, function = app.services, route.function
        self._app = app
        self._route = route
        self._service: Service | Services = services.by_name[function] if function else services
        self._handler, self._while_loading = _handler(route, self._service)
        self._members = request_members(method, route.path)
        self._meter = services.metrics.meter(route.endpoint, function) if route.endpoint else None
        self._with_body = method != "HEAD"

    async def serve(self, scope: Scope, receive: Receive, respond: Respond) -> None:
        """Respond to a request."""
        started = time.monotonic()
        app, service, meter = self._app, self._service, self._meter
        headers = headers_of(scope["headers"])
        given = headers.get(b"x-request-id")
        valid = given is not None and _REQUEST_ID.fullmatch(given)
        request_id = valid[0].decode() if valid else next(app.ids)
        request = HttpRequest(scope, receive, headers, request_id, started, app.routes)
        status = _CLIENT_LEFT
        if meter is not None:
            meter.begin()
        try:
            reply: Response | BaseException
            try:
                if self._while_loading or service.loading is None:
                    reply = await self._handler(service, request)
                else:
                    reply = unavailable(service.loading)
            except Exception as error:  # noqa: BLE001  (every error gets a response)
                reply = error
            if isinstance(reply, Disconnected):
                return
            if not isinstance(reply, Response):
                reply = _error(self._route, reply, request_id)
            body = reply.body
            head = [
                *reply.headers,
                (b"content-length", b"%d" % len(body)),
                (b"x-request-id", request_id.encode()),
            ]
            if app.services.draining and CLOSE not in head:
                head.append(CLOSE)
            if app.origins:
                head += app.cors(headers.get(b"origin", b""))
            await respond(reply.status, head, body if self._with_body else b"")
            status = reply.status
        finally:
            app.services.bodies.held -= request.held
            if meter is not None:
                seconds = time.monotonic() - started
                meter.end(status, seconds)
                if app.access is not None:
                    app.access.write(self._members, request_id, status, seconds)


def _error(route: Route, error: BaseException, request_id: str) -> Response:
    problem = problem_of(error)
    if problem.status == 500:
        extra = {"request_id": request_id}
        log.error("%s failed", route.function or "the server", exc_info=error, extra=extra)
    return route.errors(problem, request_id)


def _handler(
    route: Route, service: Service | Services
) -> tuple[Callable[[Any, HttpRequest], Reply], bool]:
    """Return what handles a route's requests, and whether before the function is loaded."""
    if isinstance(service, Service) and service.wrap is not None and not route.while_loading:
        return service.wrap(cast("Handler", route.handler)), True
    return cast("Callable[[Any, HttpRequest], Reply]", route.handler), route.while_loading


def headers_of(given: Sequence[Header]) -> dict[bytes, bytes]:
    """Return a request's headers; of several of one name the last, but all of ``Accept``."""
    headers = dict(given)
    if len(headers) != len(given) and b"accept" in headers:
        headers[b"accept"] = b", ".join(value for name, value in given if name == b"accept")
    return headers
