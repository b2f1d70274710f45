"""Looks for credentials in what was built: values of the build's secrets, URLs with a password.

Values are looked for in every added layer, and in the configuration. URLs with a password are
looked for where a build or a user writes: the configuration, the function's code, settings of
installers; not in what distributions bring along, whose docs and tests are full of examples.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from mfimage.errors import BuildError
from mfimage.image.find.info import ImageInfo
from mfimage.image.plan.files import ContextFile
from mfimage.image.secrets.values import SHORTEST, Needle, needles
from mfimage.masking import URL_PASSWORD
from mfimage.runtime.layout import CODE, FUNCTION

_CHUNK = 1 << 20
_MOST_SHOWN = 10
_URL_PASSWORD = re.compile(URL_PASSWORD.pattern.encode())
_LONGEST_URL = 4096
# Templates and words that stand for a password.
_PLACEHOLDER = re.compile(rb"[{$<%*\[].*|\.+|x+|(?:pass(?:word|wd)?|pwd|secret|token)", re.I)
_WRITTEN_HERE = re.compile(
    rf"{FUNCTION.strip('/')}/{CODE}/.*|{FUNCTION.strip('/')}/[^/]+\.toml"
    r"|etc/(?:apt/.*|pip\.conf|netrc|environment)|(?:root|home|tmp|run)/.*"
    r"|.*\.dist-info/(?:direct_url|uv_cache|uv_build)\.json|.*/(?:pyvenv\.cfg|pip\.conf|\.netrc)"
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A credential, and where it stands.

    Attributes
    ----------
    where : str
        As ``layer code: opt/function/code/predict.py``.
    kind : str
        As ``the secret netrc``; never the value.
    """

    where: str
    kind: str

    def __str__(self) -> str:
        return f"{self.where}: {self.kind}"


class CredentialScan:
    """Collects what is found; `check` fails the build then.

    Parameters
    ----------
    secrets : mapping of str to bytes
        What the build was given, by id.
    """

    def __init__(self, secrets: Mapping[str, bytes]) -> None:
        self._all = needles(secrets)
        self._long = tuple(each for each in self._all if len(each.data) >= SHORTEST)
        self._found: dict[Finding, None] = {}

    @property
    def has_values(self) -> bool:
        """Whether the build was given anything that could leak."""
        return bool(self._all)

    def config(self, info: ImageInfo) -> None:
        """Look at what everybody sees of an image."""
        for name, value in info.env.items():
            self._text(f"the variable {name}", value)
        for name, value in info.labels.items():
            self._text(f"the label {name}", value)
        for number, entry in enumerate(info.history, 1):
            self._text(f"line {number} of the history", f"{entry.created_by}\n{entry.comment}")

    def files(self, layer: str, files: Iterable[ContextFile]) -> None:
        """Look at files as they go into a layer."""
        for file in files:
            self._file(layer, file.path, file.chunks())

    def tar(self, layer: str, file: BinaryIO) -> None:
        """Look at a layer's tar, which may be compressed; it is read once, from its start."""
        with tarfile.open(fileobj=file, mode="r|*") as tar:
            for member in tar:
                path = member.name.removeprefix("./").lstrip("/")
                self._text(f"layer {layer}: the name {path}", path)
                if member.isfile() and (content := tar.extractfile(member)) is not None:
                    self._file(layer, path, iter(lambda c=content: c.read(_CHUNK), b""))  # type: ignore[misc]

    def check(self) -> None:
        """Fail when something was found.

        Raises
        ------
        BuildError
            Naming each place and kind, and no value.
        """
        if not self._found:
            return
        lines = [f"  {finding}" for finding in list(self._found)[:_MOST_SHOWN]]
        if (more := len(self._found) - _MOST_SHOWN) > 0:
            lines.append(f"  and {more} more")
        raise BuildError(
            "\n".join(["the image would show credentials:", *lines]),
            hint="take them out of what goes in, and change them if the image was seen by others",
        )

    def _text(self, where: str, text: str) -> None:
        data = text.encode(errors="surrogateescape")
        self._look(where, data, self._all)
        self._look_for_urls(where, data)

    def _file(self, layer: str, path: str, chunks: Iterator[bytes]) -> None:
        where = f"layer {layer}: {path}"
        here = _WRITTEN_HERE.fullmatch(path) is not None
        wanted = self._all if here else self._long
        if not wanted and not here:
            return
        keep = max([len(each.data) for each in wanted] + [_LONGEST_URL if here else 0])
        tail = b""
        for chunk in chunks:
            data = tail + chunk
            self._look(where, data, wanted)
            if here:
                self._look_for_urls(where, data)
            tail = data[-keep:]

    def _look(self, where: str, data: bytes, wanted: Sequence[Needle]) -> None:
        for needle in wanted:
            if needle.data in data:
                self._found[Finding(where=where, kind=needle.kind)] = None

    def _look_for_urls(self, where: str, data: bytes) -> None:
        if b"://" not in data:
            return
        for match in _URL_PASSWORD.finditer(data):
            if not _PLACEHOLDER.fullmatch(match[1]):
                scheme = match[0].partition(b"://")[0].decode()
                kind = f"a {scheme}:// URL with a password in it"
                self._found[Finding(where=where, kind=kind)] = None
