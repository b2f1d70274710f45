"""Credentials are found in whatever form they stand, named by place, and never repeated."""

from __future__ import annotations

import base64
import io
import tarfile
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from mfimage.errors import BuildError
from mfimage.image.find.info import HistoryEntry, ImageInfo
from mfimage.image.plan.files import ContextFile
from mfimage.image.plan.layers import layer_files
from mfimage.image.secrets.scan import CredentialScan
from tests.image.sample import make_sample

PASSWORD = "pA55/w+rd=é7"
NETRC = f"machine index.example.com\n  login me\n  password {PASSWORD}\n".encode()
PIP_CONF = f"[global]\nindex-url = https://me:{quote(PASSWORD, safe='')}@example.com/s\n".encode()
SITE = "opt/venv/lib/python3.11/site-packages"


def found(scan: CredentialScan) -> str:
    with pytest.raises(BuildError) as caught:
        scan.check()
    return f"{caught.value}\n{caught.value.hint}"


def files(content: bytes, path: str = f"{SITE}/x.bin") -> list[ContextFile]:
    return [ContextFile(path=path, content=content)]


@pytest.mark.parametrize(
    ("name", "secret"),
    [("UV_INDEX_X_PASSWORD", PASSWORD.encode()), ("netrc", NETRC), ("pip.conf", PIP_CONF)],
)
@pytest.mark.parametrize(
    "form",
    [
        PASSWORD.encode(),
        quote(PASSWORD, safe="").encode(),
        *(base64.b64encode(f"{p}:{PASSWORD}!".encode()) for p in ("", "u", "us", "use")),
        base64.urlsafe_b64encode(f"user:{PASSWORD}".encode()),
    ],
)
def test_each_form_of_each_secret_is_found(name: str, secret: bytes, form: bytes) -> None:
    scan = CredentialScan({name: secret})
    scan.files("dependencies", files(b"\0\1before" + form + b"after\xff"))
    message = found(scan)
    assert f"layer dependencies: {SITE}/x.bin: the secret {name}" in message
    assert PASSWORD not in message
    assert quote(PASSWORD, safe="") not in message


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    secret=st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zs", "Zl", "Zp"]),
                   min_size=8, max_size=40),
    before=st.integers(0, 3),
    offset=st.sampled_from([0, 5, (1 << 18) - 3, (1 << 20) - 4, (1 << 20) + 1]),
)  # fmt: skip
def test_no_chunk_hides_a_secret(secret: str, before: int, offset: int) -> None:
    assume("://" not in secret)
    scan = CredentialScan({"UV_TOKEN": secret.encode()})
    encoded = base64.b64encode(b"?" * before + secret.encode())
    scan.files("artifact:model", files(b"." * offset + encoded + b"." * 100))
    assert "in base64" in found(scan)


def test_what_everybody_sees_is_looked_at() -> None:
    info = ImageInfo(
        id="sha256:1",
        env={"A": f"x{PASSWORD}", "PATH": "/bin"},
        labels={"b": "https://me:hunter2@example.com"},
        history=(HistoryEntry(created_by=f"RUN curl -u me:{PASSWORD}", size=0),),
    )
    scan = CredentialScan({"UV_INDEX_X_PASSWORD": PASSWORD.encode()})
    scan.config(info)
    message = found(scan)
    assert "the variable A: the secret UV_INDEX_X_PASSWORD" in message
    assert "the label b: a https:// URL with a password in it" in message
    assert "line 1 of the history: the secret" in message
    assert "PATH" not in message
    assert "hunter2" not in message


def test_a_layer_that_an_engine_gives_is_looked_through() -> None:
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:gz") as out:
        for name, content in {
            "venv/a": b"x" * 3_000_000 + PASSWORD.encode(),
            "venv/b": b"",
        }.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
    tar.seek(0)
    scan = CredentialScan({"netrc": NETRC})
    scan.tar("dependencies", tar)
    assert "layer dependencies: venv/a: the secret netrc" in found(scan)


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        ("opt/function/code/predict.py", True),
        (f"{SITE}/x-1.dist-info/direct_url.json", True),
        ("etc/pip.conf", True),
        ("root/.netrc", True),
        # What others wrote is full of examples.
        (f"{SITE}/urllib3/util/url.py", False),
        ("usr/share/doc/git/README", False),
    ],
)
def test_urls_with_a_password_count_where_a_build_writes(path: str, wrong: bool) -> None:
    scan = CredentialScan({})
    scan.files("x", files(b"see https://me:hunter2@example.com/simple", path))
    if wrong:
        assert f"{path}: a https:// URL with a password" in found(scan)
    else:
        scan.check()


@pytest.mark.parametrize(
    "text",
    [
        "f'postgres://{user}:{password}@{host}/db'",
        "postgres://user:$PASSWORD@host",
        "https://user:<your token>@host",
        "redis://:%s@%s",
        "mysql://user:password@localhost",
        "http://[::1]:80/a@b",
        "https://example.com:443/@scope/package",
    ],
)
def test_templates_and_placeholders_are_no_passwords(text: str) -> None:
    scan = CredentialScan({})
    scan.files("code", files(text.encode(), "opt/function/code/predict.py"))
    scan.check()


def test_what_is_public_or_common_is_no_secret() -> None:
    """Certificates, users' names, pip's own words."""
    bundle = b"-----BEGIN CERTIFICATE-----\nMIIBszCCARygAwIBAgIBADANBg\n-----END CERTIFICATE-----\n"
    scan = CredentialScan({"ca": bundle, "UV_INDEX_X_USERNAME": b"__token__"})
    assert not scan.has_values
    scan = CredentialScan({"pip.conf": PIP_CONF, "netrc": NETRC})
    shown = b"[global] index-url index.example.com __token__ MIIBszCCARygAwIBAgIBADANBg password"
    scan.files("dependencies", files(shown))
    scan.check()


def test_a_key_left_in_a_bundle_is_a_secret() -> None:
    line = b"MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj"
    key = b"-----BEGIN PRIVATE KEY-----\n" + line + b"\n-----END PRIVATE KEY-----\n"
    scan = CredentialScan({"ca": key})
    scan.files("dependencies", files(b"x" + line))
    assert "the secret ca" in found(scan)


def test_our_own_files_and_a_usual_function_pass(tmp_path: Path) -> None:
    sample = make_sample(tmp_path)
    scan = CredentialScan({"UV_INDEX_X_PASSWORD": PASSWORD.encode()})
    plan = sample.plan()
    for name, layer in layer_files(plan, sample.blobs.path).items():
        scan.files(name, layer)
    scan.config(ImageInfo(id="", env=plan.env, labels=plan.labels))
    scan.check()


def test_many_places_are_summed_up() -> None:
    scan = CredentialScan({"netrc": NETRC})
    for number in range(15):
        scan.files("code", files(PASSWORD.encode(), f"opt/function/code/{number}.py"))
    message = found(scan)
    assert message.count("the secret netrc") == 10
    assert "and 5 more" in message
