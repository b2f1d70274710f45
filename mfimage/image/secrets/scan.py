"""Searches an image for credentials before it leaves: secrets of the build, URLs with a password.

Values are searched for in every added layer and in the configuration, in each form that a tool may
have written. URLs with a password are searched for where a build or a user writes: the
configuration, the function's code, settings of installers; not in distributions, whose docs and
tests are full of examples.
"""

from __future__ import annotations

import base64
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, BinaryIO, cast
from urllib.parse import quote, quote_plus, unquote, urlsplit

from mfimage.errors import BuildError
from mfimage.files import chunks_of
from mfimage.image.find.info import ImageInfo
from mfimage.image.plan.files import ContextFile
from mfimage.image.plan.layers import artifact_files, code_files, runtime_files
from mfimage.image.secrets.build import CA, NETRC, PIP_CONF
from mfimage.masking import CERTIFICATE, NAMED_SECRET, URL_PASSWORD
from mfimage.runtime.layout import CODE, FUNCTION

if TYPE_CHECKING:
    from mfimage.image.builder import Builder, BuiltImage
    from mfimage.image.plan.layers import BlobPath

# Layers that are read back, because the build's secrets were used there.
_READ_BACK = ("dependencies", "system")
_MOST_SHOWN = 10
# Shorter values occur by chance in files of others: they are searched for in texts only.
_SHORTEST = 8
_SHORTEST_TEXT = 4
_LONGEST_URL = 4096
_KEY_LINE = re.compile(r"^[A-Za-z0-9+/]{40,}={0,2}$", re.MULTILINE)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"]+")
_URL_PASSWORD = re.compile(URL_PASSWORD.pattern.encode())
# Templates and words that stand for a password.
_PLACEHOLDER = re.compile(rb"[{$<%*\[].*|\.+|x+|(?:pass(?:word|wd)?|pwd|secret|token)", re.I)
_WRITTEN_HERE = re.compile(
    rf"{FUNCTION.strip('/')}/{CODE}/.*|{FUNCTION.strip('/')}/[^/]+\.toml"
    r"|etc/(?:apt/.*|pip\.conf|netrc|environment)|(?:root|home|tmp|run)/.*"
    r"|.*\.dist-info/(?:direct_url|uv_cache|uv_build)\.json|.*/(?:pyvenv\.cfg|pip\.conf|\.netrc)"
)


def scan_image(
    builder: Builder, image: BuiltImage, blob_path: BlobPath, secrets: Mapping[str, bytes]
) -> None:
    """Fail if an image that was just built shows a credential."""
    # Files that mfimage puts into layers are searched as they went in; other layers are read back
    # if there are secrets, unless they come from a shared cache.
    scan, plan = CredentialScan(secrets), image.plan
    scan.config(builder.info(image))
    scan.files("code", code_files(plan, blob_path))
    if scan.has_values:
        scan.files("runtime", runtime_files(plan))
        for layer in plan.artifacts:
            scan.files(f"artifact:{','.join(layer.names)}", artifact_files(layer, blob_path))
        for built in image.layers:
            if built.name in _READ_BACK and not built.shared:
                scan.tar(built.name, cast(BinaryIO, Reader(builder.layer(image, built.name))))
    scan.check()


class Reader:
    """Reads from an iterator of bytes."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes; fewer at the end only."""
        parts, missing = [self._rest], size - len(self._rest)
        while missing > 0 and (chunk := next(self._chunks, b"")):
            parts.append(chunk)
            missing -= len(chunk)
        data = b"".join(parts)
        self._rest = data[size:]
        return data[:size]


