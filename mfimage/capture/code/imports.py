"""What a function imports, through its code and its artifacts' pickles, and why.

A fresh interpreter (``_probe.py``) first reads the project's source, then imports the function's
module and watches. What it read is known early, so that a lock can be solved for it meanwhile.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from packaging.utils import canonicalize_name

from mfimage.capture.code._reading import (
    FileImport,
    find_local,
    prefixes,
    reached_imports,
    walk_project,
)
from mfimage.capture.code.interpreter import Interpreter, open_interpreter
from mfimage.capture.environment.installed import Installed, is_inside, parse_distributions
from mfimage.capture.task.pickles import StoredBytes, named_globals
from mfimage.errors import CaptureError, LockError

# The function in which the stub of a function captured by value names its imports
# (`mfimage.capture.code.by_value`).
_NEEDS = "_imports"
# Ships apart from the function's environment.
_OURS = {"mfimage", "metaflow_extensions"}
_DECLARE = "or name the whole environment with environment="


class Asked(NamedTuple):
    """A module that code or an artifact asks for, and why."""

    module: str
    reason: str
    origins: tuple[str, ...]  # the places where it is
    optional: bool  # it may belong to no distribution
    certain: bool = True  # calling the function imports it


@dataclass(frozen=True, kw_only=True)
class Imports:
    """What a function imports."""

    python: str  # full version of the interpreter that was asked
    asked: tuple[Asked, ...]  # modules that are neither Python's nor the project's
    installed: Installed

    def distributions(self) -> dict[str, str]:
        """Return the distributions that the modules belong to -> why they are needed."""
        reasons: dict[str, str] = {}
        for asked in self.asked:
            owners = self.installed.owners(asked.module, asked.origins)
            for owner in owners:
                reasons.setdefault(owner.name, asked.reason)
            if not (owners or asked.optional or self.installed.is_namespace(asked.module)):
                raise _lost(asked)
        return reasons


def module_names(module: str) -> set[str]:
    """Return the canonical names of distributions that are named as a module or its parents."""
    return {canonicalize_name(name.replace(".", "-")) for name in prefixes(module)}


def _lost(asked: Asked) -> LockError:
    if asked.origins:
        return LockError(
            f"{asked.module} belongs to no installed distribution and to no file of the project "
            f"({asked.reason}; it is at {asked.origins[0]})",
            hint=f"install it as a distribution, or move it into the project's folder, {_DECLARE}",
        )
    hint = f"install it, import it inside try/except ImportError, {_DECLARE}"
    return LockError(f"{asked.module} is not installed here ({asked.reason})", hint=hint)


@dataclass(frozen=True, kw_only=True)
class Code:
    """Code and artifacts whose imports are wanted."""

    root: Path  # the folder that will be on ``sys.path``
    files: Sequence[Path]  # the project's files that are included
    module: str  # the function's
    artifacts: Mapping[str, StoredBytes]  # their pickles are read, never run
    functions: Sequence[str] = ()  # names of the module's definitions that are called
    steps: Sequence[str] = ()  # those of the module's flow that count
    script: str | None = None  # the module that pickles call ``__main__``
    needed: Mapping[str, str] | None = None  # modules that it needs and does not import -> why
    python: str = sys.executable  # the interpreter to ask


@contextmanager
def search_imports(code: Code, *, run: bool = True) -> Iterator[Search]:
    """Start to find out what code imports; everything is stopped when the block is left."""
    # Without `run` the module is not imported: only source is read, and a pickle that cannot be
    # read is ignored.
    root = code.root.resolve()
    request = {
        "module": code.module,
        "functions": [*code.functions, _NEEDS],
        "steps": list(code.steps),
        "run": run,
    }
    with open_interpreter(code.python) as interpreter:
        interpreter.ask(root, request)
        yield Search(code, root, interpreter, run=run)


class Search:
    """Imports that are being found; ``search_imports`` makes it."""

    def __init__(self, code: Code, root: Path, interpreter: Interpreter, *, run: bool) -> None:
        self._code, self._root, self._interpreter, self._run = code, root, interpreter, run

    def expected(self) -> Imports | None:
        """Return the imports as the source says, before anything ran; None if it cannot be read."""
        return self._imports(self._read) if "read" in self._read else None

    def result(self) -> Imports:
        """Return the imports."""
        if not self._run:
            return self._imports(self._read)
        _ = self._by_pickles  # while the other process imports
        ran = self._interpreter.ran(self._code.module)
        if ran.get("error"):
            raise _import_error(ran["error"], self._code.module, self._root)
        _check_captured(ran["files"], self._code.files, self._root)
        return self._imports(ran)

    def _imports(self, found: Mapping[str, Any]) -> Imports:
        asked = [*_asked_by_code(found, self._root, self._code.module), *self._by_pickles]
        if not self._run:
            # Its code may change ``sys.path``, so these modules may be the project's own.
            files = [Path(_relative(str(file), self._root)) for file in self._code.files]
            own = {part.partition(".")[0] for file in files for part in file.parts}
            asked = [
                each._replace(certain=each.certain and each.module.partition(".")[0] not in own)
                for each in asked
            ]
        needed = (self._code.needed or {}).items()
        asked += [Asked(module, why, (), optional=False) for module, why in needed]
        return Imports(python=self._read["python"], asked=tuple(asked), installed=self._installed)

    @cached_property
    def _read(self) -> dict[str, Any]:
        return self._interpreter.read()

    @cached_property
    def _installed(self) -> Installed:
        return parse_distributions(self._read["distributions"])

    @cached_property
    def _by_pickles(self) -> list[Asked]:
        named: list[tuple[str, str, str]] = []
        for name, artifact in sorted(self._code.artifacts.items()):
            with suppress(*([] if self._run else [CaptureError])):
                named += [(*found, name) for found in sorted(named_globals(name, artifact))]
        standard = set(self._read["standard"])
        wanted = {
            module: f"named by the pickle of artifact {name!r}"
            for module, _, name in reversed(named)
            if module.partition(".")[0] not in standard
        }
        behind = [each for each in self._behind_pickles(named) if each.module not in wanted]
        optional = {each.module for each in behind if each.optional}
        for each in behind:
            if each.module.partition(".")[0] not in standard:
                file = _relative(str(each.file), self._root)
                wanted[each.module] = f"imported by {file}:{each.line}, which an artifact needs"
        # Most belong to a distribution that lists its files; the rest is looked up.
        names = [module for module in wanted if not self._installed.owners(module, ())]
        origins: dict[str, list[str]] = {}
        if names:
            with open_interpreter(self._code.python) as interpreter:
                interpreter.ask(self._root, {"names": names})
                origins = interpreter.read()["origins"]
        return [
            Asked(module, reason, tuple(found), module in optional or _is_below(found, self._root))
            for module, reason in wanted.items()
            if not _is_local(module, self._root)
            for found in [origins.get(module, [])]
        ]

    def _behind_pickles(self, named: Iterable[tuple[str, str, str]]) -> list[FileImport]:
        """Return what the project's files import when pickles are loaded, or their classes used."""
        script = self._code.script
        own = {script if script and module == "__main__" else module for module, _, _ in named}
        own = {module for module in own if find_local(self._root, module)}
        with suppress(SyntaxError):  # of another Python
            project = walk_project(self._root, sorted(own), {})
            names = [name.partition(".")[0] for _, name, _ in named]
            parts = {part for module in own for part in prefixes(module)}
            files = [file for part in parts if (file := find_local(self._root, part))]
            return [each for each in reached_imports(project, files, names) if not each.means]
        return []


