"""Calling an image's server, as plainly as HTTP can be spoken."""

from __future__ import annotations

import http.client
import json
import time
from dataclasses import dataclass
from typing import Any

from mfimage.image.checks.report import Failed
from mfimage.image.checks.runner import Address, Container

JSON = "application/json"
_POLL = 0.05
_CONNECT_TIMEOUT = 2.0
# Longer than any MFIMAGE_TIMEOUT that is likely: a server of ours answers 504 by itself.
ANSWER_TIMEOUT = 300.0


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a server answered.

    Attributes
    ----------
    status : int
        The HTTP status.
    type : str
        The media type, without parameters.
    body : bytes
        All of it.
    """

    status: int
    type: str
    body: bytes

    def json(self) -> Any:
        """Return the body's value.

        Raises
        ------
        Failed
            If it is no JSON.
        """
        try:
            return json.loads(self.body)
        except ValueError:
            raise Failed(f"the body of a {self.status} is no JSON: {self.body[:80]!r}") from None

    @property
    def problem(self) -> str:
        """What went wrong, as far as the body says it."""
        try:
            document = json.loads(self.body)
            return f"{self.status}: {document['detail']}"
        except (ValueError, LookupError, TypeError):
            return f"{self.status}: {self.body[:80]!r}"


def ask(
    address: Address,
    method: str,
    path: str,
    body: bytes | None = None,
    *,
    type: str = JSON,
    timeout: float = ANSWER_TIMEOUT,
) -> Answer:
    """Send one request on a connection of its own.

    Raises
    ------
    OSError, http.client.HTTPException
        If there is no answer.
    """
    connection = http.client.HTTPConnection(*address, timeout=timeout)
    try:
        headers = {"Content-Type": type} if body is not None else {}
        connection.request(method, path, body=body, headers=headers)
        return read_answer(connection)
    finally:
        connection.close()


def read_answer(connection: http.client.HTTPConnection) -> Answer:
    """Read the answer to what was sent."""
    answer = connection.getresponse()
    kind = (answer.getheader("Content-Type") or "").partition(";")[0].strip().lower()
    return Answer(status=answer.status, type=kind, body=answer.read())


def wait_until_ready(container: Container, path: str, timeout: float) -> Address:
    """Wait until a path is answered with 200; return where.

    Raises
    ------
    Failed
        With the end of the container's log, if it ends or if the time is up.
    """
    deadline = time.monotonic() + timeout
    last = "nothing answers"
    while True:
        for address in container.addresses():
            try:
                answer = ask(address, "GET", path, timeout=_CONNECT_TIMEOUT)
            except (OSError, http.client.HTTPException):
                continue
            if answer.status == 200:
                return address
            last = f"{path} answers {answer.problem}"
        if (code := container.exit_code()) is not None:
            raise Failed(with_log(f"it ended with exit code {code} and was never ready", container))
        if time.monotonic() > deadline:
            raise Failed(with_log(f"not ready within {timeout:g} s: {last}", container))
        time.sleep(_POLL)


def with_log(text: str, container: Container) -> str:
    """Return a message that the end of a container's log follows."""
    log = container.log().rstrip()
    return f"{text}; the end of its log:\n{log}" if log else f"{text}; its log is empty"
