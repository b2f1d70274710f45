"""What Docker's users have set up: credentials in every form, certificates, proxies, host names."""

from __future__ import annotations

import base64
import json
from contextlib import closing

import pytest

from mfimage.errors import RegistryError
from mfimage.image.registry import http
from mfimage.image.registry.auth import Credentials, is_local, stored_credentials
from mfimage.image.registry.client import RegistryClient, open_registry, repository_of
from mfimage.image.registry.reference import parse_reference
from tests.support.quirks import PASSWORD, USER, https_proxy, quirky

HOST = "registry.example.com:5000"
ME = Credentials(username="me", password="pass:word")
PAIR = base64.b64encode(b"me:pass:word").decode()


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))

    def write(text: str | dict) -> None:
        (tmp_path / "config.json").write_text(text if isinstance(text, str) else json.dumps(text))

    return write


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("", None),
        ("null", None),
        ("{}", None),
        ({"auths": None, "credHelpers": None, "credsStore": None}, None),
        ({"auths": {HOST: None}}, None),
        ({"auths": {HOST: {}}}, None),
        ({"auths": {HOST: {"auth": None}}}, None),
        ({"auths": {HOST: {"auth": ""}}}, None),
        ({"auths": {HOST: {"auth": PAIR}}}, ME),
        ({"auths": {HOST: {"auth": f"{PAIR[:8]}\n{PAIR[8:]}"}}}, ME),
        ({"auths": {HOST: {"username": "me", "password": "pass:word"}}}, ME),
        ({"auths": {f"https://{HOST}/v2/": {"auth": PAIR}}}, ME),
        ({"auths": {HOST.upper(): {"auth": PAIR}}}, ME),
        ({"auths": {"other.example": {"auth": "***"}, HOST: {"auth": PAIR}}}, ME),
        ({"auths": {"other.example": 5, HOST: {"auth": PAIR}}}, ME),
        ({"credHelpers": {"other.example": 5}, "auths": {HOST: {"auth": PAIR}}}, ME),
        (
            {"auths": {HOST: {"auth": PAIR, "identitytoken": "t"}}},
            Credentials(username="me", password="pass:word", identity_token="t"),
        ),
        ({"auths": {HOST: {"registrytoken": "t"}}}, Credentials(registry_token="t")),
    ],
)
def test_every_form_of_the_configuration(config, document, expected):
    config(document)
    assert stored_credentials(HOST) == expected


@pytest.mark.parametrize(
    ("document", "named"),
    [
        ("[]", "is not a JSON object"),
        ('{"auths":{"registry', "is not JSON"),
        ({"auths": []}, "auths is not a JSON object"),
        ({"auths": {HOST: 5}}, f'auths["{HOST}"] is not a JSON object'),
        ({"auths": {HOST: {"auth": 5}}}, f'auths["{HOST}"].auth is not a string'),
        ({"auths": {HOST: {"auth": "***"}}}, "is not base64 of user:password"),
        ({"auths": {HOST: {"auth": "bWU="}}}, "is not base64 of user:password"),
        ({"credHelpers": 5}, "credHelpers is not a JSON object"),
        ({"credHelpers": {HOST: 5}}, f'credHelpers["{HOST}"] is not a string'),
        ({"credsStore": "nowhere"}, "names docker-credential-nowhere, which is not installed"),
    ],
)
def test_damage_is_named_by_file_and_entry(config, tmp_path, document, named):
    config(document)
    with pytest.raises(RegistryError) as caught:
        stored_credentials(HOST)
    assert str(tmp_path / "config.json") in caught.value.message
    assert named in caught.value.message
    assert f"docker login {HOST}" in caught.value.hint


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ('echo "{\\"Username\\": \\"me\\", \\"Secret\\": \\"pass:word\\"}"', ME),
        (
            'echo "{\\"Username\\": \\"<token>\\", \\"Secret\\": \\"t\\"}"',
            Credentials(identity_token="t"),
        ),
        ('echo "credentials not found in native keychain"; exit 1', None),
        ("echo s3cr3t", "printed no JSON"),
        ("echo locked >&2; exit 1", "failed: locked"),
    ],
)
def test_what_a_credential_helper_says(config, tmp_path, monkeypatch, script, expected):
    helper = tmp_path / "docker-credential-mine"
    helper.write_text(f"#!/bin/sh\n{script}\n")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    config({"credsStore": "mine"})
    if isinstance(expected, str):
        with pytest.raises(RegistryError, match=expected) as caught:
            stored_credentials(HOST)
        assert "s3cr3t" not in str(caught.value)
    else:
        assert stored_credentials(HOST) == expected


