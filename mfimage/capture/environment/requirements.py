"""What a requirements file names, and the hashes that it allows; uv reads all the rest."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from mfimage.errors import LockError

_COMMENT = re.compile(r"(^|\s+)#.*$")
_HASH = re.compile(r"--hash[= ]\s*(\w+):([0-9a-fA-F]+)")
_INCLUDE = re.compile(r"(?:-r|--requirement)[ =]?\s*(\S.*)")


@dataclass(frozen=True, kw_only=True)
class RequirementsFile:
    """A requirements file.

    Attributes
    ----------
    path : Path
        Where it is.
    names : frozenset of str
        Canonical names of the distributions that it and the files it includes name.
    hashes : mapping of str to frozenset of str
        Name -> the sha256 of the files that may be used, where it says so. Uv does not look at
        them when it solves.
    """

    path: Path
    names: frozenset[str]
    hashes: Mapping[str, frozenset[str]]


def read_requirements(path: Path) -> RequirementsFile:
    """Read a requirements file and those that it includes.

    Raises
    ------
    LockError
        When one cannot be read, or a hash is of a kind that is not supported.
    """
    names: set[str] = set()
    hashes: dict[str, frozenset[str]] = {}
    for line in _lines(path, set()):
        name = _name_of(_HASH.sub("", line))
        if name:
            names.add(name)
        allowed = {digest.lower() for kind, digest in _HASH.findall(line) if kind == "sha256"}
        if name and _HASH.search(line):
            if not allowed:
                raise LockError(f"{path}: {name} has hashes, and none is a sha256")
            hashes[name] = hashes.get(name, frozenset()) | allowed
    return RequirementsFile(path=path, names=frozenset(names), hashes=hashes)


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
        return None  # a path or a URL alone, or wrong, which uv says better
