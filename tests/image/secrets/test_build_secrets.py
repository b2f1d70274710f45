from __future__ import annotations

from pathlib import Path

import pytest

from mfimage.errors import OptionError
from mfimage.image.secrets.build import Secret, parse_secret, read_secrets


def test_a_secret_from_a_file(tmp_path):
    path = tmp_path / "netrc"
    path.write_text("machine a login b password c")
    secret = parse_secret(f"id=netrc,src={path}")
    assert read_secrets([secret]) == {"netrc": b"machine a login b password c"}


def test_a_secret_from_a_variable(monkeypatch):
    monkeypatch.setenv("UV_INDEX_X_PASSWORD", "p")
    monkeypatch.setenv("OTHER", "q")
    secrets = [
        parse_secret("id=UV_INDEX_X_PASSWORD"),
        parse_secret("id=UV_INDEX_X_USERNAME,env=OTHER"),
    ]
    assert read_secrets(secrets) == {"UV_INDEX_X_PASSWORD": b"p", "UV_INDEX_X_USERNAME": b"q"}


def test_a_secret_by_its_other_name():
    assert parse_secret("id=pip,source=/x,type=file") == Secret(id="pip.conf", source=Path("/x"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("netrc", "'netrc'"),
        ("id=netrc", "either a file or a variable"),
        ("id=netrc,src=/a,env=B", "either a file or a variable"),
        ("src=/x", "no id"),
        ("id=netrc,src=", "'src='"),
        ("id=netrc,path=/x", "'path=/x'"),
        ("id=aws,src=/x", "'aws'"),
        ("id=UV_index,env=A", "'UV_index'"),
    ],
)
def test_no_secrets(text, says):
    with pytest.raises(OptionError) as caught:
        parse_secret(text)
    assert says in caught.value.message
    assert caught.value.hint


def test_an_unknown_secret_suggests():
    with pytest.raises(OptionError) as caught:
        parse_secret("id=pipconf,src=/x")
    assert "did you mean 'pip.conf'?" in caught.value.hint


def test_a_secret_that_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.delenv("UV_X", raising=False)
    with pytest.raises(OptionError, match="secret ca: cannot read"):
        parse_secret(f"id=ca,src={tmp_path}/none").read()
    with pytest.raises(OptionError, match="UV_X is not set"):
        parse_secret("id=UV_X").read()


def test_a_secret_larger_than_engines_take(tmp_path):
    path = tmp_path / "ca"
    path.write_bytes(b"x" * (500 * 1024 + 1))
    with pytest.raises(OptionError, match="512001 bytes"):
        parse_secret(f"id=ca,src={path}").read()
