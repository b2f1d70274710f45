"""A client of an image's server."""

from __future__ import annotations

import http.client
import json
import time
from dataclasses import dataclass
from typing import Any

from mfimage.image.checks.report import Failed
from mfimage.image.checks.runner import Address, Container
from mfimage.runtime.serving.content import JSON

_POLL = 0.05
_CONNECT_TIMEOUT = 2.0
# Longer than a likely MFIMAGE_TIMEOUT, after which the server itself answers 504.
RESPONSE_TIMEOUT = 300.0


@dataclass(frozen=True, kw_only=True)
class ServerResponse:
    """A response."""

    status: int
    media_type: str
    body: bytes

    def json(self) -> Any:
        """Return the body's value."""
        try:
            return json.loads(self.body)
        except ValueError:
            raise Failed(f"the body of a {self.status} is not JSON: {self.body[:80]!r}") from None

    @property
    def problem(self) -> str:
        """The status, and the problem document's detail or the body's start."""
        try:
            return f"{self.status}: {json.loads(self.body)['detail']}"
        except (ValueError, LookupError, TypeError):
            return f"{self.status}: {self.body[:80]!r}"


def request(
    address: Address,
    method: str,
    path: str,
    body: bytes | None = None,
    *,
    media_type: str = JSON,
    timeout: float = RESPONSE_TIMEOUT,
) -> ServerResponse:
    """Send one request on a connection of its own."""
    connection = http.client.HTTPConnection(*address, timeout=timeout)
    try:
        headers = {"Content-Type": media_type} if body is not None else {}
        connection.request(method, path, body=body, headers=headers)
        return read_response(connection)
    finally:
        connection.close()


def read_response(connection: http.client.HTTPConnection) -> ServerResponse:
    """Read the response to the request that was sent."""
    response = connection.getresponse()
    kind = (response.getheader("Content-Type") or "").partition(";")[0].strip().lower()
    return ServerResponse(status=response.status, media_type=kind, body=response.read())


def wait_until_ready(container: Container, path: str, timeout: float) -> Address:
    """Wait until a path answers 200; return the address."""
    deadline = time.monotonic() + timeout
    last = "nothing answers"
    while True:
        for address in container.addresses():
            try:
                response = request(address, "GET", path, timeout=_CONNECT_TIMEOUT)
            except (OSError, http.client.HTTPException):
                continue
            if response.status == 200:
                return address
            last = f"{path} answers {response.problem}"
        if (code := container.exit_code()) is not None:
            raise Failed(with_log(f"it ended with exit code {code} and was never ready", container))
        if time.monotonic() > deadline:
            raise Failed(with_log(f"not ready within {timeout:g} s: {last}", container))
        time.sleep(_POLL)


def with_log(text: str, container: Container) -> str:
    """Return a message, followed by the end of a container's log."""
    log = container.log().rstrip()
    return f"{text}; the end of its log:\n{log}" if log else f"{text}; its log is empty"
