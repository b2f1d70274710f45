"""Makes an environment of each source of truth."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from mfimage.capture.code.imports import Imports
from mfimage.capture.environment.check import check_imports
from mfimage.capture.environment.conda import PLATFORMS, Resolution, require_wheels
from mfimage.capture.environment.requirements import read_requirements
from mfimage.capture.environment.why import LOADER, find_reasons
from mfimage.capture.lock import pylock
from mfimage.capture.lock.indexes import IndexOptions
from mfimage.capture.lock.notes import Note, lock_notes, project_notes, with_indexes
from mfimage.capture.lock.platform import Target
from mfimage.capture.lock.settle import settle
from mfimage.capture.lock.solve import Lock, extend_lock, lock_requirements
from mfimage.capture.lock.uv import NEVER_LOCKED, export_pylock
from mfimage.capture.lock.wheel_urls import lock_urls, parse_wheels
from mfimage.errors import LockError

# What mfimage's loader needs wherever a function runs.
RUNTIME_REQUIREMENTS = ("orjson>=3.10", "pydantic>=2.10")
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
        ``requirements``, ``pylock``, ``pypi``, ``conda``, ``uv.lock`` or ``imports``.
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


@dataclass(frozen=True, kw_only=True)
class Describer:
    """Makes an environment; ``describe_environment`` says what of.

    Attributes
    ----------
    imports : Imports
        What code and artifacts ask for.
    python : str
        Full version.
    target : Target
        What to lock for.
    project : Path
        Where uv looks for its configuration.
    code_root : Path
        The folder of the function's code.
    index : IndexOptions
        Which package indexes to ask.
    """

    imports: Imports
    python: str
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
            return self._pylock(file)
        if file.suffix in (".txt", ".in"):
            return self._required(file)
        raise LockError(
            f"environment: {file.name!r} is no kind of file that describes one",
            hint="name a requirements file (.txt, .in), pylock.toml, pylock.<name>.toml or uv.lock",
        )

    def _required(self, file: Path) -> Environment:
        read = read_requirements(file)
        lines = [f"-r {file.resolve()}", *RUNTIME_REQUIREMENTS, *self._metaflow(read.names)]
        lock = self._locked(lines, hashes=read.hashes)
        self._check(lock, file.name, remedy="it")
        named = dict.fromkeys(read.names, f"named in {file.name}")
        return self._environment(lock, "requirements", named=named, notes=self._notes(lock))

    def _pylock(self, file: Path) -> Environment:
        plain = pylock.parse_pylock(file.read_text(), where=str(file))
        lock = self._settled(plain, base=file.parent, where=file.name)
        self._check(lock, file.name, remedy="what it is locked from")
        return self._environment(lock, "pylock", otherwise=f"locked in {file.name}")

    def exported(self, file: Path) -> Environment:
        """Use a ``uv.lock``."""
        project = file.parent
        text = export_pylock(project, with_project=self._needs(project), index=self.index)
        plain = pylock.parse_pylock(text, where=str(file))
        lock = self._settled(plain, base=project, where=file.name)
        self._check(lock, file.name, remedy="the dependencies in pyproject.toml")
        found = project_notes(project, index=self.index)
        return self._environment(lock, "uv.lock", notes=found, otherwise="locked in uv.lock")

    def resolved(self, resolution: Resolution) -> Environment:
        """Use what Metaflow resolved for the task."""
        kind = f"@{resolution.kind}"
        if resolution.kind == "conda":
            pins = require_wheels(
                resolution.packages, self.target, index=self.index, directory=self.project
            )
            lock = self._extended(pins)
        elif resolution.platform == PLATFORMS[self.target.platform]:
            plain = lock_urls(
                resolution.urls, self.target, index=self.index, directory=self.project
            )
            lock = self._settled(plain, base=self.project, where=f"the step's {kind}")
        else:
            wheels, others = parse_wheels(resolution.urls)
            lock = self._extended([*(wheel.pin for wheel in wheels), *others])
        self._check(lock, f"the step's {kind}", remedy="it, and run the flow again")
        return self._environment(
            lock, resolution.kind, notes=self._notes(lock), otherwise=f"resolved by {kind}"
        )

    def imported(self) -> Environment:
        """Use what is really imported, at the versions installed."""
        installed = self.imports.installed
        start = self.imports.distributions()
        absent = []
        for text in RUNTIME_REQUIREMENTS:
            name = Requirement(text).name
            if name in installed:
                start.setdefault(name, LOADER)
            else:
                absent.append(text)
        names = installed.close(start, self.target).keys() - set(NEVER_LOCKED)
        lock = self._locked([*(installed[name].requirement() for name in sorted(names)), *absent])
        return self._environment(lock, "imports", notes=self._notes(lock))

    def _locked(
        self, lines: Sequence[str], hashes: Mapping[str, frozenset[str]] | None = None
    ) -> Lock:
        return lock_requirements(
            lines,
            python=self.target.python,
            platform=self.target.platform,
            index=self.index,
            directory=self.project,
            hashes=hashes or {},
        )

    def _extended(self, pins: Sequence[str]) -> Lock:
        """Lock versions, and what the loader needs beside them."""
        names = {Requirement(pin).name for pin in pins if "==" in pin}
        return self._locked([*pins, *RUNTIME_REQUIREMENTS, *self._metaflow(names)])

    def _settled(self, plain: Mapping[str, Any], *, base: Path, where: str) -> Lock:
        """Make a lock of somebody else's, and add what the loader needs; no version changes."""
        lock = settle(plain, self.target, base=base, where=where, index=self.index)
        versions = {package.name: package.version for package in lock.packages}
        extra = [*self._metaflow(versions)]
        for text in RUNTIME_REQUIREMENTS:
            requirement = Requirement(text)
            version = versions.get(requirement.name)
            if version is None:
                extra.append(text)
            elif not requirement.specifier.contains(version, prereleases=True):
                raise LockError(
                    f"{where} locks {requirement.name} {version}, and mfimage's loader needs "
                    f"{text}",
                    hint=f"lock {text}",
                )
        if not extra:
            return lock
        data = extend_lock(
            lock.data,
            extra,
            self.target,
            index=self.index,
            label="mfimage's loader",
            directory=self.project,
        )
        return replace(lock, data=data)

    def _check(self, lock: Lock, where: str, *, remedy: str) -> None:
        environment = self.index.environment(os.environ, self.project)
        check_imports(self.imports, lock, where=where, remedy=remedy, environment=environment)

    def _notes(self, lock: Lock) -> Mapping[str, Note]:
        return lock_notes(lock, self.target, index=self.index, directory=self.project)

    def _environment(
        self,
        lock: Lock,
        source: str,
        *,
        named: Mapping[str, str] = {},
        notes: Mapping[str, Note] = {},
        otherwise: str = "required by what is named",
    ) -> Environment:
        reasons = find_reasons(
            [package.name for package in lock.packages],
            self.imports,
            self.target,
            named=named,
            runtime=[Requirement(text).name for text in RUNTIME_REQUIREMENTS],
            notes=notes,
            otherwise=otherwise,
        )
        return Environment(
            python=self.python,
            platform=self.target.platform,
            source=source,
            lock=with_indexes(lock, notes, self.target),
            reasons=reasons,
        )

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
