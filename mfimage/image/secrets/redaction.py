"""Keeps secrets out of what is shown: build logs are written by programs that know them."""

from __future__ import annotations

import re
from collections.abc import Iterable

_MASK = "***"
_USERINFO = re.compile(r"(?<=://)[^/\s@]+(?=@)")
# What is public although it is handed over as a secret, or too common to be one.
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
_SHORTEST = 8
_PASSWORD = re.compile(r"(?i)\b(?:password|token|secret)\b\s*[=:]?\s*(\S+)")


class Redactor:
    """Replaces secret values in text by ``***``.

    What counts as a value: each secret as a whole, each of its lines, and whatever follows a word
    such as ``password`` in it (``.netrc``, ``pip.conf``). Also the user and password of any URL.

    Parameters
    ----------
    secrets : iterable of bytes
        The values. Certificates in them are public and left alone.
    """

    def __init__(self, secrets: Iterable[bytes]) -> None:
        values: set[str] = set()
        for secret in secrets:
            values |= _values(_CERTIFICATE.sub("", secret.decode(errors="replace")))
        # Longest first: a short value may be part of a long one.
        self._values = sorted(values, key=len, reverse=True)

    def __repr__(self) -> str:
        return f"Redactor({len(self._values)} values)"

    def __call__(self, text: str) -> str:
        """Return `text` without the secrets."""
        for value in self._values:
            if value in text:
                text = text.replace(value, _MASK)
        return _USERINFO.sub(_MASK, text)


def _values(secret: str) -> set[str]:
    lines = {line.strip() for line in secret.splitlines()}
    found = {line for line in lines if len(line) >= _SHORTEST}
    found |= {match.group(1) for match in _PASSWORD.finditer(secret)}
    found.add(secret.strip())
    return {value for value in found if len(value) >= 4}
