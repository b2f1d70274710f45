"""Whose certificates are trusted for a registry."""

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


_DOCKER = Path("/etc/docker/certs.d")


def trust(address: str, ca: Path | None) -> ssl.SSLContext:
    """Return the context for connections to ``address``: the system's, ``ca``, Docker's own.

    Raises
    ------
    RegistryError
        When a file holds no certificate.
    """
    # Reading a system's bundle takes 25 ms, and there may be several connections to make.
    return _trust(address, ca, *map(os.environ.get, ("SSL_CERT_FILE", "SSL_CERT_DIR")))


@functools.lru_cache
def _trust(address: str, ca: Path | None, *_variables: str | None) -> ssl.SSLContext:
    # Knows the variables by itself.
    context = ssl.create_default_context()
    files = [ca] if ca else []
    for folder in (_DOCKER, Path.home() / ".docker" / "certs.d"):
        files += sorted((folder / address).glob("*.crt"))
    for path in files:
        try:
            context.load_verify_locations(cafile=path)
        except (OSError, ssl.SSLError) as error:
            raise RegistryError(f"{path} holds no certificate that can be used: {error}") from None
    return context


def is_distrust(error: BaseException) -> bool:
    """Tell whether a connection failed because of a certificate."""
    chain: BaseException | None = error
    while chain is not None and not isinstance(chain, ssl.SSLCertVerificationError):
        chain = chain.__cause__ or chain.__context__
    return chain is not None


# HTTP to one registry: certificates, credentials, and trying again what may be tried again.

TRIES = 6
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 10.0
_TRANSIENT = (408, 429, 500, 502, 503, 504)
_CONNECT, _READ = 10.0, 60.0
_HUB = ("docker.io", "index.docker.io")

Body = bytes | Iterator[bytes] | None
# What registries on this machine speak, asked once a process.
_SCHEMES: dict[str, str] = {}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A whole answer.

    Attributes
    ----------
    status : int
        HTTP's.
    headers : mapping
        By lower-case name.
    body : bytes
        All of it.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


class Dropped(Exception):
    """The connection broke, or the registry is not well: it may be tried again."""


