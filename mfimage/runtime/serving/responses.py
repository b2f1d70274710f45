"""Sending answers: results and problems, each with its request's id."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any

from mfimage.runtime.calls.queue import Outcome
from mfimage.runtime.serving.problems import MEDIA_TYPE, problem_of

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Header = tuple[bytes, bytes]
Headers = Mapping[bytes, bytes]

JSON_TYPE = (b"content-type", b"application/json")
_PROBLEM = (b"content-type", MEDIA_TYPE.encode())
_CLOSE = (b"connection", b"close")
# Of characters that need no escape in a header or in JSON.
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")


def headers_of(given: Sequence[Header]) -> dict[bytes, bytes]:
    """Return a request's headers; of several of one name the last, but all of ``Accept``."""
    headers = dict(given)
    if len(headers) != len(given) and b"accept" in headers:
        headers[b"accept"] = b", ".join(value for name, value in given if name == b"accept")
    return headers


class Answers:
    """How this process answers."""

    def __init__(self) -> None:
        self._ids = itertools.count()
        self._id_prefix = os.urandom(4).hex()
        self._last: list[Header] = []

    def close_connections(self) -> None:
        """Ask clients, from now on, to connect anew for their next request."""
        self._last = [_CLOSE]

    def request_id(self, headers: Headers) -> str:
        """Return the client's request id, or a new one."""
        given = headers.get(b"x-request-id")
        if given is not None and _REQUEST_ID.fullmatch(given):
            return given.decode()
        return f"{self._id_prefix}-{next(self._ids):x}"

    def headers(self, request_id: str) -> list[Header]:
        """Return what goes into every answer."""
        return [(b"x-request-id", request_id.encode()), *self._last]

    async def send(
        self,
        send: Send,
        outcome: Outcome,
        request_id: str,
        *,
        written: Sequence[Header] = (JSON_TYPE,),
        body: bool = True,
    ) -> int:
        """Send a result or a problem; return the status.

        Parameters
        ----------
        send : callable
            The request's.
        outcome : bytes or exception
            A result, or what went wrong.
        request_id : str
            The request's id.
        written : sequence of (name, value)
            What says how a result is written; a problem is always JSON.
        body : bool
            False to answer HEAD.
        """
        if isinstance(outcome, bytes):
            status, content, headers = 200, outcome, [*written]
        else:
            problem = problem_of(outcome)
            status, content = problem.status, problem.body(request_id)
            headers = [_PROBLEM, *problem.headers]
        headers += (
            (b"content-length", b"%d" % len(content)),
            (b"x-request-id", request_id.encode()),
        )
        headers += self._last
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content if body else b""})
        return status
