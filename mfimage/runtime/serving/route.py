"""One route of the HTTP contract: its path, its handler, its documentation, its checks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mfimage.package.spec import CallableSpec
from mfimage.runtime.serving.content import JSON, Header, MediaCodec
from mfimage.runtime.serving.problems import MEDIA_TYPE, Problem
from mfimage.runtime.serving.served import Served
from mfimage.runtime.serving.service import Receive, Service
from mfimage.runtime.serving.services import Services

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]

# In a scope: the problem for which the rest of the request is not read.
REFUSED = "mfimage.refused"
# In a scope: the request body, if it came with the head; it can be received, too.
WHOLE = "mfimage.whole"
JSON_HEADERS: Sequence[Header] = ((b"content-type", JSON.encode()),)


@dataclass(eq=False, slots=True)  # by position: keywords take longer
class HttpRequest:
    """A request whose body has not been read; ``routes`` are those of the app that handles it."""

    scope: Scope
    receive: Receive
    headers: Mapping[bytes, bytes]  # names in lower case
    id: str
    started: float  # of time.monotonic()
    routes: Sequence[Route]
    held: int = 0  # bytes of its body that count in `Service.bodies`


@dataclass(eq=False, slots=True)
class Response:
    """The response to a request; the app adds the headers that every response has."""

    body: bytes
    headers: Sequence[Header] = JSON_HEADERS
    status: int = 200


def problem_response(problem: Problem, request_id: str) -> Response:
    """Return a problem document."""
    headers = [(b"content-type", MEDIA_TYPE.encode()), *problem.headers]
    return Response(problem.body(request_id), headers, problem.status)


# An exception, returned or raised, becomes a response in the form of the route's errors.
Reply = Awaitable[Response | BaseException]
FunctionHandler = Callable[[Service, HttpRequest], Reply]
ServerHandler = Callable[[Services, HttpRequest], Reply]
Handler = FunctionHandler | ServerHandler


@dataclass(frozen=True, kw_only=True)
class Described:
    """What an operation is documented from; the last three are JSON Schemas.

    An operation of the server gets any function's.
    """

    spec: CallableSpec
    codecs: Mapping[str, MediaCodec]
    record: Mapping[str, Any]
    result: Mapping[str, Any]
    problem: Mapping[str, Any]


# Media types, and the OpenAPI description of each.
Content = Callable[[Described], Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Operation:
    """The documentation of a route in ``/openapi.json``."""

    id: str
    summary: str
    response: Content
    tag: str = "server"
    description: str = ""
    request: Content | None = None
    success: str = "Successful Response"
    # Other statuses, and when they are sent.
    problems: Mapping[int, str] = field(default_factory=dict)
    # Components that the response refers to.
    schemas: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """A request that ``mfimage test`` sends, and the response that it expects."""

    name: str
    status: int = 200
    media_type: str = JSON
    body: bytes | None = None
    content_type: str = JSON
    # Of a platform, for `mfimage test --contract`; None: the server's own.
    contract: str | None = None
    # The recorded examples whose inputs are sent, by index, and what returns their results.
    examples: Sequence[int] = ()
    results: Callable[[bytes], Sequence[Any]] | None = None
    # Returns what it found in the response body; raises ``ValueError`` when something is wrong.
    verify: Callable[[Served, bytes], str] | None = None


@dataclass(frozen=True, kw_only=True)
class Route:
    """One route, of a function or of the server; of the table, the first of a path counts."""

    name: str  # unique in the contract, for each function
    path: str
    # Gets the `Service` of `function`, or `Services` where `function` is None.
    handler: Handler
    function: str | None = None
    chooses: bool = False  # whether the handler of a server's route calls one of its functions
    method: str = "GET"  # which includes HEAD, or POST
    # One of ``metrics.ENDPOINTS``, by which its requests are counted; None: neither counted nor
    # logged.
    endpoint: str | None = "other"
    while_loading: bool = False  # whether it answers before what it serves is loaded
    operation: Operation | None = None
    documented: bool = True
    below: str | None = None  # a route prefix of Ray Serve; None: it is served at the root only
    local: bool = (
        False  # its response concerns one process: Ray Serve, which may choose any, has none
    )
    expectations: tuple[Expectation, ...] = ()
    errors: Callable[[Problem, str], Response] = problem_response  # with the request's id
    # Paths that start so and have no route get their errors in this route's form.
    claims: str | None = None
