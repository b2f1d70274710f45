"""Where a base image has its Python, and which: found without running it."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import IO

from mfimage.errors import OptionError
from mfimage.image.oci.compression import decompressed
from mfimage.image.oci.images import StoredImage
from mfimage.package.spec import sha256_digest
from mfimage.package.storage.cache import cache_folder, remember
from mfimage.runtime.layout import VENV

# BuildKit's, for a base that says none.
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_OFFICIAL = "/usr/local/bin"
_NAMES = ("python3", "python")
_PYTHON = re.compile(r"python(3\.\d+)")
_INTERPRETER = re.compile(r"(?:.*/)?python(?:3(?:\.\d+)?)?")
_HEADER = re.compile(r".*/include/python(3\.\d+)/patchlevel\.h")
_DEFINED = re.compile(rb'#define\s+PY_VERSION\s+"(3\.[\d.]+)')
_DPKG = "var/lib/dpkg/status"
_PACKAGE = re.compile(
    rb"^Package: python(3\.\d+)-minimal\n(?:.+\n)*?Version: (?:\d+:)?(3\.\d+\.\d+)", re.MULTILINE
)
_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"


@dataclass(frozen=True, kw_only=True)
class BasePython:
    """A base's Python.

    Attributes
    ----------
    path : str
        As ``/usr/local/bin/python3``.
    version : str
        As ``3.11.7``, or ``3.11`` where the patch could not be found.
    """

    path: str
    version: str


def environment_of(image: StoredImage) -> dict[str, str]:
    """Return a base's variables, in order; ``PATH`` is always there."""
    pairs = image.config.get("config", {}).get("Env") or ()
    found = dict(pair.partition("=")[::2] for pair in pairs)
    return {**found, "PATH": found.get("PATH") or DEFAULT_PATH}


def find_python(image: StoredImage, where: str) -> BasePython:
    """Find the Python that a base's ``PATH`` leads to.

    Official images say it in a variable. Of others the layers are looked through, once.

    Raises
    ------
    OptionError
        When there is none.
    """
    environment = environment_of(image)
    folders = [folder for folder in environment["PATH"].split(":") if folder.startswith("/")]
    if f"{VENV}/bin" in folders:
        raise OptionError(
            f"base-image: {where} has a function in it, and an image holds one",
            hint="build on what that image was built on",
        )
    version = environment.get("PYTHON_VERSION", "")
    if folders[:1] == [_OFFICIAL] and re.fullmatch(r"3\.\d+\.\d+", version):
        return BasePython(path=f"{_OFFICIAL}/python3", version=version)
    key = json.dumps([[layer.diff_id for layer in image.layers], folders])
    known = cache_folder() / "bases" / f"{sha256_digest(key.encode())[7:]}.json"
    try:
        return BasePython(**json.loads(known.read_bytes()))
    except (OSError, ValueError, TypeError):
        found = _Search(folders).run(image)
    if found is None:
        raise OptionError(
            f"base-image: {where} has no Python in {':'.join(folders)}",
            hint="choose a base that has the function's Python, as python:3.11-slim",
        )
    remember(known, json.dumps(vars(found)).encode())
    return found


@dataclass
class _Search:
    """Looks through layers, lowest first, for interpreters and what tells their versions."""

    folders: Sequence[str]
    links: dict[str, str] = field(default_factory=dict)  # "" for a program
    headers: dict[str, str] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)

    def run(self, image: StoredImage) -> BasePython | None:
        for layer in image.layers:
            with (
                layer.open() as file,
                decompressed(file) as plain,
                tarfile.open(fileobj=plain, mode="r|") as tar,
            ):
                for member in tar:
                    self._see(member, tar)
        for path in self._candidates():
            real = self._resolve(path)
            if real and (found := _PYTHON.fullmatch(PurePosixPath(real).name)):
                minor = found[1]
                version = self.headers.get(minor) or self.packages.get(minor) or minor
                return BasePython(path=path, version=version)
        return None

    def _see(self, member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
        path = PurePosixPath("/", member.name)
        name = str(path)
        if path.name.startswith(_WHITEOUT):
            self._forget(path)
        elif member.isdir() or (member.issym() and not _INTERPRETER.fullmatch(name)):
            # A folder may be another's name: /bin is /usr/bin.
            if member.issym():
                self.links[name] = member.linkname
        elif _INTERPRETER.fullmatch(name) and (member.issym() or member.isfile() or member.islnk()):
            self.links[name] = member.linkname if member.issym() else ""
        elif found := _HEADER.fullmatch(name):
            if defined := _DEFINED.search(_content(tar, member)):
                self.headers[found[1]] = defined[1].decode()
        elif name == f"/{_DPKG}":
            self.packages = _versions(_content(tar, member))

    def _forget(self, path: PurePosixPath) -> None:
        whole = path.parent if path.name == _OPAQUE else None
        gone = str(path.parent / path.name.removeprefix(_WHITEOUT))
        for name in list(self.links):
            if name == gone or name.startswith(f"{whole or gone}/"):
                del self.links[name]

    def _candidates(self) -> Iterator[str]:
        for folder in self.folders:
            yield from (f"{folder.rstrip('/')}/{name}" for name in _NAMES)

    def _resolve(self, path: str) -> str | None:
        """Follow links to a program."""
        for _ in range(20):
            target = self.links.get(path)
            if target == "":
                return path
            if target is not None:
                path = _joined(str(PurePosixPath(path).parent), target)
                continue
            parent = PurePosixPath(path).parent
            linked = self.links.get(str(parent))
            if not linked:
                return None
            path = str(PurePosixPath(_joined(str(parent.parent), linked), PurePosixPath(path).name))
        return None


def _joined(folder: str, target: str) -> str:
    parts: list[str] = []
    for part in PurePosixPath(folder, target).parts[1:]:
        if part == "..":
            parts = parts[:-1]
        else:
            parts.append(part)
    return "/" + "/".join(parts)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file: IO[bytes] | None = tar.extractfile(member)
    return file.read() if file else b""


def _versions(status: bytes) -> dict[str, str]:
    return {minor.decode(): version.decode() for minor, version in _PACKAGE.findall(status)}
