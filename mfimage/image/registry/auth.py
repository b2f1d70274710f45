"""Credentials stored by Docker, and the tokens that registries give for them."""

from __future__ import annotations

import base64
import json
import os
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlencode, urlsplit

from mfimage.errors import RegistryError

_PARAMETER = re.compile(r'([a-zA-Z_]+)="([^"]*)"')
# A token is renewed so many seconds before it expires.
_MARGIN = 10
_KEPT = ("auths", "credHelpers", "credsStore", "HttpHeaders")
_HUB = "https://index.docker.io/v1/"
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """A user name and password, or an identity token (an OAuth2 refresh token)."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The value of an ``Authorization`` header."""
        text = f"{self.username}:{self.password}".encode()
        return f"Basic {base64.b64encode(text).decode()}"


def stored_credentials(host: str) -> Credentials | None:
    """Return the credentials that ``docker login`` stored for a registry."""
    if not _keeps_any():
        return None
    import docker.auth
    from docker.errors import DockerException

    name = _HUB if host in ("docker.io", "index.docker.io", "registry-1.docker.io") else host
    try:
        found: Any = docker.auth.load_config().resolve_authconfig(name)
    except (DockerException, OSError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise RegistryError(
            f"{host}: its credential helper failed: {reason}",
            hint=f"run `docker login {host}`, or correct credHelpers in Docker's config.json",
        ) from None
    if not found:
        return None
    token = found.get("IdentityToken") or found.get("identitytoken") or ""
    username = found.get("Username") or found.get("username") or ""
    password = found.get("Password") or found.get("password") or ""
    if not token and not username:
        return None
    if token:
        return Credentials(identity_token=token)
    return Credentials(username=username, password=password)


def _keeps_any() -> bool:
    """Return whether Docker's configuration has credentials: docker-py takes 0.1 s to read it."""
    folder, home = os.environ.get("DOCKER_CONFIG"), Path.home()
    paths = [home / ".docker" / "config.json", home / ".dockercfg"]
    for path in [Path(folder) / "config.json", *paths] if folder else paths:
        try:
            found = json.loads(path.read_bytes())
        except OSError:
            continue
        except ValueError:
            return True  # another format, or damaged: docker-py reads it, or says why not
        if path.name == ".dockercfg" or any(found.get(key) for key in _KEPT):
            return True
    return False


class TokenRequest(Protocol):
    """Makes one HTTP request and returns its status and body."""

    def __call__(
        self, method: str, url: str, *, headers: Mapping[str, str], body: bytes | None = None
    ) -> tuple[int, bytes]:
        """Make the request."""


class Authenticator:
    """Answers a registry's challenges, and caches tokens; anonymous without credentials."""

    def __init__(self, host: str, credentials: Credentials | None, ask: TokenRequest) -> None:
        self._host = host
        self._credentials = credentials
        self._ask = ask
        self._lock = threading.Lock()
        self._basic = False
        self._challenge: Mapping[str, str] | None = None
        self._tokens: dict[frozenset[str], tuple[str, float]] = {}

    def header(self, scopes: frozenset[str]) -> str | None:
        """Return the value of ``Authorization``; None before the first challenge."""
        if self._basic and self._credentials:
            return self._credentials.basic
        if self._challenge is None:
            return None
        with self._lock:  # one request for all threads that need the same token
            token, ends = self._tokens.get(scopes, ("", 0.0))
            if time.monotonic() >= ends:
                token, seconds = self._fetch(scopes)
                self._tokens[scopes] = (token, time.monotonic() + max(seconds - _MARGIN, 1))
        return f"Bearer {token}"

    def accept(self, challenge: str, scopes: frozenset[str]) -> bool:
        """Handle a ``WWW-Authenticate`` header; return whether to repeat the request."""
        kind, _, rest = challenge.strip().partition(" ")
        if kind.lower() == "basic":
            again = not self._basic and self._credentials is not None
            self._basic = True
            return again
        if kind.lower() != "bearer":
            return False
        found = {name.lower(): value for name, value in _PARAMETER.findall(rest)}
        if "realm" not in found:
            return False
        first = self._challenge is None
        with self._lock:
            self._challenge = found
            known = self._tokens.pop(scopes, None)
        return first or known is not None

    def _fetch(self, scopes: frozenset[str]) -> tuple[str, float]:
        challenge = self._challenge or {}
        realm, service = challenge["realm"], challenge.get("service", "")
        parts = urlsplit(realm)
        if parts.scheme != "https" and parts.hostname not in LOOPBACK:
            raise RegistryError(
                f"{self._host} asks for credentials at {realm}, which is not encrypted",
                hint="a registry's token service must have an https:// URL",
            )
        query = [("service", service), *(("scope", scope) for scope in sorted(scopes))]
        status, body = self._request(realm, [pair for pair in query if pair[1]])
        try:
            found = json.loads(body)
            token = found.get("token") or found.get("access_token")
            seconds = float(found.get("expires_in") or 60)
        except (ValueError, AttributeError, TypeError):
            token, seconds = None, 0.0
        if status != 200 or not isinstance(token, str):
            who = "these credentials" if self._credentials else "anonymous users"
            raise RegistryError(
                f"{self._host} refuses {who} a token for {', '.join(sorted(scopes)) or 'anything'} "
                f"(HTTP {status})",
                hint=f"docker login {self._host}",
            )
        return token, seconds

    def _request(self, realm: str, query: list[tuple[str, str]]) -> tuple[int, bytes]:
        credentials = self._credentials
        if credentials and credentials.identity_token:
            form = [
                ("grant_type", "refresh_token"),
                ("client_id", "mfimage"),
                ("refresh_token", credentials.identity_token),
                *((name, value) for name, value in query if name != "scope"),
                ("scope", " ".join(value for name, value in query if name == "scope")),
            ]
            kind = {"content-type": "application/x-www-form-urlencoded"}
            return self._ask("POST", realm, headers=kind, body=urlencode(form).encode())
        headers = {"authorization": credentials.basic} if credentials else {}
        separator = "&" if urlsplit(realm).query else "?"
        return self._ask("GET", f"{realm}{separator}{urlencode(query)}", headers=headers)
