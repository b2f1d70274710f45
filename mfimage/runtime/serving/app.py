"""The ASGI app: finds the route of a request, counts and logs it, sends the response."""

from __future__ import annotations

import itertools
import logging
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence

from mfimage.runtime.calls.queue import Disconnected
from mfimage.runtime.serving.content import Header
from mfimage.runtime.serving.logs import AccessLog, request_members
from mfimage.runtime.serving.problems import MEDIA_TYPE, Problem, problem_of, unavailable
from mfimage.runtime.serving.route import (
    ASGIApp,
    Request,
    Response,
    Route,
    Scope,
    Send,
)
from mfimage.runtime.serving.service import LOADING, Receive, Service

_CLIENT_LEFT = 499
_PROBLEM = (b"content-type", MEDIA_TYPE.encode())
_CLOSE = (b"connection", b"close")
# Characters that need no escape in a header or in JSON.
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
_NO_METHODS: Mapping[str, ASGIApp] = {}

log = logging.getLogger("mfimage.serving")


class App:
    """Dispatches requests by a table of routes.

    FastAPI's own routing and validation cost 57 to 106 us a request, more than many a function.

    Parameters
    ----------
    service : Service
        What the handlers work with.
    routes : sequence of Route
        The table; of two routes with the same path and method the first counts.
    access : AccessLog or None
        Where requests are logged.
    """

    def __init__(
        self, service: Service, routes: Sequence[Route], *, access: AccessLog | None
    ) -> None:
        self.service = service
        self._routes = routes
        self._access = access
        self._ids = itertools.count()
        self._id_prefix = os.urandom(4).hex()
        self._paths: dict[str, dict[str, ASGIApp]] = {}
        for route in routes:
            methods = self._paths.setdefault(route.path, {})
            for method in route.methods:
                methods.setdefault(method, self._endpoint(route, method))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http":
            methods = self._paths.get(scope["path"], _NO_METHODS)
            endpoint = methods.get(scope["method"]) or self._unknown(scope, methods)
            await endpoint(scope, receive, send)

    def _unknown(self, scope: Scope, methods: Iterable[str]) -> ASGIApp:
        """Return an endpoint for a path without a route, or for a method that its routes lack."""
        if methods:
            allow = ", ".join(methods).encode()
            detail = f"{scope['method']} is not answered here"
            problem = Problem(405, detail, headers=[(b"allow", allow)])
        else:
            problem = Problem(404, "no such path; /docs lists what there is")

        async def handler(service: Service, request: Request) -> BaseException:
            return problem

        route = Route(name="unknown", path=scope["path"], handler=handler)
        return self._endpoint(route, scope["method"])

    def _endpoint(self, route: Route, method: str) -> ASGIApp:
        """Return the ASGI app of a route: counted, logged, and never without a response."""
        handler = route.handler
        service, access, while_loading = self.service, self._access, route.while_loading
        members = request_members(method, route.path)
        meter = service.metrics.meters[route.endpoint] if route.endpoint else None

        async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
            started = time.monotonic()
            headers = headers_of(scope["headers"])
            request_id = self._request_id(headers)
            status = _CLIENT_LEFT
            if meter is not None:
                meter.begin()
            try:
                reply: Response | BaseException
                try:
                    if while_loading or service.inflight is not None:
                        request = Request(
                            scope, receive, headers, request_id, started, self._routes
                        )
                        reply = await handler(service, request)
                    else:
                        reply = unavailable(LOADING)
                except Exception as error:  # noqa: BLE001  (every error gets a response)
                    reply = error
                if not isinstance(reply, Disconnected):
                    status = await self._send(send, reply, request_id, with_body=method != "HEAD")
            finally:
                if meter is not None:
                    seconds = time.monotonic() - started
                    meter.end(status, seconds)
                    if access is not None:
                        access.write(members, request_id, status, seconds)

        return endpoint

    def _request_id(self, headers: Mapping[bytes, bytes]) -> str:
        """Return the client's request id, or a new one."""
        given = headers.get(b"x-request-id")
        if given is not None and _REQUEST_ID.fullmatch(given):
            return given.decode()
        return f"{self._id_prefix}-{next(self._ids):x}"

    async def _send(
        self, send: Send, reply: Response | BaseException, request_id: str, *, with_body: bool
    ) -> int:
        """Send a response, or the problem that an error is; return the status."""
        if isinstance(reply, Response):
            status, body, headers = reply.status, reply.body, [*reply.headers]
        else:
            problem = problem_of(reply)
            status, body = problem.status, problem.body(request_id)
            headers = [_PROBLEM, *problem.headers]
            if status == 500:
                extra = {"request_id": request_id}
                log.error("%s failed", self.service.spec.name, exc_info=reply, extra=extra)
        headers += (
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", request_id.encode()),
        )
        if self.service.draining:
            headers.append(_CLOSE)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body if with_body else b""})
        return status


def headers_of(given: Sequence[Header]) -> dict[bytes, bytes]:
    """Return a request's headers; of several of one name the last, but all of ``Accept``."""
    headers = dict(given)
    if len(headers) != len(given) and b"accept" in headers:
        headers[b"accept"] = b", ".join(value for name, value in given if name == b"accept")
    return headers
