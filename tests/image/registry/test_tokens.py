"""A registry that wants tokens: who asks whom for what, how often, and what never leaves."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from mfimage.errors import RegistryError
from mfimage.image.registry.auth import Credentials
from mfimage.image.registry.client import RegistryClient

DIGEST = "sha256:" + "0" * 64
WHO = Credentials(username="me", password="s3cr3t-pa55")


@dataclass
class Tokens:
    """What the server was asked, and how it answers."""

    address: str = ""
    realm: str = ""
    lifetime: float = 300
    given: list[tuple[str, dict[str, list[str]], str | None]] = field(default_factory=list)
    stale: set[str] = field(default_factory=set)


class Handler(BaseHTTPRequestHandler):
    tokens: Tokens

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/token":
            self.give("GET", parse_qs(url.query))
        else:
            self.do_HEAD()

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        self.give("POST", parse_qs(self.rfile.read(length).decode()))

    def give(self, method: str, asked: dict[str, list[str]]) -> None:
        given = self.tokens.given
        given.append((method, asked, self.headers.get("Authorization")))
        body = {"token": f"t{len(given)}", "expires_in": self.tokens.lifetime}
        ok = asked.get("refresh_token") == ["again"] or self.headers.get("Authorization")
        self.answer(200 if ok else 401, json.dumps(body).encode())

    def do_HEAD(self) -> None:
        kind, _, token = (self.headers.get("Authorization") or "").partition(" ")
        if kind == "Bearer" and token not in self.tokens.stale:
            self.answer(200)
            return
        assert "s3cr3t" not in str(self.headers)
        challenge = f'Bearer realm="{self.tokens.realm}",service="test registry"'
        self.answer(401, **{"WWW-Authenticate": challenge})

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def tokens() -> Iterator[Tokens]:
    found = Tokens()
    handler = type("Handler", (Handler,), {"tokens": found})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        found.address = f"127.0.0.1:{server.server_port}"
        found.realm = f"http://{found.address}/token"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield found
        server.shutdown()
        thread.join()


def test_a_token_is_asked_for_once(tokens):
    client = RegistryClient(tokens.address, credentials=WHO)
    assert client.has_blob("team/name", DIGEST, 0)
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda _: client.has_blob("team/name", DIGEST, 0), range(50)))
    ((method, asked, header),) = tokens.given
    assert method == "GET"
    assert asked == {"service": ["test registry"], "scope": ["repository:team/name:pull"]}
    assert header == WHO.basic


def test_each_repository_has_its_own(tokens):
    client = RegistryClient(tokens.address, credentials=WHO)
    for name in ("team/one", "team/two", "team/one"):
        client.has_blob(name, DIGEST, 0)
    assert [asked["scope"] for _, asked, _ in tokens.given] == [
        ["repository:team/one:pull"],
        ["repository:team/two:pull"],
    ]


def test_one_that_is_refused_is_replaced(tokens):
    client = RegistryClient(tokens.address, credentials=WHO)
    assert client.has_blob("team/name", DIGEST, 0)
    tokens.stale.add("t1")
    assert client.has_blob("team/name", DIGEST, 0)
    assert len(tokens.given) == 2


def test_an_identity_token(tokens):
    who = Credentials(identity_token="again")
    assert RegistryClient(tokens.address, credentials=who).has_blob("team/name", DIGEST, 0)
    ((method, asked, header),) = tokens.given
    assert (method, header) == ("POST", None)
    assert asked["grant_type"] == ["refresh_token"]
    assert asked["scope"] == ["repository:team/name:pull"]


def test_nobody_is_given_none(tokens):
    with pytest.raises(RegistryError, match="refuses anonymous users a token") as caught:
        RegistryClient(tokens.address).manifest("team/name", "v1")
    assert caught.value.hint == f"docker login {tokens.address}"


def test_credentials_do_not_leave_unencrypted(tokens):
    tokens.realm = "http://tokens.example.com/token"
    with pytest.raises(RegistryError, match="is not encrypted") as caught:
        RegistryClient(tokens.address, credentials=WHO).manifest("team/name", "v1")
    assert "s3cr3t" not in str(caught.value)
