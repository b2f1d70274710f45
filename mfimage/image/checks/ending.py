"""Whether a server loses requests when it is told to end."""

from __future__ import annotations

import http.client
import json
import time

from mfimage.image.checks.client import ANSWER_TIMEOUT, JSON, Answer, read_answer, with_log
from mfimage.image.checks.report import Failed
from mfimage.image.checks.runner import Address, Container, wait_for_end
from mfimage.package.spec import FunctionSpec
from mfimage.runtime.settings import Settings

_REQUESTS = 4
# Until what was sent has surely arrived, and until a server that ends has surely begun to.
_ARRIVED, _ENDING = 0.2, 0.3
# What is over the grace period until the process is gone.
_MARGIN = 3.0


def check_end(
    container: Container, address: Address, spec: FunctionSpec, settings: Settings
) -> str:
    """Send half of some requests, then SIGTERM, then the other half once the doors are closed.

    However fast the function is, these are in flight. All have to be answered, and the
    container has to end with exit code 0 within the grace period.

    Raises
    ------
    Failed
        Saying what was lost.
    """
    # Without examples the answer is a 422: an answer like any other.
    body = json.dumps(spec.examples[0].input).encode() if spec.examples else b"{}"
    requests = [_Half(address, f"/{spec.name}", body) for _ in range(_REQUESTS)]
    try:
        time.sleep(_ARRIVED)
        told = time.monotonic()
        container.terminate()
        # Where there is less time than the doors are open, they get half of it.
        time.sleep(min(settings.drain + _ENDING, settings.grace / 2))
        answers = [request.finish() for request in requests]
    finally:
        for request in requests:
            request.close()
    code = wait_for_end(container, settings.grace + _MARGIN - (time.monotonic() - told))
    took = time.monotonic() - told
    lost = [answer for answer in answers if not isinstance(answer, Answer)]
    if lost:
        text = f"{len(lost)} of {_REQUESTS} requests in flight had no answer: {lost[0]!r}"
        raise Failed(with_log(text, container))
    broken = [answer for answer in answers if isinstance(answer, Answer) and answer.status >= 500]
    if broken:
        raise Failed(f"{len(broken)} of {_REQUESTS} requests in flight: {broken[0].problem}")
    if code is None:
        raise Failed(
            f"still running {took:.1f} s after SIGTERM; MFIMAGE_GRACE is {settings.grace:g}"
        )
    if code:
        raise Failed(with_log(f"it ended with exit code {code} after SIGTERM", container))
    return f"{_REQUESTS} requests in flight answered, ended after {took:.1f} s"


class _Half:
    """A request of which all but the last byte was sent."""

    def __init__(self, address: Address, path: str, body: bytes) -> None:
        self._last = body[-1:]
        self._connection = http.client.HTTPConnection(*address, timeout=ANSWER_TIMEOUT)
        self._connection.putrequest("POST", path)
        self._connection.putheader("Content-Type", JSON)
        self._connection.putheader("Content-Length", str(len(body)))
        self._connection.endheaders(body[:-1])

    def finish(self) -> Answer | Exception:
        """Send the last byte; return the answer, or why there was none."""
        try:
            self._connection.send(self._last)
            return read_answer(self._connection)
        except (OSError, http.client.HTTPException) as error:
            return error

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
