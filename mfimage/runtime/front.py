"""The server's front: an ASGI app that answers records itself and leaves the rest to FastAPI.

Routing and validation in FastAPI cost 57 to 106 us a request, more than many a function. So the
two ``POST`` routes and the health endpoints stand before it; documentation, metrics and
everything else is FastAPI's (``openapi.py``).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from mfimage.package.spec import FunctionSpec
from mfimage.runtime import bodies
from mfimage.runtime.answers import (
    JSON_TYPE,
    Answers,
    App,
    Header,
    Headers,
    Message,
    Receive,
    Scope,
    Send,
    headers_of,
)
from mfimage.runtime.dispatch import Dispatcher, Gone, Outcome
from mfimage.runtime.inflight import InFlight
from mfimage.runtime.logs import AccessLog, request_members
from mfimage.runtime.metrics import Meter, Metrics
from mfimage.runtime.negotiation import Speech
from mfimage.runtime.problems import Problem, problem_of, unavailable
from mfimage.runtime.settings import Settings
from mfimage.runtime.wire import Wire

# Splitting a list larger than this is done in a thread.
_LARGE = 64 * 1024
_LEFT = 499
_LOADING = "the function is still loading"
_STOPPING = "the server is shutting down"

log = logging.getLogger("mfimage.serving")


class Exchange:
    """What is known of a request from its start, and how a result is to be written."""

    __slots__ = ("request_id", "started", "written")

    def __init__(self, started: float, request_id: str) -> None:
        self.started = started
        self.request_id = request_id
        self.written: Sequence[Header] = (JSON_TYPE,)


Handle = Callable[[Headers, Receive, Exchange], Awaitable[Outcome]]


@dataclass(kw_only=True)
class Front:
    """Answers requests; the life cycle tells it what has become true.

    Attributes
    ----------
    inflight : InFlight or None
        The way to the function, once it is loaded.
    draining : bool
        Whether the server is about to end.
    """

    spec: FunctionSpec
    settings: Settings
    metrics: Metrics
    access: AccessLog | None
    loop: asyncio.AbstractEventLoop
    inflight: InFlight | None = field(init=False, default=None)
    draining: bool = field(init=False, default=False)
    _answers: Answers = field(init=False, default_factory=Answers)
    _dispatcher: Dispatcher | None = field(init=False, default=None)
    _speech: Speech | None = field(init=False, default=None)
    _pages: App | None = field(init=False, default=None)
    _pages_made: asyncio.Event = field(init=False, default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._routes: dict[str, App] = {"/healthz": self._healthz, "/readyz": self._readyz}
        record, batch = f"/{self.spec.name}", f"/{self.spec.name}/batch"
        self._routes[record] = self._route(record, self._record, self.metrics.record)
        self._routes[batch] = self._route(batch, self._batch, self.metrics.batch)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http":
            route = self._routes.get(scope["path"])
            await (route or self._other)(scope, receive, send)

    def start(self, dispatcher: Dispatcher, speech: Speech) -> None:
        """Become ready."""
        self._dispatcher = dispatcher
        self._speech = speech
        self.inflight = InFlight(self.loop, dispatcher, self.settings.timeout)
        self.metrics.ready(is_ready=not self.draining)

    def show(self, pages: App) -> None:
        """Take the app that answers everything else."""
        self._pages = pages
        self._pages_made.set()

    def drain(self) -> None:
        """Become not ready; every answer now asks its client to connect elsewhere."""
        self.draining = True
        self._answers.close_connections()
        self.metrics.ready(is_ready=False)

    def not_ready(self) -> str | None:
        """Return why the server should get no requests, if so."""
        if self.draining:
            return _STOPPING
        if self._dispatcher is None:
            return _LOADING
        timeout = self.settings.timeout
        if timeout and self._dispatcher.stalled() > timeout:
            return "calls that take longer than MFIMAGE_TIMEOUT hold every thread"
        return None

    def _way(self) -> InFlight:
        """Return the way to the function, if a request may take it."""
        inflight = self.inflight
        if inflight is None:
            raise unavailable(_LOADING)
        if len(inflight) >= self.settings.max_waiting:
            raise unavailable("too many requests wait already (MFIMAGE_MAX_WAITING)")
        return inflight

    async def _record(self, headers: Headers, receive: Receive, exchange: Exchange) -> Outcome:
        if self._speech is None:
            raise unavailable(_LOADING)
        terms = self._speech.record.agree(headers)
        exchange.written = terms.headers
        body = await bodies.read_body(headers, receive, self.settings.max_body)
        return await self._way().run(body, receive, exchange.started, terms.crossing)

    async def _batch(self, headers: Headers, receive: Receive, exchange: Exchange) -> Outcome:
        if self._speech is None:
            raise unavailable(_LOADING)
        terms = self._speech.batch.agree(headers)
        exchange.written = terms.headers
        body = await bodies.read_body(headers, receive, self.settings.max_body)
        way = self._way()
        payloads = await self._items(terms.reader, body)
        at_once = self.settings.max_batch
        outcomes: Sequence[Outcome]
        outcomes = await way.run_many(payloads, receive, exchange.started, at_once=at_once)
        if terms.writer is None:
            answer = bodies.join_list(outcomes)
        else:
            write = self.loop.run_in_executor(None, bodies.write_list, terms.writer, outcomes)
            outcomes, answer = await write
        self._log_failed_items(outcomes, exchange.request_id)
        return answer

    async def _items(self, reader: Wire | None, body: bytes) -> list[bytes]:
        """Return the JSON bytes of each record of a list."""
        if reader is not None:
            return await self.loop.run_in_executor(None, bodies.read_list, reader, body)
        if len(body) > _LARGE:
            return await self.loop.run_in_executor(None, bodies.split_list, body)
        return bodies.split_list(body)

    def _log_failed_items(self, outcomes: Sequence[Outcome], request_id: str) -> None:
        failed = [item for item in outcomes if not isinstance(item, bytes)]
        failed = [item for item in failed if problem_of(item).status == 500]
        if failed:
            message = "%s failed for %d of %d records; the first reason follows"
            arguments = (self.spec.name, len(failed), len(outcomes))
            log.error(message, *arguments, exc_info=failed[0], extra={"request_id": request_id})

    async def _healthz(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._status(scope, send, b'{"status":"alive"}')

    async def _readyz(self, scope: Scope, receive: Receive, send: Send) -> None:
        reason = self.not_ready()
        await self._status(scope, send, unavailable(reason) if reason else b'{"status":"ready"}')

    async def _status(self, scope: Scope, send: Send, outcome: Outcome) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            outcome = _not_allowed(scope["method"])
        request_id = self._answers.request_id(dict(scope["headers"]))
        await self._answers.send(send, outcome, request_id, body=scope["method"] != "HEAD")

    def _route(self, path: str, handle: Handle, meter: Meter) -> App:
        """Return a ``POST`` route: counted, logged, and never without an answer."""
        answers, outcome_of, access = self._answers, self._outcome, self.access
        # A function may well be called "docs" or "healthz".
        otherwise = self._routes.get(path, self._other)
        members = request_members("POST", path)

        async def route(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["method"] != "POST":
                await otherwise(scope, receive, send)
                return
            started = time.monotonic()
            headers = headers_of(scope["headers"])
            request_id = answers.request_id(headers)
            status = _LEFT
            meter.begin()
            try:
                exchange = Exchange(started, request_id)
                outcome = await outcome_of(handle, headers, receive, exchange)
                if not isinstance(outcome, Gone):
                    status = await answers.send(send, outcome, request_id, written=exchange.written)
            finally:
                seconds = time.monotonic() - started
                meter.end(status, seconds)
                if access is not None:
                    access.write(members, request_id, status, seconds)

        return route

    async def _outcome(
        self, handle: Handle, headers: Headers, receive: Receive, exchange: Exchange
    ) -> Outcome:
        outcome: Outcome
        try:
            outcome = await handle(headers, receive, exchange)
        except Exception as error:  # noqa: BLE001  (each becomes an answer)
            outcome = error
        if not isinstance(outcome, bytes | Gone) and problem_of(outcome).status == 500:
            extra = {"request_id": exchange.request_id}
            log.error("%s failed", self.spec.name, exc_info=outcome, extra=extra)
        return outcome

    async def _other(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = self._answers.request_id(dict(scope["headers"]))
        if scope["path"] == "/metrics":
            await self._page(scope, receive, send, request_id)
            return
        started = time.monotonic()
        meter = self.metrics.other
        meter.begin()
        status = 500
        try:
            status = await self._page(scope, receive, send, request_id)
        finally:
            seconds = time.monotonic() - started
            meter.end(status, seconds)
            if self.access is not None:
                members = request_members(scope["method"], scope["path"])
                self.access.write(members, request_id, status, seconds)

    async def _page(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> int:
        """Let FastAPI answer; return the status."""
        if self.inflight is None:
            return await self._answers.send(send, unavailable(_LOADING), request_id)
        await self._pages_made.wait()
        assert self._pages is not None
        scope["mfimage.request_id"] = request_id
        status = 500

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = self._answers.headers(request_id)
                message["headers"] = [*message.get("headers", ()), *own]
            await send(message)

        await self._pages(scope, receive, send_on)
        return status


def _not_allowed(method: str) -> Problem:
    detail = f"{method} is not answered here"
    return Problem(405, detail, headers=[(b"allow", b"GET, HEAD")])
