"""HTTP to one registry: certificates, credentials and retries."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfimage import __version__
from mfimage.errors import RegistryError
from mfimage.image.registry.auth import LOOPBACK, Authenticator, Credentials

if TYPE_CHECKING:
    import urllib3

# Not the process's own generator, whose state belongs to the caller.
_JITTER = random.Random()  # noqa: S311  (when to try again)
_DOCKER = Path("/etc/docker/certs.d")
TRIES = 6
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 10.0
_TRANSIENT = (408, 429, 500, 502, 503, 504)
_CONNECT, _READ = 10.0, 60.0
_HUB = ("docker.io", "index.docker.io")

Body = bytes | Iterator[bytes] | None
Headers = Mapping[str, str] | None
Scopes = frozenset[str]
_SCHEMES: dict[str, str] = {}  # schemes of registries on this machine, probed once per process


def trust(address: str, ca: Path | None) -> ssl.SSLContext:
    """Return a TLS context that trusts the system's certificates, ``ca`` and Docker's."""
    # Reading the system's bundle takes 25 ms.
    return _trust(address, ca, *map(os.environ.get, ("SSL_CERT_FILE", "SSL_CERT_DIR")))


@functools.lru_cache
def _trust(address: str, ca: Path | None, *_variables: str | None) -> ssl.SSLContext:
    # Reads the variables itself; they are arguments for the cache's sake.
    context = ssl.create_default_context()
    files = [ca] if ca else []
    for folder in (_DOCKER, Path.home() / ".docker" / "certs.d"):
        files += sorted((folder / address).glob("*.crt"))
    for path in files:
        try:
            context.load_verify_locations(cafile=path)
        except (OSError, ssl.SSLError) as error:
            raise RegistryError(f"{path} has no usable certificate: {error}") from None
    return context


def is_distrust(error: BaseException) -> bool:
    """Return whether a connection failed because of a certificate."""
    chain: BaseException | None = error
    while chain is not None and not isinstance(chain, ssl.SSLCertVerificationError):
        chain = chain.__cause__ or chain.__context__
    return chain is not None


@dataclass(frozen=True, kw_only=True)
class RegistryResponse:
    """A response that was read whole; headers are by lower-case name."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Dropped(Exception):
    """The connection broke, or the registry has a transient failure: a retry may help."""


