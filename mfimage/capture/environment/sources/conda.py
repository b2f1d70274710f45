"""``conda.manifest``: what Metaflow resolved for its steps by ``@pypi`` and ``@conda``.

It is JSON: environment id -> conda's name of a platform -> ``conda`` and, for ``@pypi``, ``pypi``
-> packages, each with a URL and no hash. A ``@pypi`` environment has Python and its libraries from
conda.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from packaging.utils import canonicalize_name

from mfimage.capture.lock.indexes import IndexOptions
from mfimage.capture.lock.platform import Platform
from mfimage.capture.lock.uv import UvFailure, compile_pylock
from mfimage.errors import LockError

PLATFORMS = {"linux/amd64": "linux-64", "linux/arm64": "linux-aarch64"}
_PACKAGE = re.compile(r"(?P<name>.+)-(?P<version>[^-]+)-(?P<build>[^-]+)(\.conda|\.tar\.bz2)")
# As in numpy-1.26.4-py311h64a7726_0 and in requests-2.32.3-pyhd8ed1ab_0.
_PYTHON_BUILD = re.compile(r"(^|_)py(\d|h|_)")
# Conda's name -> the name of the wheel.
_WHEEL_NAMES = {
    "brotli-python": "brotli",
    "matplotlib-base": "matplotlib",
    "msgpack-python": "msgpack",
    "py-xgboost": "xgboost",
    "pytables": "tables",
    "python-flatbuffers": "flatbuffers",
    "pytorch": "torch",
}
# The parts of conda's Python, besides libraries; nothing that a function imports.
_PYTHON = {
    *("python", "python-abi", "cpython", "python-gil", "pip", "setuptools", "wheel"),
    *("bzip2", "ca-certificates", "icu", "ncurses", "openssl", "readline", "sqlite", "tk"),
    *("tzdata", "xz", "xz-tools", "xz-gpl-tools", "zlib"),
}
# Libraries whose names do not start with "lib". Wheels contain the libraries that they need.
_LIBRARIES = {
    *("blas", "intel-openmp", "llvm-openmp", "lz4-c", "mkl", "nomkl", "onetbb", "snappy"),
    *("tbb", "yaml", "zstd", "ld-impl-linux-64", "ld-impl-linux-aarch64"),
}


def wheel_name(name: str) -> str:
    """Return the name of the wheel with the content of a conda package."""
    name = canonicalize_name(name)
    return _WHEEL_NAMES.get(name, name)


@dataclass(frozen=True, kw_only=True)
class CondaPackage:
    """A conda package, read from its file name."""

    name: str
    version: str
    build: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"

    @property
    def is_bundled(self) -> bool:
        """Whether it is part of Python itself, or a library that wheels contain."""
        name = canonicalize_name(self.name)
        return name in _PYTHON or name in _LIBRARIES or self.name.startswith(("lib", "_"))

    @property
    def requirement(self) -> str | None:
        """The requirement for the same version as a wheel; None when it is not a distribution."""
        if not _PYTHON_BUILD.search(self.build):
            return None
        return f"{wheel_name(self.name)}=={self.version}"


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """What was resolved for one environment."""

    kind: str  # ``pypi`` or ``conda``: which decorator decided
    platform: str  # as conda names it: ``linux-64``
    python: str  # full version
    # For ``pypi``: a wheel's URL each, or one to build a wheel from (``git+https://...``).
    urls: tuple[str, ...] = ()
    # For ``conda``: all but Python itself, and what it and wheels contain.
    packages: tuple[CondaPackage, ...] = ()


def read_manifest(
    data: bytes, *, environment: str, ran_on: str, platform: str, requested: Collection[str] = ()
) -> Resolution | None:
    """Return an environment of a manifest, by its id; None when it is not in there."""
    # Without one for ``platform`` (``linux/amd64``), that of ``ran_on`` (conda's name) is used, or
    # any. ``requested`` are conda packages that the step names, and which therefore count.
    try:
        platforms = json.loads(data).get(environment)
        if not platforms:
            return None
        # @pypi resolves wheels for one platform, but Python possibly for more.
        solved = [each for each, kinds in platforms.items() if "pypi" in kinds] or list(platforms)
        wanted = (PLATFORMS.get(platform, ""), ran_on)
        chosen = next((each for each in wanted if each in solved), solved[0])
        return _resolution(platforms[chosen], chosen, requested)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"conda.manifest is not as Metaflow writes it: {error!r}"
        hint = "run the flow again, or name the environment with environment="
        raise LockError(message, hint=hint) from None


def _resolution(kinds: Mapping[str, Any], platform: str, requested: Collection[str]) -> Resolution:
    packages = {each.name: each for each in map(_conda_package, kinds["conda"])}
    python = packages.pop("python").version
    if "pypi" in kinds:
        urls = tuple(each["url"] for each in kinds["pypi"])
        return Resolution(kind="pypi", platform=platform, python=python, urls=urls)
    others = [each for each in packages.values() if not each.is_bundled or each.name in requested]
    return Resolution(kind="conda", platform=platform, python=python, packages=tuple(others))


def _conda_package(entry: Mapping[str, str]) -> CondaPackage:
    file = unquote(urlsplit(entry["url"]).path).rpartition("/")[2]
    found = _PACKAGE.fullmatch(file)
    if not found:
        raise ValueError(f"{file!r} is not a conda package")
    return CondaPackage(name=found["name"], version=found["version"], build=found["build"])


# Conda packages as wheels of the same versions; one without a wheel is refused.

_ASKED_AT_ONCE = 4


def require_wheels(
    packages: Sequence[CondaPackage], platform: Platform, *, index: IndexOptions, directory: Path
) -> list[str]:
    """Return the requirements for the wheels of conda packages."""
    pins = {each.requirement: str(each) for each in packages if each.requirement is not None}
    refuse_lost(
        pins, platform, index=index, directory=directory,
        lost=[str(each) for each in packages if each.requirement is None],
        hint="use @pypi for the step, or name the environment with environment=",
    )  # fmt: skip
    return list(pins)


def refuse_lost(
    pins: Mapping[str, str],
    platform: Platform,
    *,
    index: IndexOptions,
    directory: Path,
    lost: Sequence[str] = (),
    hint: str,
) -> None:
    """Refuse conda packages that have no wheel, by name."""
    # ``pins`` has a requirement for each package; ``lost`` are those that cannot have one.

    def has_wheels(pins: Iterable[str]) -> bool:
        text = "\n".join(pins)
        try:
            compile_pylock(
                text, platform=platform, directory=directory, index=index, alone=True, builds=False
            )
        except UvFailure as failure:
            if not failure.is_unsolved:
                raise
            return False
        return True

    missing = list(lost)
    if not has_wheels(pins):
        with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
            found = list(pool.map(lambda pin: has_wheels([pin]), pins))
        missing += [each for each, has in zip(pins.values(), found, strict=True) if not has]
    if missing:
        names = ", ".join(sorted(missing))
        message = f"the step's @conda has packages that have no wheel: {names}"
        raise LockError(message, hint=hint)
