"""What every source of an environment gets, gives, and shares."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from packaging.requirements import Requirement

from mfimage.capture.code.imports import Code, Imports, module_names, search_imports
from mfimage.capture.environment.check import check_imports
from mfimage.capture.environment.sources.conda import Resolution
from mfimage.capture.lock.indexes import OWN_CONFIGURATION, IndexOptions
from mfimage.capture.lock.notes import Note, solve_notes
from mfimage.capture.lock.platform import Platform
from mfimage.capture.lock.settle import Lock, settle
from mfimage.capture.lock.solve import extend_lock, lock_requirements
from mfimage.errors import LockError

# What mfimage's loader needs wherever a function runs.
RUNTIME_REQUIREMENTS = ("orjson>=3.10", "pydantic>=2.10")
LOADER = "needed by mfimage's loader"


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What a function needs to run; most fields are as in ``EnvironmentSpec``."""

    python: str
    platform: str
    source: str
    lock: Lock
    reasons: Mapping[str, str]
    # Modules that are installed here, and are not in it -> their distribution.
    outside: Mapping[str, str] = field(default_factory=dict)
    system_packages: tuple[str, ...] = ()


def _nothing() -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Request:
    """A function whose environment is wanted."""

    code: Code
    # `uv.lock` is searched from here up to the top of the repository, and uv's configuration here.
    project: Path
    declared: Path | None = None  # the file that the caller names
    resolution: Callable[[], Resolution | None] = _nothing  # what Metaflow resolved for the task
    platform: str = "linux/amd64"
    index: IndexOptions = OWN_CONFIGURATION
    # Called when a source waits for other processes, if it does.
    meanwhile: Callable[[], object] = _nothing

    def read(self, python: str = "") -> Maker:
        """Return a maker for what the code's source imports; ``python`` overrides the version."""
        with search_imports(self.code, run=False) as search:
            return self.maker(search.result(), python)

    def maker(self, imports: Imports, python: str = "") -> Maker:
        """Return a maker for imports."""
        python = python or imports.python
        platform = Platform(python=python, name=self.platform)
        return Maker(request=self, imports=imports, python=python, platform=platform)


class Source(Protocol):
    """A source of truth about environments: a module with this function."""

    def find(self, request: Request) -> Callable[[], Environment] | None:
        """Return what makes the environment; None when the source has nothing."""


@dataclass(frozen=True, kw_only=True)
class Maker:
    """Makes an environment from requirements or a lock."""

    request: Request
    imports: Imports
    python: str  # full version
    platform: Platform

    def lock(
        self,
        lines: Sequence[str],
        *,
        hashes: Mapping[str, frozenset[str]] = {},
        directory: Path | None = None,
    ) -> Lock:
        """Solve requirements; relative paths are below ``directory``, by default the project's."""
        index, directory = self.request.index, directory or self.request.project
        return lock_requirements(
            lines, platform=self.platform, index=index, directory=directory, hashes=hashes
        )

    def lock_pins(self, pins: Sequence[str]) -> Lock:
        """Solve exact versions, and what the loader needs besides."""
        names = {Requirement(pin).name for pin in pins if "==" in pin}
        return self.lock([*pins, *RUNTIME_REQUIREMENTS, *self.metaflow(names)])

    def settle(self, parsed: Mapping[str, Any], *, base: Path, where: str) -> Lock:
        """Make a lock from another tool's; add what the loader needs, and change no version."""
        request = self.request
        lock = settle(parsed, self.platform, base=base, where=where, index=request.index)
        versions = {package.name: package.version for package in lock.packages}
        extra = self.metaflow(versions)
        for text in RUNTIME_REQUIREMENTS:
            requirement = Requirement(text)
            version = versions.get(requirement.name)
            if version is None:
                extra.append(text)
            elif not requirement.specifier.contains(version, prereleases=True):
                locked = f"{requirement.name} {version}"
                message = f"{where} locks {locked}, and mfimage's loader needs {text}"
                raise LockError(message, hint=f"lock {text}")
        if not extra:
            return lock
        label, index = "what mfimage's loader needs", request.index
        data = extend_lock(
            lock.data, extra, self.platform, index=index, label=label, directory=request.project
        )
        return replace(lock, data=data)

    def noted(self, lock: Lock) -> Lock:
        """Return a lock with notes, which takes a solve of its own."""
        index, project, wheels = self.request.index, self.request.project, lock.wheels
        notes = solve_notes(
            lock.packages, self.platform, wheels=wheels, index=index, directory=project
        )
        return lock.with_notes(notes, self.platform)

    def check(self, lock: Lock, where: str, *, remedy: str) -> None:
        """Refuse a lock without something that the function imports."""
        environment = self.request.index.environment(os.environ, self.request.project)
        check_imports(self.imports, lock, where=where, remedy=remedy, environment=environment)

    def environment(
        self,
        lock: Lock,
        source: str,
        *,
        named: Mapping[str, str] = {},
        notes: Mapping[str, Note] | None = None,
        otherwise: str = "required by what is named",
    ) -> Environment:
        """Return the environment of a lock, with a reason for each distribution."""
        # ``named`` has the reasons of distributions that a file names, ``notes`` say which others
        # require each, and ``otherwise`` is the reason for the rest.
        names = [package.name for package in lock.packages]
        runtime = [Requirement(text).name for text in RUNTIME_REQUIREMENTS]
        asked = _asked(self.imports, names)
        start = {**dict.fromkeys(runtime, LOADER), **asked, **named}
        both = {name: f"{named[name]}, {asked[name]}" for name in named.keys() & asked.keys()}
        installed = self.imports.installed.close(start, self.platform)
        required = {
            name: f"required by {note.requirers[0]}"
            for name, note in (lock.notes if notes is None else notes).items()
            if note.requirers
        }
        known = {**installed, **required, **start, **both}
        return Environment(
            python=self.python,
            platform=self.platform.name,
            source=source,
            lock=lock,
            reasons={name: known.get(name, otherwise) for name in names},
            outside=self.imports.installed.outside(names),
        )

    def metaflow(self, known: Collection[str]) -> list[str]:
        """Return a requirement of Metaflow when the code imports it and it is not in ``known``."""
        # Every function starts with `from metaflow import json_function`, which is easily forgotten
        # in a list of dependencies.
        name = "metaflow"
        asks = any(asked.module.partition(".")[0] == name for asked in self.imports.asked)
        if not asks or name in known:
            return []
        installed = self.imports.installed
        return [installed[name].requirement() if name in installed else name]


def _asked(imports: Imports, names: Iterable[str]) -> dict[str, str]:
    """Return the reasons of distributions that are installed here, or named as a module."""
    found: dict[str, str] = {}
    for asked in imports.asked:
        owners = imports.installed.owners(asked.module, asked.origins)
        alike = module_names(asked.module) & set(names)
        for name in [owner.name for owner in owners] or alike:
            found.setdefault(name, asked.reason)
    return found
