"""Credentials for the steps that install: mounted for those steps, never written into an image.

A secret's id says what it is, and so how the steps use it:

=====================  =====================================================================
``ca``                 a bundle of CA certificates (PEM) that replaces the base image's own
``netrc``              user names and passwords by host
``pip.conf``           pip's configuration, also where uv takes its indexes from
``UV_...``, ``PIP_...``  any variable of uv or pip, as ``UV_INDEX_COMPANY_PASSWORD``
=====================  =====================================================================
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mfimage.errors import OptionError, suggest

CA, NETRC, PIP_CONF = "ca", "netrc", "pip.conf"
_FILES = (CA, NETRC, PIP_CONF)
_ALIASES = {"pip": PIP_CONF, ".netrc": NETRC}
_VARIABLE = re.compile(r"(?:UV|PIP)_[A-Z0-9_]+")
# BuildKit refuses more.
_LARGEST = 500 * 1024
_USAGE = "write it as for docker: id=netrc,src=PATH or id=UV_INDEX_NAME_PASSWORD,env=VARIABLE"


@dataclass(frozen=True, kw_only=True)
class Secret:
    """One credential: what it is, and the file or environment variable to read it from."""

    id: str
    source: Path | None = None
    variable: str | None = None

    def __post_init__(self) -> None:
        if self.id not in _FILES and not _VARIABLE.fullmatch(self.id):
            hint = suggest(self.id, (*_FILES, *_ALIASES))
            raise OptionError(
                f"secret: unknown id {self.id!r}",
                hint=f"{hint}; variables of uv and pip (UV_..., PIP_...) too",
            )
        if (self.source is None) == (self.variable is None):
            raise OptionError(
                f"secret {self.id}: expected either a file or a variable", hint=_USAGE
            )

    def read(self) -> bytes:
        """Return its bytes."""
        try:
            variable = self.variable or ""
            data = self.source.read_bytes() if self.source else os.environ[variable].encode()
        except OSError as error:
            raise OptionError(
                f"secret {self.id}: cannot read {self.source}: {error.strerror}",
                hint="check the path after src=",
            ) from None
        except KeyError:
            raise OptionError(
                f"secret {self.id}: the environment variable {self.variable} is not set",
                hint=f"export {self.variable}, or name another one: id={self.id},env=VARIABLE",
            ) from None
        if len(data) > _LARGEST:
            raise OptionError(
                f"secret {self.id}: {len(data)} bytes are more than the {_LARGEST} allowed",
                hint="give only the certificates or hosts that the build needs",
            )
        return data


def parse_secret(text: str, *, folder: Path | None = None) -> Secret:
    """Parse ``id=ID[,src=PATH][,env=VARIABLE]``, as docker writes it."""
    # An id alone that is a variable's name is read from that variable. Relative paths start in
    # ``folder``, by default the working directory.
    given: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        key = {"source": "src"}.get(key.strip(), key.strip())
        if not equals or not value or key not in ("id", "src", "env", "type"):
            raise OptionError(f"secret: {part!r} in {text!r} is not known", hint=_USAGE)
        given[key] = value
    if "id" not in given:
        raise OptionError(f"secret: {text!r} has no id", hint=_USAGE)
    name = _ALIASES.get(given["id"], given["id"])
    source, variable = given.get("src"), given.get("env")
    if source is None and variable is None and _VARIABLE.fullmatch(name):
        variable = name
    path = None if source is None else (folder or Path()) / Path(source).expanduser()
    return Secret(id=name, source=path, variable=variable)


def read_secrets(secrets: Iterable[Secret]) -> dict[str, bytes]:
    """Read secrets; return them by id."""
    return {secret.id: secret.read() for secret in secrets}
