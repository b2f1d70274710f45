"""Reports the environment of a function package: what is in it, from where, and why."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from mfimage.backends.satisfies import equal_versions, installed_size, installed_version
from mfimage.capture.lock.pylock import LockedPackage, read_lock
from mfimage.package.platforms import this_platform
from mfimage.package.spec import EnvironmentSpec
from mfimage.package.store import open_package
from mfimage.terminal import visible


@dataclass(frozen=True, kw_only=True)
class DistributionReport:
    """One distribution of an environment."""

    name: str
    version: str
    origin: str  # ``wheel in the package``, or ``index`` and the path of the index's URL
    files: tuple[str, ...]  # names of the wheels that fit
    why: str  # it is included, as ``imported by predict.py:3``
    here: str | None = None  # version in the running interpreter, if that was compared and has it
    size: int | None = None  # bytes of its files, if the running interpreter has this version

    @property
    def is_here(self) -> bool:
        """Whether the running interpreter has this version."""
        return self.here is not None and equal_versions(self.here, self.version)


@dataclass(frozen=True, kw_only=True)
class EnvironmentReport:
    """The environment of a function package; the fields are as in ``EnvironmentSpec``."""

    function: str
    python: str
    platform: str
    source: str
    lock: str  # its digest
    system_packages: tuple[str, ...]
    distributions: tuple[DistributionReport, ...]
    # How the running interpreter differs; None when it was not compared.
    differences: tuple[str, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return dataclasses.asdict(self)

    def to_text(self) -> str:
        """Return the report as text."""
        if self.differences is not None:
            same = ("the running interpreter has exactly this environment",)
            return "\n".join(map(visible, self.differences or same))
        head = {
            "function": self.function,
            "python": self.python,
            "platform": self.platform,
            "source": self.source,
            "lock": self.lock,
            "system packages": ", ".join(self.system_packages),
        }
        rows = [(each.name, each.version, each.origin, each.why) for each in self.distributions]
        about = [(name, value) for name, value in head.items() if value]
        return "\n".join([*_columns(about), "", *_columns(rows)])


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [visible("  ".join(map(str.ljust, row, widths)).rstrip()) for row in rows]


def report_environment(reference: str, *, diff: bool = False) -> EnvironmentReport:
    """Report the environment of a function package; ``diff`` compares this interpreter with it."""
    package = open_package(reference)
    spec = package.spec.environment
    locked = read_lock(package.read(spec.lock))
    distributions = tuple(_distribution(each, spec, diff) for each in locked)
    return EnvironmentReport(
        function=package.spec.name,
        python=spec.python,
        platform=spec.platform,
        source=spec.source,
        lock=spec.lock.digest,
        system_packages=tuple(spec.system_packages),
        distributions=distributions,
        differences=_differences(spec, distributions) if diff else None,
    )


def _distribution(locked: LockedPackage, spec: EnvironmentSpec, diff: bool) -> DistributionReport:
    index = urlsplit(locked.index or "").path.strip("/")
    return DistributionReport(
        name=locked.name,
        version=locked.version,
        origin="wheel in the package" if locked.is_local else f"index {index}".strip(),
        files=tuple(file.name for file in locked.files),
        why=spec.reasons.get(locked.name, "not recorded"),
        here=installed_version(locked.name) if diff else None,
        size=installed_size(locked.name, locked.version),
    )


def _differences(
    spec: EnvironmentSpec, distributions: tuple[DistributionReport, ...]
) -> tuple[str, ...]:
    python, running = platform.python_version(), this_platform()
    found = []
    if ".".join(python.split(".")[:2]) != spec.python_minor:
        found.append(f"Python {spec.python_minor} is locked; this is {python}")
    if running != spec.platform:
        found.append(f"it is locked for {spec.platform}; this is {running}")
    for each in distributions:
        if not each.is_here:
            here = f"{each.here} is" if each.here else "it is not"
            found.append(f"{each.name} {each.version} is locked; {here} installed here")
    return tuple(found)
