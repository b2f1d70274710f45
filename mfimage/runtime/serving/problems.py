"""Errors as HTTP responses: RFC 9457 problem documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from mfimage.errors import Fault, InputError, OutputError
from mfimage.runtime.calls.queue import Expired, Stopping

MEDIA_TYPE = "application/problem+json"
STOPPING = "the server is shutting down"
NOT_UNICODE = "the request has text that is not valid Unicode"

# The reason phrases of RFC 9110; Python's own changed between versions.
TITLES = {
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    406: "Not Acceptable",
    408: "Request Timeout",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    422: "Unprocessable Content",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}

PROBLEM_SCHEMA = {
    "type": "object",
    "title": "Problem",
    "description": "A problem document (RFC 9457).",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "errors": {
            "type": "array",
            "description": "Each place that does not fit.",
            "items": {
                "type": "object",
                "required": ["path", "message"],
                "properties": {"path": {"type": "string"}, "message": {"type": "string"}},
            },
        },
        "request_id": {"type": "string"},
    },
}


class Problem(Exception):
    """An error response; ``faults`` are the places in the body that do not fit."""

    def __init__(
        self, status: int, detail: str, *, faults: Sequence[Fault] = (),
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:  # fmt: skip
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.faults = faults
        self.headers = list(headers)

    def document(self, request_id: str | None = None) -> dict[str, Any]:
        """Return the members of the problem document."""
        document: dict[str, Any] = {
            "type": "about:blank",
            "title": TITLES.get(self.status, "Error"),
            "status": self.status,
            "detail": self.detail,
        }
        if self.faults:
            document["errors"] = [{"path": f.path, "message": f.message} for f in self.faults]
        if request_id is not None:
            document["request_id"] = request_id
        return document

    def body(self, request_id: str | None = None) -> bytes:
        """Return the document as JSON bytes."""
        # Surrogates in a client's text have no UTF-8 form.
        try:
            return orjson.dumps(self.document(request_id))
        except TypeError:
            return orjson.dumps(Problem(self.status, NOT_UNICODE).document(request_id))


def problem_of(error: BaseException) -> Problem:
    """Return what a client gets to know of an error."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, InputError):
        return Problem(422, error.message, faults=error.faults)
    if isinstance(error, OutputError):
        return Problem(500, "the function's result does not fit", faults=error.faults)
    if isinstance(error, Expired):
        return Problem(504, f"no answer within {error.seconds:g} s")
    if isinstance(error, Stopping):
        return unavailable(STOPPING)
    return Problem(500, "the function failed; the log has the reason under this request's id")


def unavailable(detail: str) -> Problem:
    """Return a 503 that asks the client to try again."""
    return Problem(503, detail, headers=[(b"retry-after", b"1")])


def late(seconds: float) -> Problem:
    """Return a 408 for a request of which a part is missing."""
    detail = f"the request did not arrive within {seconds:g} s (MFIMAGE_TIMEOUT)"
    return Problem(408, detail, headers=[(b"connection", b"close")])
