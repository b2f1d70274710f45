"""What a function imports, by its code and by its artifacts' pickles, and why."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from packaging.utils import canonicalize_name

from mfimage.capture.code._reading import find_local, prefixes
from mfimage.capture.code.traced import start_probe
from mfimage.capture.environment.installed import SITES, Installed, parse_distributions
from mfimage.capture.task.pickles import StoredBytes, named_modules
from mfimage.errors import CaptureError, LockError

# Where the stub of a function captured by value names what it needs
# (`mfimage.capture.code.by_value`).
_NEEDS = "_imports"
# Ships apart from the function's environment.
_OURS = {"mfimage", "metaflow_extensions"}
_DECLARE = "or name the whole environment with environment="


class Asked(NamedTuple):
    """A module that something asks for.

    What, why, where it lies, if it may be nobody's, and if it is surely imported when the
    function is called.
    """

    module: str
    reason: str
    origins: tuple[str, ...]
    optional: bool
    certain: bool = True


@dataclass(frozen=True, kw_only=True)
class Imports:
    """What a function imports.

    Attributes
    ----------
    python : str
        Full version of the interpreter that was asked.
    asked : tuple of Asked
        Modules that are neither Python's nor the project's.
    installed : Installed
        What the interpreter has installed.
    """

    python: str
    asked: tuple[Asked, ...]
    installed: Installed

    def distributions(self) -> dict[str, str]:
        """Return the distributions that the modules belong to -> why they are needed.

        Raises
        ------
        LockError
            When a module that must be there belongs to none.
        """
        reasons: dict[str, str] = {}
        for asked in self.asked:
            owners = self.installed.owners(asked.module, asked.origins)
            for owner in owners:
                reasons.setdefault(owner.name, asked.reason)
            is_lost = not owners and not asked.optional
            if is_lost and not self.installed.is_namespace(asked.module):
                raise _lost(asked)
        return reasons


def module_names(module: str) -> set[str]:
    """Return the canonical names that a distribution of a module would have by its own name."""
    return {canonicalize_name(name.replace(".", "-")) for name in prefixes(module)}


def _lost(asked: Asked) -> LockError:
    if asked.origins:
        return LockError(
            f"{asked.module} belongs to no installed distribution and to no file of the project "
            f"({asked.reason}; it lies at {asked.origins[0]})",
            hint=f"install it as a distribution, or move it into the project's folder, {_DECLARE}",
        )
    return LockError(
        f"{asked.module} is not installed here ({asked.reason})",
        hint=f"install it, import it inside try/except ImportError, {_DECLARE}",
    )


def find_imports(
    *,
    code_root: Path,
    files: Sequence[Path],
    module: str,
    artifacts: Mapping[str, StoredBytes],
    functions: Sequence[str] = (),
    python_executable: str = sys.executable,
    run: bool = True,
) -> Imports:
    """Find out what a function imports.

    Parameters
    ----------
    code_root : Path
        The folder that will be on ``sys.path``.
    files : sequence of Path
        The project's files that go along.
    module : str
        The function's module.
    artifacts : mapping of str to StoredBytes
        The artifacts that it uses; their pickles are read and never run.
    functions : sequence of str
        Names of the module's definitions that are called.
    python_executable : str
        The interpreter to ask.
    run : bool
        Whether to import the module there, in a fresh process; otherwise its source is read, and
        a pickle that cannot be read is nobody's business.

    Raises
    ------
    LockError
        When a module cannot be imported because something is not installed.
    CaptureError
        When importing it fails otherwise, a file of the project that it imports does not go
        along, or a pickle cannot be read.
    """
    root = code_root.resolve()
    request = {"root": str(root), "module": module, "functions": [*functions, _NEEDS], "run": run}
    with start_probe(python_executable, request) as probe:
        # While the other process imports.
        pickled = list(_named_by_pickles(artifacts, strict=run))
        answer = probe.answer()
    if answer["error"]:
        raise _import_error(answer["error"], module, root)
    if run:
        _check_captured(answer["files"], files, root)
    installed = parse_distributions(answer["distributions"])
    asked = [*_asked_by_code(answer, root, module)]
    asked += _asked_by_pickles(pickled, answer, root, installed, python_executable)
    if not run:
        asked = _doubted(asked, [Path(_relative(str(file), root)) for file in files])
    return Imports(python=answer["python"], asked=tuple(asked), installed=installed)


def _doubted(asked: Iterable[Asked], files: Iterable[Path]) -> list[Asked]:
    """Let nothing be certain that may be the project's: its code may change ``sys.path``."""
    own = {part.partition(".")[0] for file in files for part in file.parts}
    return [
        each._replace(certain=each.certain and each.module.partition(".")[0] not in own)
        for each in asked
    ]