def _asked_by_code(found: Mapping[str, Any], root: Path, module: str) -> Iterator[Asked]:
    read = found["read"]
    soft = {(name.partition(".")[0], file, line) for name, file, line, opt, _ in read if opt}
    traced = [
        (name, file, line, (name.partition(".")[0], file, line) in soft, True)
        for name, file, line in found["traced"]
    ]
    if find_local(root, module) is None and module in found["origins"]:
        yield Asked(module, "the function's own module", tuple(found["origins"][module]), False)
    for name, file, line, optional, certain in (*traced, *read):
        origins = found["origins"].get(name)
        if origins is None or _is_local(name, root):
            continue
        reason = f"imported by {_relative(file, root)}:{line}"
        yield Asked(name, reason, tuple(origins), optional or _is_below(origins, root), certain)


def _is_local(module: str, root: Path) -> bool:
    """Return whether an import with the project's folder on the path finds it there."""
    names = prefixes(module)
    return names[0] in _OURS or any(find_local(root, name) for name in names)


def _is_below(origins: Iterable[str], root: Path) -> bool:
    """Return whether it is the project's file after all: some projects change ``sys.path``."""
    return any(is_inside(Path(origin), root) for origin in origins)


def _check_captured(reached: Iterable[str], files: Sequence[Path], root: Path) -> None:
    captured = {(root / file).resolve() for file in files}
    if not captured or not all(file.is_relative_to(root) for file in captured):
        return  # they are elsewhere on this machine
    for file in map(Path, reached):
        if file.is_relative_to(root) and file.resolve() not in captured:
            message = f"{_relative(str(file), root)} is imported, and is not included with the code"
            hint = "files are included by suffix: set METAFLOW_DEFAULT_PACKAGE_SUFFIXES"
            raise CaptureError(message, hint=hint)


def _relative(file: str, root: Path) -> str:
    path = Path(file)
    return str(path.relative_to(root)) if path.is_relative_to(root) else file


def _import_error(error: Mapping[str, Any], module: str, root: Path) -> Exception:
    place = error["place"]
    where = f" at {_relative(place[0], root)}:{place[1]}" if place else ""
    if error["import"]:
        missing = error["missing"] or "what is missing"
        message = f"importing {module} in a fresh interpreter failed{where}: {error['text']}"
        hint = f"install {missing} here, or move it into the project's folder"
        return LockError(message, hint=hint)
    if error["exit"]:
        hint = 'guard what should only run as a script: if __name__ == "__main__":'
        return CaptureError(f"importing {module} ends the program{where}", hint=hint)
    hint = "the module must be importable by itself, as it is where the function runs"
    if "Address already in use" in error["text"]:
        hint = "it is imported here and in a fresh interpreter at once: open ports in a function"
    return CaptureError(
        f"importing {module} in a fresh interpreter failed{where}: "
        f"{error['type']}: {error['text']}",
        hint=hint,
    )
