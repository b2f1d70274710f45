"""Which source of truth describes a function's environment, and what it says."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from packaging.requirements import Requirement

from mfimage.capture import pylock
from mfimage.capture.imports import Imports, find_imports
from mfimage.capture.lock import Lock, extend_lock, lock_requirements
from mfimage.capture.pickles import StoredBytes
from mfimage.capture.requirements import RequirementsFile, read_requirements
from mfimage.capture.settle import settle
from mfimage.capture.target import Target
from mfimage.capture.uv import NEVER_LOCKED, OWN_CONFIGURATION, IndexOptions, export_pylock
from mfimage.errors import LockError

# What mfimage's loader needs wherever a function runs.
RUNTIME_REQUIREMENTS = ("orjson>=3.10", "pydantic>=2.10")
_RUNTIME = "needed by mfimage's loader"
_PYLOCK = re.compile(r"pylock(\.[^.]+)?\.toml")


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What a function needs to run.

    Attributes
    ----------
    python : str
        Full version of the Python that it was described by.
    platform : str
        What the lock is for.
    source : str
        ``requirements``, ``pylock``, ``uv.lock`` or ``imports``.
    lock : Lock
        Exact versions and hashes.
    system_packages : tuple of str
        Debian packages.
    reasons : mapping of str to str
        Distribution -> why it is there, as ``imported by predict.py:3``.
    """

    python: str
    platform: str
    source: str
    lock: Lock
    reasons: Mapping[str, str]
    system_packages: tuple[str, ...] = ()


def describe_environment(
    *,
    declared: Path | None,
    project: Path,
    code_root: Path,
    files: Sequence[Path],
    module: str,
    artifacts: Mapping[str, StoredBytes],
    python_executable: str = sys.executable,
    platform: str = "linux/amd64",
    index: IndexOptions = OWN_CONFIGURATION,
) -> Environment:
    """Describe the environment of a function, from the first source that there is.

    What the caller declares; the project's ``uv.lock``; what code and artifacts really import, at
    the versions installed.

    Parameters
    ----------
    declared : Path or None
        A requirements file, ``pylock.toml`` or ``uv.lock``.
    project : Path
        The project's folder: where ``uv.lock`` is looked for, up to the top of its repository,
        and where uv looks for its configuration.
    code_root, files, module, artifacts, python_executable
        As in ``find_imports``.
    platform : str
        What to lock for.
    index : IndexOptions
        Which package indexes to ask.

    Raises
    ------
    LockError
        When it cannot be described or solved.
    CaptureError
        When the module cannot be imported, or an artifact cannot be read.
    """
    uv_lock = None if declared else find_uv_lock(project)
    static = declared is not None or uv_lock is not None
    imports = find_imports(
        code_root=code_root,
        files=files,
        module=module,
        artifacts={} if static else artifacts,
        python_executable=python_executable,
        run=not static,
    )
    job = _Job(
        imports=imports,
        target=Target(python=imports.python, platform=platform),
        project=project,
        code_root=code_root.resolve(),
        index=index,
    )
    if declared:
        return job.declared(declared)
    return job.exported(uv_lock) if uv_lock else job.imported()


def find_uv_lock(project: Path) -> Path | None:
    """Return the ``uv.lock`` of a project: in its folder, or above it in its repository."""
    folders = [project.resolve(), *project.resolve().parents]
    tops = [i for i, folder in enumerate(folders) if (folder / ".git").exists()]
    for folder in folders[: tops[0] + 1 if tops else 1]:
        if (folder / "uv.lock").is_file() and (folder / "pyproject.toml").is_file():
            return folder / "uv.lock"
    return None


