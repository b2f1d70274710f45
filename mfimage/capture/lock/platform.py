"""What a lock is solved for: a minor version of CPython on a Linux platform."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from functools import cached_property

from packaging.markers import (
    InvalidMarker,
    Marker,
    UndefinedComparison,
    UndefinedEnvironmentName,
)
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from mfimage.errors import LockError

# The C library of Debian 12, the oldest that a current python:*-slim image stands on. A lower one
# would refuse wheels that run there; and each wheel that fits is in the lock, so that an older
# base still finds the wheels built for it.
_GLIBC = 36
_MACHINES = {"linux/amd64": "x86_64", "linux/arm64": "aarch64"}
PLATFORMS = tuple(_MACHINES)
_ALIASES = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}


@dataclass(frozen=True, kw_only=True)
class Target:
    """A Python and a platform.

    Attributes
    ----------
    python : str
        As ``3.11`` or ``3.11.7``. Only the minor version counts: an image's Python and the one
        that binds differ in the patch, and wheels do not.
    platform : str
        ``linux/amd64`` or ``linux/arm64``.
    """

    python: str
    platform: str

    def __post_init__(self) -> None:
        if self.platform not in _MACHINES:
            raise LockError(
                f"platform: {self.platform!r} is none that can be locked for",
                hint=f"use one of {', '.join(_MACHINES)}",
            )
        if not re.match(r"3\.\d+", self.python):
            raise LockError(f"python: expected a version such as 3.11, got {self.python!r}")

    def __str__(self) -> str:
        return f"{self.platform} and Python {self.minor}"

    @property
    def minor(self) -> str:
        """``3.11``."""
        return ".".join(self.python.split(".")[:2])

    @property
    def machine(self) -> str:
        """The machine, as Python and wheels name it: ``x86_64``."""
        return _MACHINES[self.platform]

    @property
    def uv_platform(self) -> str:
        """What uv calls the platform: the value of its ``--python-platform``."""
        return f"{self.machine}-manylinux_2_{_GLIBC}"

    @property
    def environment(self) -> str:
        """The marker that says on which machines the lock holds."""
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
        """Tell whether a wheel of this file name can be installed."""
        try:
            return not self._tags.isdisjoint(parse_wheel_filename(wheel)[3])
        except InvalidWheelFilename:
            return False

    def holds(self, marker: str, *, groups: tuple[str, ...] = ()) -> bool:
        """Tell whether a marker of a lock holds, with these dependency groups and no extras."""
        values: dict[str, str | Set[str]] = {
            **self.markers,
            "extras": frozenset(),
            "dependency_groups": frozenset(groups),
        }
        try:
            return Marker(marker).evaluate(values, context="lock_file")
        except (InvalidMarker, UndefinedComparison, UndefinedEnvironmentName) as error:
            raise LockError(f"marker {marker!r}: {error}") from None

    @cached_property
    def _tags(self) -> frozenset[Tag]:
        version = (3, int(self.minor.partition(".")[2]))
        platforms = list(_platforms(self.machine))
        abi = f"cp3{version[1]}"
        return frozenset(
            [
                *cpython_tags(version, [abi], platforms),
                *compatible_tags(version, abi, platforms),
            ]
        )


def _platforms(machine: str) -> Iterator[str]:
    oldest = 5 if machine == "x86_64" else 17
    for minor in range(_GLIBC, oldest - 1, -1):
        yield f"manylinux_2_{minor}_{machine}"
        if minor in _ALIASES:
            yield f"{_ALIASES[minor]}_{machine}"
    yield f"linux_{machine}"