def _named_by_pickles(
    artifacts: Mapping[str, StoredBytes], *, strict: bool
) -> Iterator[tuple[str, str]]:
    """Yield module and artifact."""
    for name in sorted(artifacts):
        try:
            modules = named_modules(name, artifacts[name])
        except CaptureError:
            if strict:
                raise
            continue
        yield from ((module, name) for module in sorted(modules))


def _asked_by_code(answer: Mapping[str, Any], root: Path, module: str) -> Iterator[Asked]:
    read = answer["read"]
    soft = {(name.partition(".")[0], file, line) for name, file, line, opt, _ in read if opt}
    traced = [
        (name, file, line, (name.partition(".")[0], file, line) in soft, True)
        for name, file, line in answer["traced"]
    ]
    if find_local(root, module) is None and module in answer["origins"]:
        yield Asked(module, "the function's own module", tuple(answer["origins"][module]), False)
    for name, file, line, optional, certain in (*traced, *read):
        origins = answer["origins"].get(name)
        if origins is None or _is_local(name, root):
            continue
        reason = f"imported by {_relative(file, root)}:{line}"
        yield Asked(name, reason, tuple(origins), optional or _is_below(origins, root), certain)


def _asked_by_pickles(
    pickled: Iterable[tuple[str, str]],
    answer: Mapping[str, Any],
    root: Path,
    installed: Installed,
    python_executable: str,
) -> list[Asked]:
    standard = set(answer["standard"])
    wanted = {
        module: f"named by the pickle of artifact {name!r}"
        for module, name in reversed(list(pickled))
        if module.partition(".")[0] not in standard
    }
    # Most belong to a distribution that lists its files; the rest is looked up.
    names = [module for module in wanted if not installed.owners(module, ())]
    origins: dict[str, list[str]] = {}
    if names:
        with start_probe(python_executable, {"root": str(root), "names": names}) as probe:
            origins = probe.answer()["origins"]
    return [
        Asked(module, reason, tuple(found), _is_below(found, root))
        for module, reason in wanted.items()
        if not _is_local(module, root)
        for found in [origins.get(module, [])]
    ]


def _is_local(module: str, root: Path) -> bool:
    """Tell whether an import with the project's folder on the path finds it there."""
    names = prefixes(module)
    return names[0] in _OURS or any(find_local(root, name) for name in names)


def _is_below(origins: Iterable[str], root: Path) -> bool:
    """Tell whether it is the project's file after all: some change ``sys.path`` themselves."""
    paths = [Path(origin).resolve() for origin in origins]
    return any(
        path.is_relative_to(root) and SITES.isdisjoint(path.relative_to(root).parts)
        for path in paths
    )


def _check_captured(reached: Iterable[str], files: Sequence[Path], root: Path) -> None:
    captured = {(root / file).resolve() for file in files}
    if not captured or not all(file.is_relative_to(root) for file in captured):
        return  # they stand elsewhere on this machine
    for file in map(Path, reached):
        if file.is_relative_to(root) and file.resolve() not in captured:
            raise CaptureError(
                f"{_relative(str(file), root)} is imported, and does not go along with the code",
                hint="files go along by suffix: set METAFLOW_DEFAULT_PACKAGE_SUFFIXES",
            )


def _relative(file: str, root: Path) -> str:
    path = Path(file)
    return str(path.relative_to(root)) if path.is_relative_to(root) else file


def _import_error(error: Mapping[str, Any], module: str, root: Path) -> Exception:
    place = error["place"]
    where = f" at {_relative(place[0], root)}:{place[1]}" if place else ""
    if error["import"]:
        missing = error["missing"] or "what is missing"
        return LockError(
            f"importing {module} in a fresh interpreter failed{where}: {error['text']}",
            hint=f"install {missing} here, or move it into the project's folder",
        )
    if error["exit"]:
        return CaptureError(
            f"importing {module} ends the program{where}",
            hint='guard what should only run as a script: if __name__ == "__main__":',
        )
    return CaptureError(
        f"importing {module} in a fresh interpreter failed{where}: "
        f"{error['type']}: {error['text']}",
        hint="the module must be importable by itself, as it is where the function runs",
    )