class Http:
    """Makes requests to a registry, ``host[:port]``; safe to use from threads."""

    def __init__(
        self, host: str, credentials: Credentials | None = None, *, ca: Path | None = None
    ) -> None:
        import urllib3

        self.host = host
        address = "registry-1.docker.io" if host in _HUB else host
        scheme = _scheme(address)
        self._pool = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=_CONNECT, read=_READ), retries=False, maxsize=16,
            ssl_context=trust(address, ca) if scheme == "https" else None,
            headers={"user-agent": f"mfimage/{__version__}"},
        )  # fmt: skip
        self._auth = Authenticator(host, credentials, self._ask)
        self.base = f"{scheme}://{address}/v2/"

    def request(
        self, method: str, url: str, *, scopes: Scopes, headers: Headers = None, body: Body = None
    ) -> RegistryResponse:
        """Make a request, with retries, and return the response of whatever status."""
        # ``url`` is absolute, or relative to ``/v2/``; ``scopes`` are those that a token needs, as
        # ``repository:team/name:pull``.
        for attempt in range(1, TRIES + 1):
            try:
                return self.once(method, url, scopes=scopes, headers=headers, body=body)
            except Dropped as error:
                self.pause(attempt, error)
        raise AssertionError

    def pause(self, attempt: int, error: Dropped) -> None:
        """Wait before another try; raise ``RegistryError`` after the last one."""
        if attempt >= TRIES:
            raise RegistryError(
                f"{self.host}: {error}, {TRIES} times",
                hint="check that it is up and reachable from here, and try again: uploads resume",
            ) from error.__cause__
        longest = min(_FIRST_PAUSE * 2 ** (attempt - 1), _LONGEST_PAUSE)
        asked = getattr(error, "seconds", 0.0)
        time.sleep(max(longest * _JITTER.uniform(0.5, 1), min(asked, 60.0)))

    def once(
        self, method: str, url: str, *, scopes: Scopes, headers: Headers = None, body: Body = None
    ) -> RegistryResponse:
        """Make a request once; raises ``Dropped`` if a retry may help."""
        with self.stream(method, url, scopes=scopes, headers=headers, body=body) as response:
            import urllib3

            try:
                data: bytes = response.read()
            except urllib3.exceptions.HTTPError as error:
                raise Dropped(_reason(error)) from error
            received = {name.lower(): value for name, value in response.headers.items()}
            return RegistryResponse(status=response.status, headers=received, body=data)

    @contextlib.contextmanager
    def stream(
        self, method: str, url: str, *, scopes: Scopes, headers: Headers = None, body: Body = None
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        """Yield a response whose body is not read yet; raises ``Dropped`` as `once` does."""
        response = self._send(method, url, scopes, headers, body)
        challenge = response.headers.get("www-authenticate")
        if response.status == 401 and challenge and self._auth.accept(challenge, scopes):
            if body is not None and not isinstance(body, bytes):
                response.release_conn()
                raise Dropped("it requires credentials")
            response.drain_conn()
            response = self._send(method, url, scopes, headers, body)
        try:
            if response.status in _TRANSIENT:
                response.drain_conn()
                raise _transient(response)
            yield response
        finally:
            # A connection cannot be reused before its response was read.
            (response.release_conn if response.closed else response.close)()

    def _send(
        self, method: str, url: str, scopes: Scopes, headers: Headers, body: Body
    ) -> urllib3.BaseHTTPResponse:
        import urllib3

        whole = url if "://" in url else self.base + url
        sent = dict(headers or {})
        # Credentials go to the registry itself, never to where it redirects.
        if whole.startswith(self.base.removesuffix("v2/")) and (found := self._auth.header(scopes)):
            sent["authorization"] = found
        try:
            return self._pool.request(
                method, whole, headers=sent, body=body, preload_content=False,
                redirect=method in ("GET", "HEAD"), retries=_redirects(method),
            )  # fmt: skip
        except (urllib3.exceptions.HTTPError, OSError) as error:
            if is_distrust(error):
                raise RegistryError(
                    f"{self.host} cannot be trusted: {_reason(error)}",
                    hint="name its CA's certificate in SSL_CERT_FILE, or put it into "
                    f"/etc/docker/certs.d/{self.host}/ca.crt",
                ) from None
            raise Dropped(_reason(error)) from error

    def _ask(
        self, method: str, url: str, *, headers: Mapping[str, str], body: bytes | None = None
    ) -> tuple[int, bytes]:
        import urllib3

        try:
            response = self._pool.request(
                method, url, headers=dict(headers), body=body, redirect=False
            )
        except urllib3.exceptions.HTTPError as error:
            raise Dropped(f"its token service: {_reason(error)}") from error
        if response.status in _TRANSIENT:
            raise Dropped(f"its token service answered HTTP {response.status}")
        return response.status, response.data

    def close(self) -> None:
        """Close connections."""
        self._pool.clear()


def _scheme(address: str) -> str:
    """Return ``https``, or ``http`` of a registry on this machine that has no TLS."""
    name = address.rpartition(":")[0] or address
    if name.strip("[]") not in LOOPBACK:
        return "https"
    if address not in _SCHEMES:
        _SCHEMES[address] = "http" if _speaks_http(address) else "https"
    return _SCHEMES[address]


def _speaks_http(address: str) -> bool:
    import urllib3

    try:
        url = f"http://{address}/v2/"
        response = urllib3.request("GET", url, redirect=False, retries=False, timeout=_CONNECT)
    except urllib3.exceptions.HTTPError as error:
        # If nothing listens, the error of a request over HTTP is the clearer one.
        return isinstance(error, urllib3.exceptions.NewConnectionError)
    return response.status not in (301, 307, 308, 400)  # what servers with TLS answer


def _redirects(method: str) -> Any:
    import urllib3

    if method not in ("GET", "HEAD"):
        return False
    return urllib3.Retry(total=None, connect=0, read=0, redirect=5, status=0, other=0)


def _transient(response: urllib3.BaseHTTPResponse) -> Dropped:
    error = Dropped(f"it answered HTTP {response.status}")
    with contextlib.suppress(ValueError):
        error.seconds = float(response.headers.get("retry-after", "0"))  # type: ignore[attr-defined]
    return error


def _reason(error: BaseException) -> str:
    """Return why a connection failed, without the connection's repr."""
    inner = getattr(error, "reason", None)
    if isinstance(inner, BaseException):
        return _reason(inner)
    text = " ".join(str(error).split())
    return text.partition(">: ")[2] or text or type(error).__name__


def refusal(response: RegistryResponse) -> str:
    """Return the status and the registry's own words."""
    try:
        first = json.loads(response.body)["errors"][0]
        reason = first.get("message") or first.get("code", "")
    except (ValueError, LookupError, TypeError, AttributeError):
        reason = ""
    return f"HTTP {response.status}{f': {reason}' if reason else ''}"


def check(response: RegistryResponse, wanted: int, what: str, where: str) -> None:
    """Raise `RegistryError`, with what to do, unless a response has the wanted status."""
    if response.status == wanted:
        return
    host = where.partition("/")[0]
    hints = {
        401: f"docker login {host}",
        403: f"ask for write access to {host}, or `docker login {host}` as another user",
        404: f"check the name {where}",
        413: f"raise the upload limit of {host}, or of the proxy before it",
    }
    raise RegistryError(f"{what}: {refusal(response)}", hint=hints.get(response.status))
