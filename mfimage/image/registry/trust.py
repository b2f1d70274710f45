"""Whose certificates are trusted for a registry."""

from __future__ import annotations

import functools
import os
import ssl
from pathlib import Path

from mfimage.errors import RegistryError

_DOCKER = Path("/etc/docker/certs.d")


def trust(address: str, ca: Path | None) -> ssl.SSLContext:
    """Return the context for connections to ``address``: the system's, ``ca``, Docker's own.

    Raises
    ------
    RegistryError
        When a file holds no certificate.
    """
    # Reading a system's bundle takes 25 ms, and there may be several connections to make.
    return _trust(address, ca, *map(os.environ.get, ("SSL_CERT_FILE", "SSL_CERT_DIR")))


@functools.lru_cache
def _trust(address: str, ca: Path | None, *_variables: str | None) -> ssl.SSLContext:
    # Knows the variables by itself.
    context = ssl.create_default_context()
    files = [ca] if ca else []
    for folder in (_DOCKER, Path.home() / ".docker" / "certs.d"):
        files += sorted((folder / address).glob("*.crt"))
    for path in files:
        try:
            context.load_verify_locations(cafile=path)
        except (OSError, ssl.SSLError) as error:
            raise RegistryError(f"{path} holds no certificate that can be used: {error}") from None
    return context


def is_distrust(error: BaseException) -> bool:
    """Tell whether a connection failed because of a certificate."""
    chain: BaseException | None = error
    while chain is not None and not isinstance(chain, ssl.SSLCertVerificationError):
        chain = chain.__cause__ or chain.__context__
    return chain is not None