@dataclass(frozen=True, kw_only=True)
class _Job:
    imports: Imports
    target: Target
    project: Path
    code_root: Path
    index: IndexOptions

    def declared(self, file: Path) -> Environment:
        """Use what the caller names."""
        if not file.is_file():
            raise LockError(f"environment: no file {str(file)!r}", hint="check the path")
        if file.name == "uv.lock":
            return self.exported(file)
        if _PYLOCK.fullmatch(file.name):
            plain = pylock.parse_pylock(file.read_text(), where=str(file))
            return self._settled(plain, file, source="pylock")
        if file.suffix in (".txt", ".in"):
            return self._required(read_requirements(file))
        raise LockError(
            f"environment: {file.name!r} is no kind of file that describes one",
            hint="name a requirements file (.txt, .in), pylock.toml, pylock.<name>.toml or uv.lock",
        )

    def exported(self, file: Path) -> Environment:
        """Use a ``uv.lock``."""
        text = export_pylock(file.parent, with_project=self._needs(file.parent), index=self.index)
        plain = pylock.parse_pylock(text, where=str(file))
        return self._settled(plain, file, source="uv.lock")

    def imported(self) -> Environment:
        """Use what is really imported, at the versions installed."""
        installed = self.imports.installed
        start = self.imports.distributions()
        absent = []
        for text in RUNTIME_REQUIREMENTS:
            name = Requirement(text).name
            if name in installed:
                start.setdefault(name, _RUNTIME)
            else:
                absent.append(text)
        reasons = installed.close(start, self.target)
        for name in NEVER_LOCKED:
            reasons.pop(name, None)
        lines = [installed[name].requirement() for name in sorted(reasons)]
        return self._locked([*lines, *absent], reasons, source="imports")

    def _required(self, file: RequirementsFile) -> Environment:
        lines = [f"-r {file.path.resolve()}", *RUNTIME_REQUIREMENTS, *self._metaflow(file.names)]
        why = dict.fromkeys(file.names, f"named in {file.path.name}")
        return self._locked(lines, why, source="requirements", hashes=file.hashes)

    def _locked(
        self,
        lines: Sequence[str],
        reasons: Mapping[str, str],
        *,
        source: str,
        hashes: Mapping[str, frozenset[str]] | None = None,
    ) -> Environment:
        lock = lock_requirements(
            lines,
            python=self.target.python,
            platform=self.target.platform,
            index=self.index,
            directory=self.project,
            hashes=hashes or {},
        )
        return self._environment(lock, reasons, source, "required by what is named")

    def _settled(self, plain: Mapping[str, object], file: Path, *, source: str) -> Environment:
        lock = settle(plain, self.target, base=file.parent, where=str(file), index=self.index)
        versions = {package.name: package.version for package in lock.packages}
        extra = [*self._metaflow(versions)]
        for text in RUNTIME_REQUIREMENTS:
            requirement = Requirement(text)
            version = versions.get(requirement.name)
            if version is None:
                extra.append(text)
            elif not requirement.specifier.contains(version, prereleases=True):
                raise LockError(
                    f"{file.name} locks {requirement.name} {version}, and mfimage's loader needs "
                    f"{text}",
                    hint=f"lock {text}",
                )
        if extra:
            data = extend_lock(
                lock.data,
                extra,
                self.target,
                index=self.index,
                label="mfimage's loader",
                directory=self.project,
            )
            lock = replace(lock, data=data)
        return self._environment(lock, {}, source, f"locked in {file.name}")

    def _environment(
        self, lock: Lock, reasons: Mapping[str, str], source: str, otherwise: str
    ) -> Environment:
        runtime = {Requirement(text).name: _RUNTIME for text in RUNTIME_REQUIREMENTS}
        known = {**self._direct(), **runtime, **reasons}
        names = [package.name for package in lock.packages]
        return Environment(
            python=self.imports.python,
            platform=self.target.platform,
            source=source,
            lock=lock,
            reasons={name: known.get(name, otherwise) for name in names},
        )

    def _direct(self) -> dict[str, str]:
        """Return why the code asks for distributions, as far as this interpreter knows them."""
        found: dict[str, str] = {}
        for asked in self.imports.asked:
            for owner in self.imports.installed.owners(asked.module, asked.origins):
                found.setdefault(owner.name, asked.reason)
        return found

    def _metaflow(self, known: Collection[str]) -> list[str]:
        """Return a requirement of Metaflow when the code imports it and nobody names it.

        ``from metaflow import json_function`` is how a function is written; who declares what it
        needs may well not think of it.
        """
        name = "metaflow"
        asks = any(asked.module.partition(".")[0] == name for asked in self.imports.asked)
        if not asks or name in known:
            return []
        installed = self.imports.installed
        return [installed[name].requirement() if name in installed else name]

    def _needs(self, project: Path) -> bool:
        """Tell whether the code imports the project's own distribution.

        What lies in the code's folder goes along as code, so that an edit stays small.
        """
        folders = [folder for folder in (project, project / "src") if folder != self.code_root]
        names = {asked.module.partition(".")[0] for asked in self.imports.asked}
        return any(
            (folder / name / "__init__.py").is_file() or (folder / f"{name}.py").is_file()
            for folder in folders
            for name in names
        )
