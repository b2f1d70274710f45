"""A registry in memory with the quirks of real ones, by name, and a proxy for HTTPS."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import select
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

USER, PASSWORD = "mfimage", "s3cr3t-pa55"

# What goes on regardless, with the image and its digest as they should be.
HARMLESS = {
    "none": "",
    "refuses-chunks": "416 for a Content-Range (GHCR above 4 MiB, Google)",
    "stale-range": "the Range after a PATCH says that one byte arrived (ECR)",
    "status-200": "200 for whatever was created",
    "status-202": "202 for whatever was created",
    "status-204": "204 for whatever was created, with no Docker-Content-Digest",
    "relative-location": "locations without scheme and host",
    "location-query": "locations with a query, and the scheme in capital letters",
    "other-origin": "uploads go to another origin, which must get no credentials",
    "redirects-uploads": "307 for each POST",
    "signed-for-get": "blobs redirect to URLs that only GET may use",
    "head-405": "no HEAD",
    "head-html": "a page is the answer to HEAD",
    "head-500": "HEAD fails",
    "mount-400": "no mounts",
    "mount-500": "mounts fail",
    "mount-html": "a page is the answer to a mount",
    "mount-lies": "201 for a mount, without the blob",
    "referrers-html": "a page is the list of referrers",
    "referrers-null": "the list of referrers is null",
    "referrers-text": "404 without JSON",
    "referrers-405": "no referrers",
    "subject-refused": "400 for a manifest with a subject",
    "tags-refused": "403 for a tag that a build derives",
    "immutable": "400 for a tag that exists",
    "no-content-type": "manifests without Content-Type",
    "loses-uploads": "404 for the first PATCH of a blob",
    "cuts-uploads": "the connection breaks amid the first PATCH of a blob",
    "drops-answers": "the connection breaks after the first PUT of a blob, which is kept",
    "busy": "503 for the first request of a kind",
    "basic": "credentials",
    "basic-second": "a challenge of another kind before Basic",
    "anonymous-ping": "200 for /v2/, 401 for the rest without credentials",
    "token": "tokens",
    "token-get-only": "405 for POST at the token service",
    "token-one-scope": "no token for two scopes (GitLab)",
    "token-first-scope": "of several scopes only the first counts",
    "token-expires": "each token is accepted for two seconds, instead of 300",
    "token-wants-more": "a scope besides those of the specification",
}
_HTML = b"<!doctype html><html><title>Sign in</title></html>"


@dataclass
class Quirky:
    """A running registry: what it has, and what it was asked."""

    quirks: frozenset[str]
    address: str = ""
    elsewhere: str = ""  # the other origin
    blobs: dict[tuple[str, str], bytes] = field(default_factory=dict)
    manifests: dict[tuple[str, str], tuple[str, bytes]] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str, Mapping[str, str]]] = field(default_factory=list)
    tokens: dict[str, float] = field(default_factory=dict)  # when each was given
    seen: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, method: str, path: str = "") -> int:
        """Return how many requests arrived so far."""
        return sum(kind == method and path in where for kind, where, _ in self.requests)

    def first(self, what: str) -> bool:
        """Return whether something happens for the first time."""
        with self.lock:
            self.seen[what] += 1
            return self.seen[what] == 1


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and content are sent one after the other: 40 ms each, if the first is awaited.
    disable_nagle_algorithm = True
    registry: Quirky

    def do(self) -> None:
        registry, url = self.registry, urlsplit(self.path)
        self.own = self.headers["Host"].lower() == registry.address
        with registry.lock:
            registry.requests.append((self.command, self.path, dict(self.headers.items())))
        size = int(self.headers.get("Content-Length") or 0)
        if self.command == "PATCH" and self.has("cuts-uploads") and registry.first(f"cut {size}"):
            self.rfile.read(size // 2)
            self.hang_up()
            return
        self.content, self.query = self.rfile.read(size), parse_qs(url.query)
        if not self.own and self.headers.get("Authorization"):
            self.refuse(500, "LEAK", "credentials went to another origin")
            return
        if url.path == "/token":
            self.token()
        elif self.has("busy") and registry.first(f"busy {self.command}"):
            self.refuse(503, "UNAVAILABLE", "busy")
        elif self.allowed(url.path):
            self.route(url.path)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do

    def has(self, *quirks: str) -> bool:
        return not self.registry.quirks.isdisjoint(quirks)

    def route(self, path: str) -> None:
        if path == "/v2/":
            self.answer(200)
        elif found := re.fullmatch(r"/v2/(.+)/blobs/uploads/(\w*)", path):
            self.upload(found[1], found[2])
        elif found := re.fullmatch(r"/v2/(.+)/blobs/(sha256:\w+)", path):
            self.blob(found[1], found[2])
        elif found := re.fullmatch(r"/v2/(.+)/manifests/(.+)", path):
            self.manifest(found[1], found[2])
        elif found := re.fullmatch(r"/v2/(.+)/referrers/(.+)", path):
            self.referrers()
        else:
            self.answer(404)

    # Who may do what

    def allowed(self, path: str) -> bool:
        given = self.headers.get("Authorization") or ""
        if not self.own or (self.has("anonymous-ping") and path == "/v2/"):
            return True
        if self.has("basic", "basic-second", "anonymous-ping"):
            pair = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
            before = "Negotiate, " if self.has("basic-second") else ""
            if given != f"Basic {pair}":
                self.challenge(f'{before}Basic realm="here, and there"')
                return False
        if any(quirk.startswith("token") for quirk in self.registry.quirks):
            return self.accepts(given.removeprefix("Bearer "), path)
        return True

    def accepts(self, token: str, path: str) -> bool:
        named = re.match(r"/v2/(.+)/(?:blobs|manifests|referrers)/", path)
        actions = "pull" if self.command in ("GET", "HEAD") else "pull,push"
        scope = f"repository:{named[1]}:{actions}" if named else ""
        wanted = [scope, "team:extra"] if self.has("token-wants-more") else [scope]
        granted = json.loads(base64.b64decode(token)) if token else None
        age = time.monotonic() - self.registry.tokens.get(token, 0)
        expired = self.has("token-expires") and age > 2
        held = {each.replace(",push", "") for each in granted or ()} | {*(granted or ())}
        good = granted is not None and not expired and (not named or held.issuperset(wanted))
        if not good:
            more = " team:extra" if self.has("token-wants-more") else ""
            self.challenge(
                f'Bearer realm="http://{self.registry.address}/token",service=quirks,'
                f'scope="{scope}{more}"'
            )
        return good

    def token(self) -> None:
        asked = self.query.get("scope", [])
        if self.command == "POST":
            if self.has("token-get-only"):
                self.refuse(405, "UNSUPPORTED", "GET only")
                return
            asked = parse_qs(self.content.decode())["scope"][0].split()
        if self.has("token-one-scope") and len(asked) > 1:
            self.refuse(403, "DENIED", "access forbidden")
            return
        asked = asked[:1] if self.has("token-first-scope") else asked
        now = time.monotonic()
        token = base64.b64encode(json.dumps([*asked, str(now)]).encode()).decode()
        self.registry.tokens[token] = now
        self.answer(200, json.dumps({"token": token, "expires_in": 300}).encode())

    def challenge(self, text: str) -> None:
        self.refuse(401, "UNAUTHORIZED", "authentication required", **{"WWW-Authenticate": text})

    # What it has

    def upload(self, repository: str, session: str) -> None:
        registry = self.registry
        if self.command == "POST":
            self.begin(repository)
            return
        if session not in registry.uploads:
            self.refuse(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown")
        elif self.command == "PATCH":
            size = len(self.content)
            if self.has("refuses-chunks") and self.headers.get("Content-Range"):
                self.refuse(416, "RANGE_INVALID", "chunked upload is not supported")
                return
            if self.has("loses-uploads") and registry.first(f"lost {size}"):
                self.refuse(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown")
                return
            registry.uploads[session] += self.content
            until = 0 if self.has("stale-range") else max(size - 1, 0)
            where = self.location(f"/v2/{repository}/blobs/uploads/{session}")
            self.answer(self.status(202), Location=where, Range=f"0-{until}")
        else:
            self.end(repository, registry.uploads.pop(session) + self.content)

    def begin(self, repository: str) -> None:
        if "mount" in self.query:
            source, digest = self.query["from"][0], self.query["mount"][0]
            if self.has("mount-400"):
                self.refuse(400, "UNSUPPORTED", "no mounts")
            elif self.has("mount-500"):
                self.refuse(500, "UNKNOWN", "internal error")
            elif self.has("mount-html"):
                self.answer(200, _HTML, **{"Content-Type": "text/html"})
            elif self.has("mount-lies"):
                self.answer(201)
            elif content := self.registry.blobs.get((source, digest)):
                self.registry.blobs[repository, digest] = content
                self.answer(201)
            else:
                self.accept(repository)
        elif self.has("redirects-uploads") and "again" not in self.query:
            self.answer(307, Location=f"{self.path}?again=1")
        elif self.has("read-only"):
            self.refuse(503, "UNAVAILABLE", "read-only until 18:00\x1b[31m")
        elif self.has("quota"):
            self.refuse(403, "DENIED", "adding 1 MiB would exceed the quota")
        elif self.has("pull-limit"):
            self.refuse(429, "TOOMANYREQUESTS", "too many anonymous pulls")
        else:
            self.accept(repository)

    def accept(self, repository: str) -> None:
        session = uuid.uuid4().hex
        self.registry.uploads[session] = b""
        where = self.location(f"/v2/{repository}/blobs/uploads/{session}")
        self.answer(202, Location=where, Range="0-0")

    def end(self, repository: str, content: bytes) -> None:
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        if self.query["digest"] != [digest]:
            self.refuse(400, "DIGEST_INVALID", "the digest is another")
            return
        self.registry.blobs[repository, digest] = content
        if self.has("drops-answers") and self.registry.first(digest):
            self.hang_up()
            return
        self.answer(self.status(201))

    def blob(self, repository: str, digest: str) -> None:
        content = self.registry.blobs.get((repository, digest))
        if self.command == "HEAD" and self.has("head-405", "head-500"):
            self.refuse(405 if self.has("head-405") else 500, "UNSUPPORTED", "no HEAD")
        elif self.command == "HEAD" and self.has("head-html"):
            self.answer(200, _HTML, **{"Content-Type": "text/html"})
        elif content is None:
            self.refuse(404, "BLOB_UNKNOWN", "blob unknown")
        elif self.has("signed-for-get") and self.own:
            self.answer(307, Location=f"http://{self.registry.elsewhere}{self.path}?signature=GET")
        elif self.has("signed-for-get") and self.command == "HEAD":
            self.refuse(403, "DENIED", "SignatureDoesNotMatch")
        elif found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            start, end = int(found[1]), int(found[2] or len(content) - 1)
            part = content[start : end + 1]
            self.answer(206, part, **{"Content-Range": f"bytes {start}-{end}/{len(content)}"})
        else:
            self.answer(200, content)

    def manifest(self, repository: str, reference: str) -> None:
        held = self.registry.manifests.get((repository, reference))
        if self.command == "DELETE":
            found = self.registry.manifests.pop((repository, reference), None)
            self.answer(202 if found else 404)
        elif self.command == "PUT":
            tag = not reference.startswith("sha256:")
            digest = f"sha256:{hashlib.sha256(self.content).hexdigest()}"
            if self.has("immutable") and tag and held:
                self.refuse(400, "TAG_INVALID", f"the tag {reference} is immutable")
                return
            if self.has("tags-refused") and reference.startswith("fn-"):
                self.refuse(403, "DENIED", "tags must be versions")
                return
            if self.has("subject-refused") and "subject" in json.loads(self.content):
                self.refuse(400, "MANIFEST_INVALID", "unexpected field subject")
                return
            kept = (self.headers.get("Content-Type") or "", self.content)
            for name in (reference, digest):
                self.registry.manifests[repository, name] = kept
            named = {} if self.has("status-204") else {"Docker-Content-Digest": digest}
            self.answer(self.status(201), **named)
        elif held is None:
            self.refuse(404, "MANIFEST_UNKNOWN", "manifest unknown")
        else:
            kind = {} if self.has("no-content-type") else {"Content-Type": held[0]}
            self.answer(200, held[1], **kind)

    def referrers(self) -> None:
        if self.has("referrers-html"):
            self.answer(200, _HTML, **{"Content-Type": "text/html"})
        elif self.has("referrers-null"):
            self.answer(200, b'{"schemaVersion":2,"manifests":null}')
        elif self.has("referrers-405"):
            self.refuse(405, "UNSUPPORTED", "no referrers")
        else:
            self.answer(404, b"404 page not found\n", **{"Content-Type": "text/plain"})

    # How it answers

    def status(self, usual: int) -> int:
        return next((each for each in (200, 202, 204) if self.has(f"status-{each}")), usual)

    def location(self, path: str) -> str:
        if self.has("relative-location"):
            return f"{path}?_state=a%3D%3D&x=1"
        if self.has("location-query"):
            return f"HTTP://{self.registry.address}{path}?_state=a%3D%3D"
        host = self.registry.elsewhere if self.has("other-origin") else self.registry.address
        return f"http://{host}{path}"

    def refuse(self, status: int, code: str, message: str, **headers: str) -> None:
        body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
        self.answer(status, body, **{"Content-Type": "application/json", **headers})

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        size = {} if status == 204 else {"Content-Length": str(len(body))}
        for name, value in {**headers, **size}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def handle(self) -> None:
        with suppress(OSError):
            super().handle()

    def finish(self) -> None:
        with suppress(OSError):
            super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


@contextmanager
def quirky(*quirks: str) -> Iterator[Quirky]:
    """Run a registry with these quirks, under two addresses."""
    registry = Quirky(frozenset(quirks))
    handler = type("Handler", (Handler,), {"registry": registry})
    with serve(handler) as registry.address, serve(handler) as registry.elsewhere:
        yield registry


@contextmanager
def serve(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Serve on a free port of this machine; yield the address."""
    with _Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def https_proxy(seen: list[str]) -> Iterator[str]:
    """Run a proxy that connects to this machine, whichever host is named; yield its address."""

    class Tunnel(BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            seen.append(self.path)
            port = int(self.path.rpartition(":")[2])
            with socket.create_connection(("127.0.0.1", port)) as other:
                self.send_response(200)
                self.end_headers()
                ends = {self.connection: other, other: self.connection}
                with suppress(OSError):
                    while True:
                        for ready in select.select(list(ends), [], [])[0]:
                            data = ready.recv(1 << 16)
                            if not data:
                                return
                            ends[ready].sendall(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with serve(Tunnel) as address:
        yield address
