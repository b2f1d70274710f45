"""One route of the HTTP contract: its path, its handler, its documentation, its checks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mfimage.package.spec import FunctionSpec
from mfimage.runtime.serving.content import JSON, Header, MediaCodec
from mfimage.runtime.serving.service import Receive, Service

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

JSON_HEADERS: Sequence[Header] = ((b"content-type", JSON.encode()),)


class Request:
    """A request whose body has not been read.

    Attributes
    ----------
    scope : dict
        ASGI's.
    receive : callable
        ASGI's.
    headers : mapping
        The headers, by lower-case name.
    id : str
        The client's ``X-Request-Id``, else a new one.
    started : float
        ``time.monotonic()`` when it came.
    routes : sequence of Route
        All routes of the app that handles it.
    """

    __slots__ = ("headers", "id", "receive", "routes", "scope", "started")

    def __init__(  # noqa: PLR0917  (keywords take longer)
        self,
        scope: Scope,
        receive: Receive,
        headers: Mapping[bytes, bytes],
        id: str,
        started: float,
        routes: Sequence[Route],
    ) -> None:
        self.scope = scope
        self.receive = receive
        self.headers = headers
        self.id = id
        self.started = started
        self.routes = routes

    @property
    def root(self) -> str:
        """The path below which the app is mounted."""
        root: str = self.scope.get("root_path", "")
        return root.rstrip("/")


class Response:
    """The response to a request; the app adds the headers that every response has."""

    __slots__ = ("body", "headers", "status")

    def __init__(
        self, body: bytes, headers: Sequence[Header] = JSON_HEADERS, status: int = 200
    ) -> None:
        self.body = body
        self.headers = headers
        self.status = status


# An exception, returned or raised, becomes a problem document.
Handler = Callable[[Service, Request], Awaitable[Response | BaseException]]


class Described(Protocol):
    """What the documentation of an operation is made from."""

    spec: FunctionSpec
    codecs: Mapping[str, MediaCodec]

    @property
    def record(self) -> Mapping[str, Any]:
        """Schema of a record."""

    @property
    def result(self) -> Mapping[str, Any]:
        """Schema of a result."""

    @property
    def problem(self) -> Mapping[str, Any]:
        """Schema of a problem document."""


# Media types, and what OpenAPI says of each.
Content = Callable[[Described], Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Operation:
    """The documentation of a route in ``/openapi.json``.

    Attributes
    ----------
    id, summary, tag, description : str
        OpenAPI's; an empty description is left out.
    request : callable or None
        The request body, by media type.
    response : callable
        The response body, by media type.
    success : str
        Description of the response with status 200.
    problems : mapping of int to str
        Other statuses and when they are sent.
    schemas : mapping of str to dict
        Components that ``response`` refers to.
    """

    id: str
    summary: str
    response: Content
    tag: str = "server"
    description: str = ""
    request: Content | None = None
    success: str = "Successful Response"
    problems: Mapping[int, str] = field(default_factory=dict)
    schemas: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """A request that ``mfimage test`` sends, and the response that it expects.

    Attributes
    ----------
    name : str
        Name of the check.
    status : int
        Status of the response.
    media_type : str
        Media type of the response, without parameters.
    body, content_type : bytes or None, str
        The request body.
    verify : callable or None
        Takes the function and the response body; returns what it found, raises ``ValueError``
        when something is wrong.
    """

    name: str
    status: int = 200
    media_type: str = JSON
    body: bytes | None = None
    content_type: str = JSON
    verify: Callable[[FunctionSpec, bytes], str] | None = None


@dataclass(frozen=True, kw_only=True)
class Route:
    """One route.

    Attributes
    ----------
    name : str
        Unique in the contract.
    path : str
        The path.
    handler : callable
        Returns the response.
    method : str
        ``GET``, which includes ``HEAD``, or ``POST``.
    endpoint : str or None
        The label by which its requests are counted, one of ``metrics.ENDPOINTS``; None: they are
        neither counted nor logged.
    while_loading : bool
        Whether it answers before the function is loaded.
    operation : Operation or None
        Its documentation.
    documented : bool
        Whether ``/openapi.json`` has it.
    below : str or None
        Its path below a route prefix of Ray Serve; None: it is served at the root only.
    local : bool
        Whether the response concerns one process only; Ray Serve, which may choose any, does not
        serve it.
    expectations : tuple of Expectation
        What ``mfimage test`` checks.
    """

    name: str
    path: str
    handler: Handler
    method: str = "GET"
    endpoint: str | None = "other"
    while_loading: bool = False
    operation: Operation | None = None
    documented: bool = True
    below: str | None = None
    local: bool = False
    expectations: tuple[Expectation, ...] = ()

    @property
    def methods(self) -> tuple[str, ...]:
        """The HTTP methods that it answers."""
        return ("GET", "HEAD") if self.method == "GET" else (self.method,)
