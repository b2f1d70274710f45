"""Credentials that Docker stores, and the tokens that registries give for them."""

from __future__ import annotations

import base64
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from mfimage.errors import RegistryError
from mfimage.image.registry.reference import registry_host

_PARAMETER = re.compile(r'(\w+)\s*=\s*(?:"([^"]*)"|([^\s,"]+))')
_SCHEME = re.compile(rf"(?:^|,)\s*(basic|bearer)\b((?:[\s,]*{_PARAMETER.pattern})*)", re.IGNORECASE)
_LOCAL = re.compile(r"(?:.+\.)?localhost|127(?:\.\d{1,3}){3}|::1")
# A token is renewed so many seconds before it expires.
_MARGIN = 10
_HUB_SERVER = "https://index.docker.io/v1/"
_IDENTITY_TOKEN = "<token>"  # noqa: S105  (a user name: the secret is an identity token)
_NOT_FOUND = "credentials not found"
_HELPER_SECONDS = 60

# Makes a request with headers and a body; returns its status, its body and why it was refused.
Ask = Callable[[str, str, Mapping[str, str], bytes | None], tuple[int, bytes, str]]
Scopes = tuple[str, ...]  # as ``repository:team/name:pull``; what is to be written comes first


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """A user name and password, an identity token (OAuth2 refresh token) or a bearer token."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The value of an ``Authorization`` header."""
        text = f"{self.username}:{self.password}".encode()
        return f"Basic {base64.b64encode(text).decode()}"


def is_local(host: str) -> bool:
    """Return whether a host, without its port, is this machine."""
    return _LOCAL.fullmatch(host.strip("[]").lower()) is not None


def stored_credentials(host: str) -> Credentials | None:
    """Return the credentials that ``docker login`` stored for a registry."""
    folder = os.environ.get("DOCKER_CONFIG")
    path = (Path(folder) if folder else Path.home() / ".docker") / "config.json"
    found = _Stored(path=path, host=host)
    return found.from_helper() or found.from_file()


