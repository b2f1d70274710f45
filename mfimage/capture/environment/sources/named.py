"""The file that the caller names: requirements, ``pylock.toml`` or ``uv.lock``."""

from __future__ import annotations

import codecs
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from mfimage.capture.environment.sources.base import RUNTIME_REQUIREMENTS, Environment, Request
from mfimage.capture.environment.sources.project import describe_uv_lock
from mfimage.capture.lock import pylock
from mfimage.errors import LockError

_PYLOCK = re.compile(r"pylock(\.[^.]+)?\.toml")


def find(request: Request) -> Callable[[], Environment] | None:
    """Return what describes the named file."""
    if (file := request.declared) is None:
        return None
    if not file.is_file():
        raise LockError(f"environment: no file {str(file)!r}", hint="check the path")
    if file.name == "uv.lock":
        return partial(describe_uv_lock, request, file.resolve())
    if _PYLOCK.fullmatch(file.name):
        return partial(_describe_pylock, request, file)
    if file.suffix in (".txt", ".in"):
        return partial(_describe_requirements, request, file)
    hint = "name a requirements file (.txt, .in), pylock.toml, pylock.<name>.toml or uv.lock"
    raise LockError(f"environment: {file.name!r} does not describe an environment", hint=hint)


def _describe_pylock(request: Request, file: Path) -> Environment:
    """Keep its versions; add what mfimage's loader needs."""
    maker = request.read()
    parsed = pylock.parse_pylock(file.read_text(), where=str(file))
    lock = maker.settle(parsed, base=file.parent, where=file.name)
    maker.check(lock, file.name, remedy="what it is locked from")
    return maker.environment(lock, "pylock", otherwise=f"locked in {file.name}")


def _describe_requirements(request: Request, file: Path) -> Environment:
    """Solve it, with what mfimage's loader needs, and Metaflow if it is imported."""
    maker, read = request.read(), read_requirements(file)
    written = read.expanded or (f"-r {file.resolve()}",)
    lines = [*written, *RUNTIME_REQUIREMENTS, *maker.metaflow(read.names)]
    directory = Path.cwd() if read.has_paths else None
    lock = maker.lock(lines, hashes=read.hashes, directory=directory)
    maker.check(lock, file.name, remedy="it")
    named = dict.fromkeys(read.names, f"named in {file.name}")
    return maker.environment(lock, "requirements", named=named)


# What a requirements file names, and the hashes that it allows; uv reads everything else.

_COMMENT = re.compile(r"(^|\s+)#.*$")
_HASH = re.compile(r"--hash[= ]\s*(\w+):([0-9a-fA-F]+)")
_PATH = re.compile(r"(-e|--editable)[ =]|\.\.?/|\.$")
_INCLUDE = re.compile(r"(?:-r|--requirement)[ =]?\s*(\S.*)")
_CONSTRAINT = re.compile(r"(?:-c|--constraint)[ =]?\s*(\S.*)")
_VARIABLE = re.compile(r"\$\{([A-Z0-9_]+)\}")


@dataclass(frozen=True, kw_only=True)
class RequirementsRead:
    """What a requirements file says."""

    names: frozenset[str]  # canonical; with those of the files that it includes
    # Name -> the sha256 of the files that may be used. Uv ignores them when it solves.
    hashes: Mapping[str, frozenset[str]]
    has_paths: bool  # relative ones, below the folder in which uv runs
    # All lines, if variables are in them: uv, unlike pip, expands those of URLs and paths only.
    expanded: tuple[str, ...] = ()


def read_requirements(path: Path) -> RequirementsRead:
    """Read a requirements file and those that it includes."""
    names: set[str] = set()
    hashes: dict[str, frozenset[str]] = {}
    has_paths, expanded = False, list[str]()
    raw = list(_lines(path, set()))
    for line in map(_expand, raw):
        expanded.append(line)
        has_paths |= bool(_PATH.match(line))
        name = _name_of(_HASH.sub("", line))
        if name:
            names.add(name)
        allowed = {digest.lower() for kind, digest in _HASH.findall(line) if kind == "sha256"}
        if name and _HASH.search(line):
            if not allowed:
                raise LockError(f"{path}: {name} has hashes, but none is a sha256")
            hashes[name] = hashes.get(name, frozenset()) | allowed
    changed = any(_VARIABLE.search(line) for line in raw if not line.startswith("-"))
    return RequirementsRead(
        names=frozenset(names),
        hashes=hashes,
        has_paths=has_paths,
        expanded=tuple(expanded) if changed else (),
    )


def _expand(line: str) -> str:
    """Replace ``${NAME}`` as pip does: what is not set stays."""
    return _VARIABLE.sub(lambda found: os.environ.get(found[1]) or found[0], line)


def _lines(path: Path, seen: set[Path]) -> Iterator[str]:
    if path.resolve() in seen:
        return
    seen.add(path.resolve())
    try:
        data = path.read_bytes()
        # As pip and uv read it: what PowerShell's `>` writes is UTF-16.
        marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = data.decode("utf-16" if marked else "utf-8-sig")
        if "\0" in text:
            raise ValueError("it has zero bytes, as UTF-16 without a byte order mark")
    except (OSError, ValueError) as error:
        hint = "save it as UTF-8" if isinstance(error, ValueError) else None
        raise LockError(f"cannot read {path}: {error}", hint=hint) from None
    for line in text.replace("\\\n", " ").splitlines():
        bare = _COMMENT.sub("", line).strip()
        include = _INCLUDE.fullmatch(bare)
        if include:
            yield from _lines(path.parent / shlex.split(_expand(include[1]))[0], seen)
        elif constraint := _CONSTRAINT.fullmatch(bare):
            file = path.parent / shlex.split(_expand(constraint[1]))[0]
            yield f"-c {shlex.quote(str(file.resolve()))}"
        elif bare:
            yield bare


def _name_of(line: str) -> str | None:
    if line.startswith("-"):
        return None
    try:
        return canonicalize_name(Requirement(line.strip()).name)
    except InvalidRequirement:
        return None  # a bare path or URL, or an error, which uv reports better
