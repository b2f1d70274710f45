"""The ASGI app: finds the route of a request, counts and logs it, sends the response."""

from __future__ import annotations

import itertools
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
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
_NO_METHODS: Mapping[str, Any] = {}

# Sends a whole response: its status, headers and body.
Respond = Callable[[int, list[Header], bytes], Awaitable[None]]
Endpoint = Callable[[Scope, Receive, Respond], Awaitable[None]]

log = logging.getLogger("mfimage.serving")


class App:
    """Dispatches requests by a table of routes; of two for one path and method the first counts.

    FastAPI's own routing and validation cost 57 to 106 us a request, more than many a function.
    """

    def __init__(
        self, services: Services, routes: Sequence[Route], *, access: AccessLog | None
    ) -> None:
        self.services = services
        self._routes = routes
        self._access = access
        self._ids = map(f"{os.urandom(4).hex()}-{{:x}}".format, itertools.count())
        self._paths: dict[str, dict[str, Endpoint]] = {}
        self._claims = {route.claims: route.errors for route in routes if route.claims}
        self._origins = {origin.encode() for origin in services.settings.cors_origins}
        for route in routes:
            # A proxy may strip the prefix or not.
            for path in {route.path, services.settings.root_path + route.path}:
                methods = self._paths.setdefault(path, {})
                for method in ("GET", "HEAD") if route.method == "GET" else (route.method,):
                    methods.setdefault(method, self._endpoint(route, method))

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Respond to one HTTP request of an ASGI server."""

        async def respond(status: int, headers: list[Header], body: bytes) -> None:
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})

        return self.serve(scope, receive, respond)

    def serve(self, scope: Scope, receive: Receive, respond: Respond) -> Awaitable[None]:
        """Respond to one HTTP request, at once: ASGI has a message for each part of a response."""
        methods = self._paths.get(scope["path"], _NO_METHODS)
        endpoint = methods.get(scope["method"]) or self._unknown(scope, methods)
        return endpoint(scope, receive, respond)

    def refuse(self, problem: Problem, started: float) -> Response:
        """Count and log what is refused before it has a route; return the response."""
        request_id = next(self._ids)
        meter = self.services.metrics.meter("other")
        meter.begin()
        seconds = time.monotonic() - started
        meter.end(problem.status, seconds)
        if self._access is not None:
            self._access.write(_UNREAD, request_id, problem.status, seconds)
        reply = problem_response(problem, request_id)
        reply.headers = [*reply.headers, (b"x-request-id", request_id.encode())]
        return reply

    def _unknown(self, scope: Scope, methods: Iterable[str]) -> Endpoint:
        """Return an endpoint for a path without a route, or for a method that its routes lack."""
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
            if preflight and self._origins and scope["method"] == "OPTIONS":
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
        return self._endpoint(route, scope["method"])

    def _endpoint(self, route: Route, method: str) -> Endpoint:
        """Return the endpoint of a route: counted, logged, and never without a response."""
        routes, ids, access = self._routes, self._ids, self._access
        services, function = self.services, route.function
        service: Service | Services = services.by_name[function] if function else services
        handler, while_loading = _handler(route, service)
        members = request_members(method, route.path)
        meter = services.metrics.meter(route.endpoint, function) if route.endpoint else None
        with_body = method != "HEAD"

        async def endpoint(scope: Scope, receive: Receive, respond: Respond) -> None:
            started = time.monotonic()
            headers = headers_of(scope["headers"])
            given = headers.get(b"x-request-id")
            valid = given is not None and _REQUEST_ID.fullmatch(given)
            request_id = valid[0].decode() if valid else next(ids)
            request = HttpRequest(scope, receive, headers, request_id, started, routes)
            status = _CLIENT_LEFT
            if meter is not None:
                meter.begin()
            try:
                reply: Response | BaseException
                try:
                    if while_loading or service.loading is None:
                        reply = await handler(service, request)
                    else:
                        reply = unavailable(service.loading)
                except Exception as error:  # noqa: BLE001  (every error gets a response)
                    reply = error
                if isinstance(reply, Disconnected):
                    return
                if not isinstance(reply, Response):
                    reply = _error(route, reply, request_id)
                body = reply.body
                head = [
                    *reply.headers,
                    (b"content-length", b"%d" % len(body)),
                    (b"x-request-id", request_id.encode()),
                ]
                if services.draining and CLOSE not in head:
                    head.append(CLOSE)
                if self._origins:
                    head += self._cors(headers.get(b"origin", b""))
                await respond(reply.status, head, body if with_body else b"")
                status = reply.status
            finally:
                services.bodies.held -= request.held
                if meter is not None:
                    seconds = time.monotonic() - started
                    meter.end(status, seconds)
                    if access is not None:
                        access.write(members, request_id, status, seconds)

        return endpoint

    def _cors(self, origin: bytes) -> list[Header]:
        allowed = b"*" if b"*" in self._origins else origin
        if allowed not in self._origins:
            return [_VARY]
        return [_VARY, (b"access-control-allow-origin", allowed), _EXPOSED]


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
