"""Installed distributions: which one a module belongs to, and what each requires."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import unquote, urlsplit

from packaging.markers import UndefinedEnvironmentName
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from mfimage.capture.code._reading import prefixes
from mfimage.capture.lock.platform import Platform
from mfimage.capture.lock.uv import NEVER_LOCKED
from mfimage.errors import LockError

SITES = frozenset({"site-packages", "dist-packages"})
_SUFFIXES = (".py", ".so", ".pyd")
_PROJECT_FILES = ("pyproject.toml", "setup.py", "setup.cfg")


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """One installed distribution, as its metadata says."""

    name: str  # canonical
    version: str
    requires: tuple[str, ...] = ()  # with markers
    # Top-level module -> its files, for modules that several distributions have.
    modules: Mapping[str, Sequence[str]] = field(default_factory=dict)
    location: str = ""  # the folder that its modules are in
    direct_url: Mapping[str, Any] | None = None  # where it is from, unless an index (PEP 610)
    installer: str = ""
    legacy: bool = False  # an ``egg-info``, as source folders hold

    @cached_property
    def source(self) -> Path | None:
        """The folder that it was installed from, editable or not."""
        if self.direct_url and "dir_info" in self.direct_url:
            return _path_of(self.direct_url["url"])
        folder = Path(self.location)
        if self.legacy and any((folder / name).is_file() for name in _PROJECT_FILES):
            return folder
        return None

    def requirement(self) -> str:
        """Return the requirement for exactly this distribution."""
        url = self.direct_url["url"] if self.direct_url else ""
        path = self.source or _path_of(url)
        if path is not None and path.exists():
            return f"{self.name} @ {path.resolve().as_uri()}"
        if path is not None and self.installer != "conda":
            message = f"{self.name} {self.version} was installed from {path}, which is gone"
            raise LockError(message, hint=f"install {self.name} again, from a folder or an index")
        # Conda records the folder on the machine that built the package; its versions are PyPI's.
        if path is not None or not self.direct_url:
            return f"{self.name}=={self.version}"
        part = self.direct_url.get("subdirectory")
        end = f"#subdirectory={part}" if part else ""
        vcs = self.direct_url.get("vcs_info")
        if vcs:
            return f"{self.name} @ {vcs['vcs']}+{url}@{vcs['commit_id']}{end}"
        return f"{self.name} @ {url}{end}"


def _path_of(url: str) -> Path | None:
    parts = urlsplit(url)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


class Installed:
    """The distributions of one interpreter; of those with one name, the first counts."""

    def __init__(self, distributions: Iterable[Distribution]) -> None:
        self._by_name: dict[str, Distribution] = {}
        self._by_module: dict[str, list[Distribution]] = {}
        for each in distributions:
            if self._by_name.setdefault(each.name, each) is each:
                for module in each.modules:
                    self._by_module.setdefault(module, []).append(each)

    def __getitem__(self, name: str) -> Distribution:
        return self._by_name[name]

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def owners(self, module: str, origins: Sequence[str]) -> list[Distribution]:
        """Return the distributions that have a module: several (``cv2``), or none if unknown."""
        editable = self._by_source(origins) if len(origins) == 1 else []
        candidates = self._by_module.get(module.partition(".")[0], [])
        if editable or len(candidates) == 1:
            return editable or candidates
        for name in reversed(prefixes(module)):
            if found := [each for each in candidates if _holds(each, name)]:
                return found
        return self._by_place(origins)

    def is_namespace(self, module: str) -> bool:
        """Return whether a module is only a folder that several distributions fill."""
        first, path = module.partition(".")[0], module.replace(".", "/") + "/"
        candidates = self._by_module.get(first, [])
        return any(name.startswith(path) for each in candidates for name in each.modules[first])

    def _by_source(self, origins: Sequence[str]) -> list[Distribution]:
        """Find the distribution that was installed from the folder of a module."""
        for each in self._by_name.values():
            source = each.source
            if source and any(is_inside(Path(origin), source) for origin in origins):
                return [each]
        return []

    def _by_place(self, origins: Sequence[str]) -> list[Distribution]:
        """Find the distribution that has a module under another name (``distutils``)."""
        # A folder is a namespace: the owner of one part does not own the others.
        files = [PurePath(origin) for origin in origins if origin.endswith(_SUFFIXES)]
        for origin in files:
            for each in self._by_name.values():
                if each.location and origin.is_relative_to(each.location):
                    first = origin.relative_to(each.location).parts[:1]
                    if first and first[0].partition(".")[0] in each.modules:
                        return [each]
        return self._by_source(origins)

    def outside(self, locked: Iterable[str]) -> dict[str, str]:
        """Return modules that are here, and not in an environment -> their distribution."""
        inside = {*self.close(dict.fromkeys(locked, "")), *NEVER_LOCKED}
        return {
            module: owners[0].name
            for module, owners in self._by_module.items()
            if inside.isdisjoint(owner.name for owner in owners)
        }

    def close(self, start: Mapping[str, str], platform: Platform | None = None) -> dict[str, str]:
        """Follow requirements; what is not installed is left out: the solver chooses it."""
        # Without a platform: this machine's.
        markers = platform.markers if platform else {}
        reasons = dict(start)
        done: set[tuple[str, str]] = set()
        queue = deque((name, "") for name in start)
        while queue:
            name, extra = queue.popleft()
            if (name, extra) in done or name not in self:
                continue
            done.add((name, extra))
            for required in _requirements(self[name], extra, markers):
                other = canonicalize_name(required.name)
                if other in NEVER_LOCKED or other not in self:
                    continue
                reasons.setdefault(other, f"required by {name}")
                queue.extend((other, wanted) for wanted in ("", *sorted(required.extras)))
        return reasons


def is_inside(path: Path, folder: Path) -> bool:
    """Return whether a path is inside a source folder, but not in an environment there."""
    path, folder = path.resolve(), folder.resolve()
    return path.is_relative_to(folder) and SITES.isdisjoint(path.relative_to(folder).parts)


def _holds(distribution: Distribution, module: str) -> bool:
    """Return whether one of a distribution's files is this module, or its package."""
    path = module.replace(".", "/")
    names = distribution.modules[module.partition(".")[0]]
    rests = [name[len(path) :] for name in names if name.startswith(path)]
    return any(
        rest.startswith("/__init__.")
        # As in fast.cpython-311-x86_64-linux-gnu.so.
        or (rest.startswith(".") and "/" not in rest and rest.endswith(_SUFFIXES))
        for rest in rests
    )


def _requirements(
    distribution: Distribution, extra: str, markers: Mapping[str, str]
) -> list[Requirement]:
    found = []
    for text in distribution.requires:
        try:
            requirement = Requirement(text)
            marker = requirement.marker
            if marker is None or marker.evaluate({**markers, "extra": extra}):
                found.append(requirement)
        except (InvalidRequirement, UndefinedEnvironmentName):
            continue  # uv, which reads the metadata too, may understand it
    return found


def parse_distributions(listed: Iterable[Mapping[str, Any]]) -> Installed:
    """Return the distributions that the probe listed."""
    return Installed(
        Distribution(
            name=canonicalize_name(each["name"]),
            version=each["version"],
            requires=tuple(each["requires"]),
            modules=each["modules"],
            location=each["location"],
            direct_url=json.loads(each["direct_url"]) if each["direct_url"] else None,
            installer=each["installer"],
            legacy=each["legacy"],
        )
        for each in listed
    )