@pytest.mark.parametrize("name", ["docker.io", "index.docker.io", "Docker.IO"])
def test_docker_hub_by_any_name(config, name):
    config({"auths": {"https://index.docker.io/v1/": {"auth": PAIR}}})
    reference = parse_reference(f"{name}/python:3.11")
    assert reference.host == "docker.io"
    assert repository_of(reference) == "library/python"
    assert stored_credentials(reference.host) == ME


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True), ("127.8.9.10", True), ("localhost", True), ("LOCALHOST", True),
        ("a.localhost", True), ("[::1]", True), ("127.0.0.1.example.com", False),
        ("localhost.example.com", False), ("128.0.0.1", False),
    ],
)  # fmt: skip
def test_which_hosts_are_this_machine(host, local):
    assert is_local(host) == local


def test_hosts_are_compared_without_case(config):
    with quirky("basic") as running:
        port = running.address.rpartition(":")[2]
        pair = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        config({"auths": {f"localhost:{port}": {"auth": pair}}})
        with closing(open_registry(parse_reference(f"LOCALHOST:{port}/fn"))) as client:
            assert client.host == f"localhost:{port}"
            assert client.manifest("fn", "1") is None


@pytest.mark.parametrize(
    ("names", "direct"),
    [
        ("", False), ("*", True), ("example.com", True), (".example.com", True),
        ("a.example.com:5000", True), ("a.example.com:6000", False), ("other.com", False),
    ],
)  # fmt: skip
def test_which_hosts_need_no_proxy(monkeypatch, names, direct):
    for name in ("https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example.com:3128")
    monkeypatch.setenv("NO_PROXY", names)
    assert (http._proxy("https", "a.example.com", 5000) is None) == direct
    assert http._proxy("https", "127.3.4.5", 5000) is None


def test_a_network_needs_no_proxy(monkeypatch):
    for name in ("https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example.com:3128")
    monkeypatch.setenv("NO_PROXY", "10.0.0.0/8, 192.168.1.1")
    assert http._proxy("https", "10.9.8.7", 443) is None
    assert http._proxy("https", "11.9.8.7", 443) is not None


def test_a_proxy_that_refuses_is_named_without_its_password(monkeypatch):
    monkeypatch.setattr(http, "_FIRST_PAUSE", 0.001)
    for name in ("https_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with https_proxy([]) as proxy:
        pass
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:s3cr3t@{proxy}")
    with pytest.raises(RegistryError, match="proxy") as caught:
        RegistryClient("registry.test").manifest("fn", "1")
    assert "s3cr3t" not in f"{caught.value}{caught.value.hint}"
    monkeypatch.setenv("HTTPS_PROXY", "socks5://proxy.test")
    with pytest.raises(RegistryError, match="HTTPS_PROXY: socks5:// is not supported"):
        RegistryClient("registry.test").manifest("fn", "1")


def test_a_client_certificate_without_its_key_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / ".docker/certs.d/registry.test"
    folder.mkdir(parents=True)
    (folder / "client.cert").write_text("none")
    with pytest.raises(RegistryError, match=r"client\.cert with the \.key beside it"):
        http.trust("registry.test", None)
