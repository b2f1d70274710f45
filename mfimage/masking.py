"""Masks secrets in text that people will see: logs, errors, progress.

Whatever prints the output of another program (uv, docker, a registry) passes it through here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote

MASK = "***"
# The password of a URL, as `://user:PASSWORD@`: what may not stand in an image or a manifest.
URL_PASSWORD = re.compile(r"\b[A-Za-z][A-Za-z0-9+.-]*://[^/\s:@?#'\"]*:([^/\s@?#'\"]+)@")
_USERINFO = re.compile(r"(?<=://)[^/\s@'\"`]+(?=@)")
# Public, although handed over as a secret.
CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
# The word after "password" and the like in `.netrc` or `pip.conf`.
NAMED_SECRET = re.compile(r"(?i)\b(?:password|token|secret)\b\s*[=:]?\s*(\S+)")
# A shorter line of a secret occurs by chance in other texts.
_SHORTEST_LINE = 8
_SHORTEST = 4


def url_secrets(text: str) -> set[str]:
    """Return the passwords and tokens in the URLs of `text`, as written and unquoted."""
    found = (userinfo.partition(":") for userinfo in _USERINFO.findall(text))
    # A token may stand alone, as the user; the user of every git+ssh URL is none.
    values = {password or user for user, _, password in found} - {"git"}
    return values | set(map(unquote, values))


def mask_urls(text: str) -> str:
    """Return `text` with the user and password of every URL masked."""
    return _USERINFO.sub(MASK, text)


class Masker:
    """Replaces secret values in text by ``***``, and the user and password of any URL.

    A secret is masked as a whole, line by line, and by the word that follows ``password``,
    ``token`` or ``secret`` in it. Certificates are public and left as they are.
    """

    def __init__(self, secrets: Iterable[bytes]) -> None:
        values: set[str] = set()
        for secret in secrets:
            values |= _values(CERTIFICATE.sub("", secret.decode(errors="replace")))
        # Longest first: a short value may be part of a long one.
        self._values = sorted(values, key=len, reverse=True)

    def __repr__(self) -> str:
        return f"Masker({len(self._values)} values)"

    def __call__(self, text: str) -> str:
        """Return `text` without the secrets."""
        for value in self._values:
            text = text.replace(value, MASK)
        return mask_urls(text)


def _values(secret: str) -> set[str]:
    lines = {line.strip() for line in secret.splitlines()}
    found = {line for line in lines if len(line) >= _SHORTEST_LINE}
    found |= {match.group(1) for match in NAMED_SECRET.finditer(secret)}
    found.add(secret.strip())
    return {value for value in found if len(value) >= _SHORTEST}
