"""What a registry refuses: its own words reach the user, and no attempt is made in vain."""

from __future__ import annotations

import hashlib
import io
import time
from contextlib import closing

import pytest

from mfimage.errors import RegistryError
from mfimage.image.registry import http
from mfimage.image.registry.client import RegistryClient
from mfimage.image.registry.descriptors import MANIFEST
from tests.image.registry.test_registry import manifest_of
from tests.support.docker import free_port
from tests.support.quirks import quirky

DATA = b"content"
DIGEST = f"sha256:{hashlib.sha256(DATA).hexdigest()}"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(http, "_FIRST_PAUSE", 0.001)


def push(client: RegistryClient) -> bool:
    return client.push_blob("fn", DIGEST, len(DATA), lambda: io.BytesIO(DATA))


@pytest.mark.parametrize(
    ("quirk", "words", "hint", "attempts"),
    [
        ("read-only", "HTTP 503: read-only until 18:00", "try again", 6),
        ("pull-limit", "HTTP 429: too many anonymous pulls", "docker login", 6),
        ("quota", "HTTP 403: adding 1 MiB would exceed the quota", "docker login", 1),
        ("basic", "HTTP 401: authentication required", "docker login", 1),
    ],
)
def test_the_registrys_own_words(quirk, words, hint, attempts):
    with quirky(quirk) as running, closing(RegistryClient(running.address)) as client:
        with pytest.raises(RegistryError) as caught:
            push(client)
        assert words in caught.value.message
        assert hint in caught.value.hint
        assert caught.value.message.isprintable()
        assert running.count("POST", "/blobs/uploads/") == attempts


@pytest.mark.parametrize(
    ("kind", "body", "words"),
    [
        ("application/json", b'{"errors":[{"message":"a"},{"code":"B"}]}', ": a; B"),
        ("application/json", b'{"message": "all of it"}', ": all of it"),
        ("application/json", b'{"errors": null}', ""),
        ("application/json", b"null", ""),
        ("text/plain", b"no\nway \x1b[31m", ": no way [31m"),
        ("text/html", b"<html><title> Sign\nin</title>", ": Sign in"),
        ("text/html", b"<html>", ""),
        ("", b"\xff" * 1000, ": " + "\ufffd" * 400),
        ("", b"", ""),
    ],
)
def test_words_of_every_form(kind, body, words):
    assert http._words(kind, body) == words


def test_an_immutable_tag_that_leads_elsewhere():
    with quirky("immutable") as running, closing(RegistryClient(running.address)) as client:
        client.push_manifest("fn", "1", MANIFEST, manifest_of(DIGEST, 7))
        client.push_manifest("fn", "1", MANIFEST, manifest_of(DIGEST, 7))
        with pytest.raises(RegistryError, match="the tag 1 is immutable"):
            client.push_manifest("fn", "1", MANIFEST, manifest_of(DIGEST, 8))


def test_a_page_in_place_of_a_manifest():
    with quirky("referrers-html") as running, closing(RegistryClient(running.address)) as client:
        running.manifests["fn", "1"] = ("text/html", b"<html><title>Sign in</title>")
        with pytest.raises(RegistryError, match="is not a manifest, but text/html"):
            client.manifest("fn", "1")


def test_an_upload_that_is_always_lost_ends():
    with quirky("loses-uploads") as running, closing(RegistryClient(running.address)) as client:
        running.first = lambda _: True
        with pytest.raises(RegistryError, match=r"lost the upload .*\(6 attempts\)"):
            push(client)
        assert running.count("PATCH") == 6


def test_an_upload_has_a_time_limit(monkeypatch):
    monkeypatch.setattr(http, "_SECONDS", -1.0)
    with quirky() as running, closing(RegistryClient(running.address)) as client:
        with pytest.raises(RegistryError, match="not done after"):
            push(client)
        assert running.count("PATCH") <= 1


def test_a_name_that_is_not_found_is_asked_for_once():
    began = time.monotonic()
    with pytest.raises(RegistryError, match=r"registry\.invalid.*the name was not found"):
        RegistryClient("registry.invalid").manifest("fn", "1")
    assert time.monotonic() - began < 20


def test_a_registry_without_tls_is_asked_once(monkeypatch):
    with quirky() as running:
        monkeypatch.setattr(http, "is_local", lambda _: False)
        with pytest.raises(RegistryError, match="it answers without TLS"):
            RegistryClient(running.address).manifest("fn", "1")


def test_a_registry_that_asks_for_a_long_wait_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(http.time, "sleep", lambda _: pytest.fail("it waited"))
    with pytest.raises(RegistryError, match="busy"):
        http.Attempts("registry.test").pause(http.Dropped("busy", status=429, wait=3600))


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/v2/x?a=b", "https://registry.test/v2/x?a=b"),
        ("https://registry.test:443/x", "https://registry.test:443/x"),
        ("//storage.test/x", "https://storage.test/x"),
    ],
)
def test_where_a_location_leads(location, target):
    assert RegistryClient("registry.test")._http.follow("https://registry.test/v2/", location) == (
        target
    )


@pytest.mark.parametrize("location", ["http://registry.test/x?signature=s3cr3t", "ftp://a/b"])
def test_nothing_goes_from_https_to_http(location):
    with pytest.raises(RegistryError, match="is not encrypted") as caught:
        RegistryClient("registry.test")._http.follow("https://registry.test/v2/", location)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("https://a.test/x", "https://A.test:443/y", True),
        ("http://a.test/x", "http://a.test:80/y", True),
        ("https://a.test/x", "https://a.test:80/y", False),
        ("https://a.test/x", "http://a.test/y", False),
        ("https://a.test/x", "https://b.test/y", False),
    ],
)
def test_origins(one, other, same):
    assert (http._origin(one) == http._origin(other)) == same


def test_nobody_listens():
    with pytest.raises(RegistryError, match=r"refused.*\(6 attempts\)"):
        RegistryClient(f"127.0.0.1:{free_port()}").manifest("fn", "1")
