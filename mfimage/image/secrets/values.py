"""What of a secret must not stand in an image, and the forms in which it could."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import quote, quote_plus, unquote, urlsplit

from mfimage.image.secrets.build import CA, NETRC, PIP_CONF
from mfimage.masking import CERTIFICATE, NAMED_SECRET

# Shorter ones occur by chance in what others wrote: they are looked for in texts only.
SHORTEST = 8
_SHORTEST_TEXT = 4
_KEY_LINE = re.compile(r"^[A-Za-z0-9+/]{40,}={0,2}$", re.MULTILINE)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"]+")


@dataclass(frozen=True, kw_only=True)
class Needle:
    """Bytes to look for.

    Attributes
    ----------
    kind : str
        What they are, as ``the secret netrc, in base64``; never the value.
    data : bytes
        The bytes.
    """

    kind: str
    data: bytes

    def __repr__(self) -> str:
        return f"Needle({self.kind})"


def needles(secrets: Mapping[str, bytes]) -> tuple[Needle, ...]:
    """Return what to look for, given what a build was given.

    Parameters
    ----------
    secrets : mapping of str to bytes
        By id. Certificates are public, and so are names of users.
    """
    found: dict[bytes, Needle] = {}
    for name, secret in secrets.items():
        for value in secret_values(name, secret.decode(errors="replace")):
            for form, data in _forms(value):
                found.setdefault(data, Needle(kind=f"the secret {name}{form}", data=data))
    return tuple(found.values())


def secret_values(name: str, text: str) -> frozenset[str]:
    """Return what is secret of a secret."""
    if name == CA:
        # A bundle is public, but for a key that was left in it.
        values = set(_KEY_LINE.findall(CERTIFICATE.sub("", text)))
    elif name == NETRC:
        values = {match[1] for match in NAMED_SECRET.finditer(text)}
    elif name == PIP_CONF:
        values = {match[1] for match in NAMED_SECRET.finditer(text)} | set(_of_urls(text))
    elif name.endswith("_USERNAME"):
        values = set()
    else:
        values = set(_of_urls(text)) or {text.strip()}
    return frozenset(value for value in values if len(value) >= _SHORTEST_TEXT)


def _of_urls(text: str) -> Iterator[str]:
    """Yield the passwords of URLs; the user where there is none, which is a token then."""
    for match in _URL.finditer(text):
        try:
            parts = urlsplit(match[0])
        except ValueError:
            continue
        if written := parts.password or parts.username:
            yield written
            yield unquote(written)


def _forms(value: str) -> Iterator[tuple[str, bytes]]:
    data = value.encode()
    yield "", data
    for form in (quote(value, safe=""), quote_plus(value), quote(value)):
        yield ", percent-encoded", form.encode()
    if len(data) >= SHORTEST:
        for encoded in _base64(data):
            yield ", in base64", encoded


def _base64(data: bytes) -> Iterable[bytes]:
    """Yield how bytes look in base64, wherever in a text they begin."""
    for before in range(3):
        whole = base64.b64encode(bytes(before) + data)
        # What depends on the neighbours is left out.
        start = -(-before * 8 // 6)
        end = (before + len(data)) * 8 // 6
        sure = whole[start:end]
        yield sure
        yield sure.translate(bytes.maketrans(b"+/", b"-_"))
