"""The file that the caller names: requirements, ``pylock.toml`` or ``uv.lock``."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from mfimage.capture.environment.sources.base import (
    RUNTIME_REQUIREMENTS,
    Environment,
    Found,
    Request,
)
from mfimage.capture.environment.sources.project import UvLock
from mfimage.capture.lock import pylock
from mfimage.errors import LockError

_PYLOCK = re.compile(r"pylock(\.[^.]+)?\.toml")


def find(request: Request) -> Found | None:
    """Return what the named file is."""
    file = request.declared
    if file is None:
        return None
    if not file.is_file():
        raise LockError(f"environment: no file {str(file)!r}", hint="check the path")
    if file.name == "uv.lock":
        return UvLock(file=file)
    if _PYLOCK.fullmatch(file.name):
        return Pylock(file=file)
    if file.suffix in (".txt", ".in"):
        return Requirements(file=file)
    raise LockError(
        f"environment: {file.name!r} does not describe an environment",
        hint="name a requirements file (.txt, .in), pylock.toml, pylock.<name>.toml or uv.lock",
    )


@dataclass(frozen=True, kw_only=True)
class Pylock:
    """A ``pylock.toml`` of any tool."""

    file: Path

    def describe(self, request: Request) -> Environment:
        """Keep its versions; add what mfimage's loader needs."""
        maker, name = request.read(), self.file.name
        parsed = pylock.parse_pylock(self.file.read_text(), where=str(self.file))
        lock = maker.settle(parsed, base=self.file.parent, where=name)
        maker.check(lock, name, remedy="what it is locked from")
        return maker.environment(lock, "pylock", otherwise=f"locked in {name}")


@dataclass(frozen=True, kw_only=True)
class Requirements:
    """A requirements file."""

    file: Path

    def describe(self, request: Request) -> Environment:
        """Solve it, with what mfimage's loader needs, and Metaflow if it is imported."""
        maker, name, read = request.read(), self.file.name, read_requirements(self.file)
        lines = [f"-r {self.file.resolve()}", *RUNTIME_REQUIREMENTS, *maker.metaflow(read.names)]
        lock = maker.lock(lines, hashes=read.hashes)
        maker.check(lock, name, remedy="it")
        named = dict.fromkeys(read.names, f"named in {name}")
        return maker.environment(lock, "requirements", named=named)


# What a requirements file names, and the hashes that it allows; uv reads everything else.

_COMMENT = re.compile(r"(^|\s+)#.*$")
_HASH = re.compile(r"--hash[= ]\s*(\w+):([0-9a-fA-F]+)")
_INCLUDE = re.compile(r"(?:-r|--requirement)[ =]?\s*(\S.*)")


@dataclass(frozen=True, kw_only=True)
class RequirementsRead:
    """What a requirements file says."""

    names: frozenset[str]
    hashes: Mapping[str, frozenset[str]]


def read_requirements(path: Path) -> RequirementsRead:
    """Read a requirements file and those that it includes."""
    names: set[str] = set()
    hashes: dict[str, frozenset[str]] = {}
    for line in _lines(path, set()):
        name = _name_of(_HASH.sub("", line))
        if name:
            names.add(name)
        allowed = {digest.lower() for kind, digest in _HASH.findall(line) if kind == "sha256"}
        if name and _HASH.search(line):
            if not allowed:
                raise LockError(f"{path}: {name} has hashes, but none is a sha256")
            hashes[name] = hashes.get(name, frozenset()) | allowed
    return RequirementsRead(names=frozenset(names), hashes=hashes)


def _lines(path: Path, seen: set[Path]) -> Iterator[str]:
    if path.resolve() in seen:
        return
    seen.add(path.resolve())
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise LockError(f"cannot read {path}: {error}") from None
    for line in text.replace("\\\n", " ").splitlines():
        bare = _COMMENT.sub("", line).strip()
        include = _INCLUDE.fullmatch(bare)
        if include:
            yield from _lines(path.parent / shlex.split(include[1])[0], seen)
        elif bare:
            yield bare


def _name_of(line: str) -> str | None:
    if line.startswith("-"):
        return None
    try:
        return canonicalize_name(Requirement(line.strip()).name)
    except InvalidRequirement:
        return None  # a bare path or URL, or an error, which uv reports better