class Http:
    """Requests to a registry; any thread may make them.

    Parameters
    ----------
    host : str
        ``host[:port]``.
    credentials : Credentials or None
        Who we are.
    ca : Path, optional
        A file of certificates to trust beside the system's and Docker's ``certs.d``.

    Raises
    ------
    RegistryError
        When nobody is there, or it cannot be trusted.
    """

    def __init__(
        self, host: str, credentials: Credentials | None = None, *, ca: Path | None = None
    ) -> None:
        import urllib3

        self.host = host
        address = "registry-1.docker.io" if host in _HUB else host
        timeout = urllib3.Timeout(connect=_CONNECT, read=_READ)
        self._pool = urllib3.PoolManager(
            timeout=timeout, retries=False, ssl_context=trust(address, ca), maxsize=16,
            headers={"user-agent": f"mfimage/{__version__}"},
        )  # fmt: skip
        self._auth = Authenticator(host, credentials, self._ask)
        self.base = f"{self._scheme(address)}://{address}/v2/"

    def _scheme(self, address: str) -> str:
        """Return ``https``; for this machine itself ``http`` will do."""
        name = address.rpartition(":")[0] or address
        if name.strip("[]") not in LOOPBACK:
            return "https"
        if address not in _SCHEMES:
            _SCHEMES[address] = self._probe(address)
        return _SCHEMES[address]

    def _probe(self, address: str) -> str:
        import urllib3

        try:
            self._pool.request("GET", f"https://{address}/v2/", redirect=False)
        except urllib3.exceptions.HTTPError as error:
            # Not that it cannot be trusted, but that it speaks no TLS.
            return "https" if is_distrust(error) else "http"
        return "https"

    def request(
        self,
        method: str,
        url: str,
        *,
        scopes: frozenset[str],
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Answer:
        """Make a request, as often as it takes, and return the answer, whatever it says.

        Parameters
        ----------
        url : str
            Whole, or relative to ``/v2/``.
        scopes : frozenset of str
            What a token must allow, as ``repository:team/name:pull``.

        Raises
        ------
        RegistryError
            When the registry cannot be reached, or stays unwell.
        """
        for attempt in range(1, TRIES + 1):
            try:
                return self.once(method, url, scopes=scopes, headers=headers, body=body)
            except Dropped as error:
                self.pause(attempt, error)
        raise AssertionError

    def pause(self, attempt: int, error: Dropped) -> None:
        """Wait before another try; ``RegistryError`` when there were enough."""
        if attempt >= TRIES:
            raise RegistryError(
                f"{self.host}: {error}, {TRIES} times",
                hint="is it up, and reachable from here? Then try again: what arrived stays",
            ) from error.__cause__
        longest = min(_FIRST_PAUSE * 2 ** (attempt - 1), _LONGEST_PAUSE)
        asked = getattr(error, "seconds", 0.0)
        time.sleep(max(longest * random.uniform(0.5, 1), min(asked, 60.0)))  # noqa: S311

    def once(
        self,
        method: str,
        url: str,
        *,
        scopes: frozenset[str],
        headers: Mapping[str, str] | None = None,
        body: Body = None,
    ) -> Answer:
        """Make a request once; ``Dropped`` when it may be tried again."""
        with self.stream(method, url, scopes=scopes, headers=headers, body=body) as response:
            import urllib3

            try:
                data: bytes = response.read()
            except urllib3.exceptions.HTTPError as error:
                raise Dropped(_reason(error)) from error
            return Answer(status=response.status, headers=_lower(response), body=data)

    @contextlib.contextmanager
    def stream(
        self,
        method: str,
        url: str,
        *,
        scopes: frozenset[str],
        headers: Mapping[str, str] | None = None,
        body: Body = None,
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        """Give an answer whose body is still to be read; ``Dropped`` as ``once``."""
        response = self._send(method, url, scopes, headers, body)
        challenge = response.headers.get("www-authenticate")
        if response.status == 401 and challenge and self._auth.accept(challenge, scopes):
            if body is not None and not isinstance(body, bytes):
                response.release_conn()
                raise Dropped("it wanted credentials first")
            response.drain_conn()
            response = self._send(method, url, scopes, headers, body)
        try:
            if response.status in _TRANSIENT:
                response.drain_conn()
                raise _transient(response)
            yield response
        finally:
            # A connection whose answer was not read to its end is of no more use.
            (response.release_conn if response.closed else response.close)()

    def _send(
        self,
        method: str,
        url: str,
        scopes: frozenset[str],
        headers: Mapping[str, str] | None,
        body: Body,
    ) -> urllib3.BaseHTTPResponse:
        import urllib3

        whole = url if "://" in url else self.base + url
        sent = dict(headers or {})
        # Credentials go to the registry itself, never to where it sends us.
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


def _lower(response: urllib3.BaseHTTPResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}


def _reason(error: BaseException) -> str:
    """Return what went wrong with a connection, without an object's name in it."""
    inner = getattr(error, "reason", None)
    if isinstance(inner, BaseException):
        return _reason(inner)
    text = " ".join(str(error).split())
    return text.partition(">: ")[2] or text or type(error).__name__


def told(answer: Answer) -> str:
    """Return what a registry says of a refusal."""
    try:
        first = json.loads(answer.body)["errors"][0]
        said = first.get("message") or first.get("code", "")
    except (ValueError, LookupError, TypeError, AttributeError):
        said = ""
    return f"HTTP {answer.status}{f': {said}' if said else ''}"


def check(answer: Answer, wanted: int, what: str, where: str) -> None:
    """Raise when an answer is not what was wanted, and say what to do."""
    if answer.status == wanted:
        return
    host = where.partition("/")[0]
    hints = {
        401: f"docker login {host}",
        403: f"ask whoever runs {host} for leave to write, or `docker login {host}` as another",
        404: f"is {where} the right name?",
        413: f"{host}, or a proxy before it, limits uploads: raise that limit",
    }
    raise RegistryError(f"{what}: {told(answer)}", hint=hints.get(answer.status))
