"""HTTP to one registry: certificates, proxies, credentials, redirects and retries."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urljoin, urlsplit

from mfimage import __version__
from mfimage.errors import RegistryError
from mfimage.image.registry.auth import Authenticator, Credentials, Scopes, is_local

if TYPE_CHECKING:
    import urllib3

# Not the process's own generator, whose state belongs to the caller.
_JITTER = random.Random()  # noqa: S311  (when to try again)
_DOCKER = Path("/etc/docker/certs.d")
_TRIES = 6
_FIRST_PAUSE, _LONGEST_PAUSE, _LONGEST_WAIT = 0.2, 10.0, 60.0
# Attempts end after this time, and a blob may take longer by its size.
_SECONDS, _SLOWEST = 300.0, 64 << 10
_TRANSIENT = (408, 429, 499, 500, 502, 503, 504, 522)
_REDIRECT = (301, 302, 303, 307, 308)
_REDIRECTS = 5
_CONNECT, _READ = 10.0, 60.0
_MAX_BODY = 32 << 20
_HUB = "registry-1.docker.io"
_CONNECTION = re.compile(r"^(?:<[^>]*>|HTTPS?Connection(?:Pool)?\([^)]*\)): ")
_TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)

Body = bytes | Callable[[], Iterator[bytes]] | None
Headers = Mapping[str, str] | None
Origin = tuple[str, str, int]


def trust(address: str, ca: Path | None) -> ssl.SSLContext:
    """Return a TLS context of the system's certificates, ``ca``, and Docker's for a registry."""
    # Reading the system's bundle takes 25 ms.
    return _trust(address, ca, *map(os.environ.get, ("SSL_CERT_FILE", "SSL_CERT_DIR", "HOME")))


@functools.lru_cache
def _trust(address: str, ca: Path | None, *_variables: str | None) -> ssl.SSLContext:
    # Reads the variables itself; they are arguments for the cache's sake.
    context = ssl.create_default_context()
    docker = [folder / address for folder in (_DOCKER, Path.home() / ".docker" / "certs.d")]
    files = [path for folder in docker for path in sorted(folder.glob("*.c*rt"))]
    for path in [ca, *files] if ca else files:
        try:
            if path.suffix == ".cert":  # an encrypted key would be asked for at the terminal
                context.load_cert_chain(path, path.with_suffix(".key"), password="")
            else:
                context.load_verify_locations(cafile=path)
        except (OSError, ssl.SSLError) as error:
            key = " with the .key beside it" if path.suffix == ".cert" else ""
            raise RegistryError(f"{path}{key} is not usable: {error}") from None
    return context


@dataclass(frozen=True, kw_only=True)
class RegistryResponse:
    """A response that was read; headers are by lower-case name."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: str  # after redirects

    @property
    def ok(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300

    @property
    def reason(self) -> str:
        """The status, and the registry's own words."""
        return f"HTTP {self.status}{_words(self.headers.get('content-type', ''), self.body)}"

    def transient(self, where: str = "") -> Dropped:
        """Return the error of a status that may be another one the next time."""
        wait = self.headers.get("retry-after", "")
        seconds = float(wait) if wait.isdecimal() else 0
        return Dropped(f"{where}{self.reason}", status=self.status, wait=seconds)


class Dropped(Exception):
    """The connection broke, or the registry has a transient failure: a retry may help."""

    def __init__(self, reason: str, *, status: int = 0, wait: float = 0) -> None:
        super().__init__(reason)
        self.status = status
        self.wait = wait  # seconds, as the registry asked


class Attempts:
    """The attempts of one operation, bounded by their number and the total time."""

    def __init__(self, host: str, size: int = 0, tries: int = _TRIES) -> None:
        self._host = host
        self._count, self._tries = 0, tries
        self._seconds = _SECONDS + size / _SLOWEST
        self._ends = time.monotonic() + self._seconds

    def check_time(self) -> None:
        """Raise ``RegistryError`` when the time is over."""
        if time.monotonic() > self._ends:
            raise RegistryError(f"{self._host}: not done after {self._seconds:.0f} s")

    def pause(self, error: Dropped) -> None:
        """Wait before another attempt; raise ``RegistryError`` after the last one."""
        self._count += 1
        longest = min(_FIRST_PAUSE * 2 ** (self._count - 1), _LONGEST_PAUSE)
        pause = max(longest * _JITTER.uniform(0.5, 1), error.wait)
        late = time.monotonic() + pause > self._ends
        if self._count < self._tries and error.wait <= _LONGEST_WAIT and not late:
            time.sleep(pause)
            return
        hint = "check that it is up and reachable from here, and try again"
        if error.status == 429:
            hint = f"docker login {self._host}: limits are lower without it; or try again later"
        times = f" ({self._count} attempts)" if self._count > 1 else ""
        raise RegistryError(f"{self._host}: {error}{times}", hint=hint) from error.__cause__

    def progressed(self) -> None:
        """Count attempts anew, since the last one got something done."""
        self._count = 0


class Http:
    """Makes requests to a registry, ``host[:port]``; safe to use from threads."""

    def __init__(
        self, host: str, credentials: Credentials | None = None, *, ca: Path | None = None
    ) -> None:
        self.host = host
        self._ca = ca
        self._address = _HUB if host == "docker.io" else host
        self._auth = Authenticator(host, credentials, self._ask)
        self._settling = threading.Lock()
        self._base = ""  # until it is settled
        self._pools: dict[Origin, urllib3.PoolManager] = {}

    def request(
        self, method: str, url: str, scopes: Scopes, headers: Headers = None, body: Body = None,
        *, tries: int = _TRIES,
    ) -> RegistryResponse:  # fmt: skip
        """Make a request, with retries, and return the response of whatever status."""
        attempts = Attempts(self.host, tries=tries)
        while True:
            try:
                return self.once(method, url, scopes, headers, body)
            except Dropped as error:
                attempts.pause(error)

    def once(
        self, method: str, url: str, scopes: Scopes, headers: Headers = None, body: Body = None
    ) -> RegistryResponse:
        """Make a request once; raises ``Dropped`` if a retry may help."""
        with self.stream(method, url, scopes, headers, body) as (at, response):
            return self.read(at, response)

    @contextlib.contextmanager
    def stream(
        self, method: str, url: str, scopes: Scopes, headers: Headers = None, body: Body = None
    ) -> Iterator[tuple[str, urllib3.BaseHTTPResponse]]:
        """Yield the URL after redirects, and a response whose body is not read yet."""
        # ``url`` is absolute, or relative to ``/v2/``.
        self.settle()
        used = self._auth.header(scopes)
        at, response = self._send(method, url, used, headers, body)
        challenge = response.headers.get("www-authenticate")
        refused = response.status == 401 and _origin(at) == _origin(self._base)
        if refused and challenge and (renewed := self._auth.renew(challenge, scopes, used)):
            response.drain_conn()
            at, response = self._send(method, url, renewed, headers, body)
        try:
            if response.status in _TRANSIENT:
                raise self.read(at, response).transient()
            yield at, response
        finally:
            # A connection cannot be reused before its response was read.
            (response.release_conn if response.closed else response.close)()

    def read(self, url: str, response: urllib3.BaseHTTPResponse) -> RegistryResponse:
        """Read a response, up to a limit."""
        import urllib3

        try:
            body = response.read(_MAX_BODY)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Dropped(_reason(error)) from error
        headers = {name.lower(): value for name, value in response.headers.items()}
        return RegistryResponse(status=response.status, headers=headers, body=body, url=url)

    def settle(self) -> None:
        """Find out, once for all threads, where the registry is and how it authenticates."""
        with self._settling:
            attempts = Attempts(self.host)
            while not self._base:
                try:
                    self._base = self._ping()
                except Dropped as error:
                    attempts.pause(error)

    def _ping(self) -> str:
        found, base = None, f"https://{self._address}/v2/"
        if is_local(urlsplit(base).hostname or ""):
            plain = f"http://{self._address}/v2/"
            with contextlib.suppress(_NotHttp):
                found = self.read(plain, self._request("GET", plain, {}))
                if found.status in (*_REDIRECT, 400):  # what servers with TLS answer
                    found = None
        if found is None:
            found = self.read(base, self._request("GET", base, {}))
        if found.status in _TRANSIENT:
            raise found.transient()
        if found.status == 401:
            self._auth.settle(found.headers.get("www-authenticate", ""))
        return found.url

    def follow(self, url: str, location: str) -> str:
        """Return where a response's ``Location`` leads; never from https to http."""
        target = urljoin(url, location)
        if urlsplit(url).scheme != "http" and urlsplit(target).scheme != "https":
            shown = urlsplit(target)._replace(query="", fragment="").geturl()
            raise RegistryError(
                f"{self.host} redirects from https to {shown}, which is not encrypted",
                hint="let the registry, or the proxy before it, give https:// locations",
            )
        return target

    def _send(
        self, method: str, url: str, authorization: str | None, headers: Headers, body: Body
    ) -> tuple[str, urllib3.BaseHTTPResponse]:
        url = urljoin(self._base, url)
        for _ in range(_REDIRECTS + 1):
            sent = dict(headers or {})
            # Credentials go to the registry itself, never to where it redirects.
            if authorization and _origin(url) == _origin(self._base):
                sent["authorization"] = authorization
            response = self._request(method, url, sent, body() if callable(body) else body)
            location = response.headers.get("location")
            followed = _REDIRECT if method in ("GET", "HEAD") else (307, 308)
            if response.status not in followed or not location:
                return url, response
            response.drain_conn()
            url = self.follow(url, location)
        raise RegistryError(f"{self.host} redirects more than {_REDIRECTS} times")

    def _request(
        self, method: str, url: str, headers: Mapping[str, str], body: Any = None
    ) -> urllib3.BaseHTTPResponse:
        import urllib3

        try:
            return self._pool(_origin(url)).request(
                method, url, headers={"user-agent": f"mfimage/{__version__}", **headers},
                body=body, preload_content=False, redirect=False, retries=False,
            )  # fmt: skip
        except (urllib3.exceptions.HTTPError, OSError, UnicodeError) as error:
            raise self._failure(url, error) from error

    def _failure(self, url: str, error: Exception) -> Exception:
        """Return ``Dropped``, or ``RegistryError`` where another attempt is pointless."""
        import urllib3

        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ssl.SSLError):
            cause = cause.__cause__ or cause.__context__
        host, reason = urlsplit(url).netloc, _reason(error)
        certs = f"/etc/docker/certs.d/{host}"
        known = cause.reason or "" if isinstance(cause, ssl.SSLError) else ""
        if isinstance(error, urllib3.exceptions.ProxyError):
            return Dropped(f"its proxy, according to HTTPS_PROXY: {reason}")
        if isinstance(error, urllib3.exceptions.NameResolutionError) and not self._base:
            what, hint = "the name was not found", f"check it: {reason}"
        elif isinstance(cause, ssl.SSLCertVerificationError):
            what = f"it cannot be trusted: {reason}"
            hint = f"name its CA's certificate in SSL_CERT_FILE, or put it into {certs}/ca.crt"
        elif "ALERT" in known:
            what = f"it refuses the TLS connection: {reason}"
            hint = f"if it wants a client certificate, put client.cert and .key into {certs}"
        elif known in _NO_TLS and not is_local(urlsplit(url).hostname or ""):
            what = f"it answers without TLS: {reason}"
            hint = "only registries on this machine may; put a proxy with TLS before it"
        else:
            closed = isinstance(error, urllib3.exceptions.ProtocolError)
            return (_NotHttp if closed else Dropped)(reason)
        return RegistryError(f"{host}: {what}", hint=hint)

    def _pool(self, origin: Origin) -> urllib3.PoolManager:
        # One for each origin, since client certificates are the registry's alone.
        found = self._pools.get(origin)
        return found or self._pools.setdefault(origin, self._new_pool(origin))

    def _new_pool(self, origin: Origin) -> urllib3.PoolManager:
        import urllib3

        scheme, host, port = origin
        own = origin == _origin(f"{scheme}://{self._address}")
        options: dict[str, Any] = {
            "timeout": urllib3.Timeout(connect=_CONNECT, read=_READ), "maxsize": 16,
        }  # fmt: skip
        if scheme == "https":
            address = self._address if own else f"{host}:{port}"
            options["ssl_context"] = trust(address, self._ca if own else None)
        proxy = _proxy(scheme, host, port)
        if proxy is None:
            return urllib3.PoolManager(**options)
        kind, _, rest = proxy.rpartition("://")
        if kind not in ("", "http", "https"):
            raise RegistryError(f"{scheme.upper()}_PROXY: {kind}:// is not supported")
        user, _, address = rest.rpartition("@")
        headers = urllib3.make_headers(proxy_basic_auth=unquote(user)) if user else None
        return urllib3.ProxyManager(
            f"{kind or 'http'}://{address}", proxy_headers=headers, **options
        )

    def _ask(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None
    ) -> tuple[int, bytes, str]:
        try:
            found = self.read(url, self._request(method, url, headers, body))
        except Dropped as error:
            raise Dropped(f"its token service: {error}") from error
        if found.status in _TRANSIENT:
            raise found.transient("its token service: ")
        return found.status, found.body, found.reason

    def close(self) -> None:
        """Close connections."""
        for pool in self._pools.values():
            pool.clear()


