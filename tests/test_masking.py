from __future__ import annotations

import pytest

from mfimage.masking import Masker

PIP_CONF = b"[global]\nindex-url = https://me:s3cr3tpw@packages.example/simple\n"
NETRC = b"machine packages.example login me password pw-1234\n"
CERTIFICATE = b"-----BEGIN CERTIFICATE-----\nMIIBszCCAVmgAwIBAgIU\n-----END CERTIFICATE-----\n"
KEY = b"-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIA\n-----END PRIVATE KEY-----\n"


@pytest.mark.parametrize(
    ("secret", "line", "shown"),
    [
        (b"hunter2\n", "got hunter2!", "got ***!"),
        (NETRC, "password is pw-1234", "password is ***"),
        (
            PIP_CONF,
            "GET https://me:s3cr3tpw@packages.example/a",
            "GET https://***@packages.example/a",
        ),
        (PIP_CONF, "index-url = https://me:s3cr3tpw@packages.example/simple", "***"),
        (KEY, "read MC4CAQAwBQYDK2VwBCIEIA", "read ***"),
        (CERTIFICATE, "-----BEGIN CERTIFICATE-----", "-----BEGIN CERTIFICATE-----"),
        (b"", "nothing to hide", "nothing to hide"),
        (b"a", "a short word", "a short word"),
    ],
)
def test_secrets_are_masked(secret: bytes, line: str, shown: str) -> None:
    assert Masker([secret])(line) == shown


def test_users_and_passwords_in_urls_are_masked_without_any_secret() -> None:
    assert Masker([])("see ssh://me:pw@host/x") == "see ssh://***@host/x"


def test_a_long_value_is_masked_before_the_short_one_in_it() -> None:
    assert Masker([b"abcdefgh", b"abcdefghijkl"])("<abcdefghijkl>") == "<***>"


def test_it_does_not_show_its_values() -> None:
    assert "hunter2" not in repr(Masker([b"hunter2"]))