class CredentialScan:
    """Collects credentials that are found, given the build's secrets by id."""

    def __init__(self, secrets: Mapping[str, bytes]) -> None:
        # Bytes to search for, and what they are: "the secret netrc, in base64".
        self._all: dict[bytes, str] = {}
        for name, secret in secrets.items():
            for value in _values(name, secret.decode(errors="replace")):
                for form, data in _forms(value):
                    self._all.setdefault(data, f"the secret {name}{form}")
        self._long = {data: kind for data, kind in self._all.items() if len(data) >= _SHORTEST}
        # As "layer code: opt/function/code/predict.py: the secret netrc", in order.
        self._found: dict[str, None] = {}

    @property
    def has_values(self) -> bool:
        """Whether the build was given anything that could leak."""
        return bool(self._all)

    def config(self, info: ImageInfo) -> None:
        """Search an image's configuration, which is public."""
        for where, text in info.public_texts().items():
            self._text(where, text)

    def files(self, layer: str, files: Iterable[ContextFile]) -> None:
        """Search files of a layer."""
        for file in files:
            self._file(layer, file.path, file.chunks())

    def tar(self, layer: str, file: BinaryIO) -> None:
        """Search a layer's tar, which may be compressed; it is read once, from its start."""
        with tarfile.open(fileobj=file, mode="r|*") as tar:
            for member in tar:
                path = member.name.removeprefix("./").lstrip("/")
                self._text(f"layer {layer}: the name {path}", path)
                if member.isfile() and (content := tar.extractfile(member)) is not None:
                    self._file(layer, path, chunks_of(content))

    def check(self) -> None:
        """Fail if something was found."""
        if not self._found:
            return
        lines = [f"  {finding}" for finding in list(self._found)[:_MOST_SHOWN]]
        if (more := len(self._found) - _MOST_SHOWN) > 0:
            lines.append(f"  and {more} more")
        raise BuildError(
            "\n".join(["the image would show credentials:", *lines]),
            hint="remove them from the function and the options; revoke them if published",
        )

    def _text(self, where: str, text: str) -> None:
        data = text.encode(errors="surrogateescape")
        self._search(where, data, self._all)
        self._search_urls(where, data)

    def _file(self, layer: str, path: str, chunks: Iterator[bytes]) -> None:
        where = f"layer {layer}: {path}"
        here = _WRITTEN_HERE.fullmatch(path) is not None
        wanted = self._all if here else self._long
        if not wanted and not here:
            return
        keep = max([*map(len, wanted), _LONGEST_URL if here else 0])
        tail = b""
        for chunk in chunks:
            data = tail + chunk
            self._search(where, data, wanted)
            if here:
                self._search_urls(where, data)
            tail = data[-keep:]

    def _search(self, where: str, data: bytes, wanted: Mapping[bytes, str]) -> None:
        for secret, kind in wanted.items():
            if secret in data:
                self._found[f"{where}: {kind}"] = None

    def _search_urls(self, where: str, data: bytes) -> None:
        if b"://" not in data:
            return
        for match in _URL_PASSWORD.finditer(data):
            if not _PLACEHOLDER.fullmatch(match[1]):
                scheme = match[0].partition(b"://")[0].decode()
                self._found[f"{where}: a {scheme}:// URL with a password in it"] = None


def _values(name: str, text: str) -> set[str]:
    """Return what is secret in a secret: not certificates, and not names of users."""
    if name == CA:
        # A bundle is public, except for a key that was left in it.
        values = set(_KEY_LINE.findall(CERTIFICATE.sub("", text)))
    elif name in (NETRC, PIP_CONF):
        values = {match[1] for match in NAMED_SECRET.finditer(text)}
        values |= set(_url_passwords(text)) if name == PIP_CONF else set()
    elif name.endswith("_USERNAME"):
        values = set()
    else:
        values = set(_url_passwords(text)) or {text.strip()}
    return {value for value in values if len(value) >= _SHORTEST_TEXT}


def _url_passwords(text: str) -> Iterator[str]:
    """Yield the passwords of URLs; where there is none the user, which is a token then."""
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
    if len(data) >= _SHORTEST:
        # In base64, wherever in a text it begins.
        for before in range(3):
            encoded = base64.b64encode(bytes(before) + data)
            # Without the digits that depend on what is before and after.
            sure = encoded[-(-before * 8 // 6) : (before + len(data)) * 8 // 6]
            yield ", in base64", sure
            yield ", in base64", sure.translate(bytes.maketrans(b"+/", b"-_"))