_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "UNKNOWN_PROTOCOL")


class _NotHttp(Dropped):
    """The connection was closed, or the response is not HTTP."""


def _origin(url: str) -> Origin:
    parts = urlsplit(url)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise RegistryError(f"{parts.scheme}://{parts.netloc} has no valid port") from None
    return parts.scheme, parts.hostname or "", port


def _proxy(scheme: str, host: str, port: int) -> str | None:
    """Return the proxy for a host, by ``HTTPS_PROXY``, ``HTTP_PROXY`` and ``NO_PROXY``."""
    if is_local(host):
        return None
    from ipaddress import ip_address, ip_network
    from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore

    found = getproxies_environment()
    if proxy_bypass_environment(f"{host}:{port}", found):
        return None
    for entry in found.get("no", "").split(","):
        with contextlib.suppress(ValueError):
            if ip_address(host) in ip_network(entry.strip(), strict=False):
                return None
    return found.get(scheme)


def _reason(error: BaseException) -> str:
    """Return why a connection failed, without the connection's repr."""
    inner = getattr(error, "reason", None) or getattr(error, "original_error", None)
    if isinstance(inner, BaseException):
        return _reason(inner)
    text = _CONNECTION.sub("", " ".join(str(error).split()))
    return text or type(error).__name__


def _words(kind: str, body: bytes) -> str:
    """Return what a refusal says, with a colon before it: its messages, its text or its title."""
    text = body.decode(errors="replace")
    try:
        document = json.loads(body)
        errors = document.get("errors") or [document] if isinstance(document, dict) else ()
        words = [each.get("message") or each.get("code") or each.get("error") for each in errors]
        text = "; ".join(str(each) for each in words if each)
    except ValueError:
        if "html" in kind or "<html" in text.lower():
            title = _TITLE.search(text)
            text = title[1] if title else ""
    except (TypeError, AttributeError):
        text = ""
    # Control characters would reach the terminal.
    text = "".join(char if char.isprintable() else " " for char in text)
    text = " ".join(text.split())[:400]
    return f": {text}" if text else ""