class _Stored:
    """Docker's configuration, as far as it concerns one registry."""

    def __init__(self, *, path: Path, host: str) -> None:
        self.path, self.host = path, host
        try:
            raw = path.read_bytes()
            config = json.loads(raw) if raw.strip() else None
        except (FileNotFoundError, NotADirectoryError):
            config = None
        except OSError as error:
            raise self._wrong(f"cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise self._wrong(f"is not JSON: {error}") from None
        self.config = self._object("", config)

    def from_helper(self) -> Credentials | None:
        key, name = self._entry("credHelpers")
        if name is None:
            key, name = "credsStore", self.config.get("credsStore")
        if not name:
            return None
        program = f"docker-credential-{self._text(key, name)}"
        key += f" names {program}, which"
        import subprocess

        try:
            done = subprocess.run(
                [program, "get"], input=_HUB_SERVER if self.host == "docker.io" else self.host,
                capture_output=True, text=True, timeout=_HELPER_SECONDS, check=False,
            )  # fmt: skip
        except FileNotFoundError:
            raise self._wrong(f"{key} is not installed") from None
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            raise self._wrong(f"{key} failed: {error}") from None
        if done.returncode:
            reason = " ".join((done.stdout + done.stderr).split())[:300]
            if _NOT_FOUND in reason:
                return None
            raise self._wrong(f"{key} failed: {reason}")
        try:
            document = json.loads(done.stdout)
            username, secret = str(document["Username"]), str(document["Secret"])
        except (ValueError, LookupError, TypeError):
            # Its output is not shown: it may hold the secret.
            raise self._wrong(f"{key} printed no JSON with Username and Secret") from None
        if username == _IDENTITY_TOKEN:
            return Credentials(identity_token=secret)
        return Credentials(username=username, password=secret) if username else None

    def from_file(self) -> Credentials | None:
        key, entry = self._entry("auths")
        entry = self._object(key, entry)
        names = ("username", "password", "identitytoken", "registrytoken", "auth")
        username, password, identity, token, auth = (
            self._text(f"{key}.{name}", entry.get(name) or "") for name in names
        )
        if auth:
            try:
                pair = base64.b64decode("".join(auth.split()), validate=True).decode()
                username, password = pair.split(":", 1)
            except ValueError:
                raise self._wrong(f"{key}.auth is not base64 of user:password") from None
        if not (username or identity or token):
            return None
        return Credentials(
            username=username, password=password.strip("\0"),
            identity_token=identity, registry_token=token,
        )  # fmt: skip

    def _entry(self, section: str) -> tuple[str, Any]:
        """Return the name and value of the registry's entry; other entries are not looked at."""
        entries = self._object(section, self.config.get(section))
        # Docker writes host names, and once wrote URLs.
        for key in sorted(entries, key=lambda key: key != self.host):
            if registry_host(key.partition("://")[2] or key) == self.host:
                return f'{section}["{key}"]', entries[key]
        return section, None

    def _object(self, key: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict | None):
            raise self._wrong(f"{key} is not a JSON object".strip())
        return value or {}

    def _text(self, key: str, value: Any) -> str:
        if not isinstance(value, str):
            raise self._wrong(f"{key} is not a string")
        return value

    def _wrong(self, what: str) -> RegistryError:
        hint = f"correct the file, or run `docker login {self.host}` again"
        return RegistryError(f"{self.path}: {what}", hint=hint)


class Authenticator:
    """Answers a registry's challenges, and caches tokens; anonymous without credentials."""

    def __init__(self, host: str, credentials: Credentials | None, ask: Ask) -> None:
        self._host = host
        self._credentials = credentials
        self._ask = ask
        self._lock = threading.RLock()
        self._scheme = ""
        self._challenge: Mapping[str, str] = {}
        self._tokens: dict[Scopes, tuple[str, float]] = {}
        self._wanted: dict[Scopes, Scopes] = {}  # what the registry asked for besides

    def header(self, scopes: Scopes) -> str | None:
        """Return the value of ``Authorization``; None before the first challenge."""
        if self._credentials and self._credentials.registry_token:
            return f"Bearer {self._credentials.registry_token}"
        if self._scheme == "basic":
            return self._credentials.basic if self._credentials else None
        if not self._scheme:
            return None
        with self._lock:  # one request for all threads that need the same token
            token, ends = self._tokens.get(scopes, ("", 0.0))
            if time.monotonic() >= ends:
                token, seconds = self._fetch((*self._wanted.get(scopes, ()), *scopes))
                self._tokens[scopes] = (token, time.monotonic() + max(seconds - _MARGIN, 1))
        return f"Bearer {token}"

    def settle(self, challenge: str) -> bool:
        """Learn the scheme from a ``WWW-Authenticate`` header; return whether it is a known one."""
        found = _SCHEME.search(challenge)
        if found is None:
            return False
        parameters = {
            name.lower(): text or bare for name, text, bare in _PARAMETER.findall(found[2])
        }
        if found[1].lower() == "bearer" and "realm" not in parameters:
            return False
        with self._lock:
            self._challenge, self._scheme = parameters, found[1].lower()
        return True

    def renew(self, challenge: str, scopes: Scopes, used: str | None) -> str | None:
        """Return another header than the refused one; None if there is no other."""
        with self._lock:
            if not self.settle(challenge):
                return None
            held = self._tokens.get(scopes)
            if held and f"Bearer {held[0]}" == used:  # else another thread has renewed it
                del self._tokens[scopes]
                asked = self._challenge.get("scope", "").split()
                self._wanted[scopes] = tuple(each for each in asked if each not in scopes)
            found = self.header(scopes)
        return found if found != used else None

    def _fetch(self, scopes: Scopes) -> tuple[str, float]:
        realm, service = self._challenge["realm"], self._challenge.get("service", "")
        parts = urlsplit(realm)
        if parts.scheme != "https" and not is_local(parts.hostname or ""):
            raise RegistryError(
                f"{self._host} asks for credentials at {realm}, which is not encrypted",
                hint="a registry's token service must have an https:// URL",
            )
        status, body, reason = self._request(realm, service, scopes)
        try:
            found = json.loads(body)
            token = found.get("token") or found.get("access_token")
            seconds = float(found.get("expires_in") or 60)
        except (ValueError, AttributeError, TypeError):
            token, seconds = None, 0.0
        if not 200 <= status < 300 or not isinstance(token, str):
            who = "these credentials" if self._credentials else "anonymous users"
            raise RegistryError(
                f"{self._host} refuses {who} a token for {', '.join(scopes) or 'anything'}: "
                f"{reason}",
                hint=f"docker login {self._host}",
            )
        return token, seconds

    def _request(self, realm: str, service: str, scopes: Iterable[str]) -> tuple[int, bytes, str]:
        credentials = self._credentials or Credentials()
        named = [("service", service)] if service else []
        if credentials.identity_token:
            form = [
                ("grant_type", "refresh_token"), ("client_id", "mfimage"), *named,
                ("refresh_token", credentials.identity_token), ("scope", " ".join(scopes)),
            ]  # fmt: skip
            kind = {"content-type": "application/x-www-form-urlencoded"}
            found = self._ask("POST", realm, kind, urlencode(form).encode())
            if found[0] not in (404, 405):  # where only GET is supported
                return found
        headers = {"authorization": credentials.basic} if credentials.username else {}
        query = urlencode([*named, *(("scope", scope) for scope in scopes)])
        return self._ask("GET", f"{realm}{'&' if '?' in realm else '?'}{query}", headers, None)
