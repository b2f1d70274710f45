"""What a lock is solved for: a minor version of CPython on Linux, on one architecture."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from functools import cached_property

from packaging.markers import InvalidMarker, Marker, UndefinedComparison, UndefinedEnvironmentName
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from mfimage.errors import LockError
from mfimage.package.platforms import MACHINES

# The C library of Debian 12, the oldest below current python:*-slim images. With a lower one,
# wheels that run there would be refused. The lock has every wheel that fits, so an older base
# still finds those built for it.
_GLIBC = 36
_ALIASES = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}


@dataclass(frozen=True, kw_only=True)
class Platform:
    """A Python and a platform."""

    python: str  # ``3.11`` or ``3.11.7``: wheels depend on the minor version only
    name: str  # ``linux/amd64`` or ``linux/arm64``

    def __post_init__(self) -> None:
        if self.name not in MACHINES:
            message = f"platform: {self.name!r} cannot be locked for"
            raise LockError(message, hint=f"use one of {', '.join(MACHINES)}")
        if not re.match(r"3\.\d+", self.python):
            raise LockError(f"python: expected a version such as 3.11, got {self.python!r}")

    def __str__(self) -> str:
        return f"{self.name} and Python {self.minor}"

    @property
    def minor(self) -> str:
        """``3.11``."""
        return ".".join(self.python.split(".")[:2])

    @property
    def machine(self) -> str:
        """The architecture, as Python and wheels name it: ``x86_64``."""
        return MACHINES[self.name]

    @property
    def uv_platform(self) -> str:
        """The value of uv's ``--python-platform``."""
        return f"{self.machine}-manylinux_2_{_GLIBC}"

    @property
    def environment(self) -> str:
        """The marker of the machines that the lock is for."""
        return f"platform_machine == '{self.machine}' and sys_platform == 'linux'"

    @cached_property
    def markers(self) -> Mapping[str, str]:
        """The values of the environment markers (PEP 508)."""
        version = f"{self.minor}.0"
        return {
            "implementation_name": "cpython",
            "implementation_version": version,
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": version,
            "python_version": self.minor,
            "sys_platform": "linux",
        }

    def fits(self, wheel: str) -> bool:
        """Return whether a wheel with this file name can be installed."""
        try:
            return not self._tags.isdisjoint(parse_wheel_filename(wheel)[3])
        except InvalidWheelFilename:
            return False

    def holds(self, marker: str, *, groups: tuple[str, ...] = ()) -> bool:
        """Return whether a lock's marker holds, with these dependency groups and no extras."""
        more = {"extras": frozenset[str](), "dependency_groups": frozenset(groups)}
        values: dict[str, str | Set[str]] = {**self.markers, **more}
        try:
            return Marker(marker).evaluate(values, context="lock_file")
        except (InvalidMarker, UndefinedComparison, UndefinedEnvironmentName) as error:
            raise LockError(f"marker {marker!r}: {error}") from None

    @cached_property
    def _tags(self) -> frozenset[Tag]:
        version = (3, int(self.minor.partition(".")[2]))
        platforms = list(_platforms(self.machine))
        abi = f"cp3{version[1]}"
        own = cpython_tags(version, [abi], platforms)
        return frozenset([*own, *compatible_tags(version, abi, platforms)])


def _platforms(machine: str) -> Iterator[str]:
    oldest = 5 if machine == "x86_64" else 17
    for minor in range(_GLIBC, oldest - 1, -1):
        yield f"manylinux_2_{minor}_{machine}"
        if minor in _ALIASES:
            yield f"{_ALIASES[minor]}_{machine}"
    yield f"linux_{machine}"
