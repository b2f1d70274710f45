"""Images for Ray clusters: one for head, workers and submitter, since Ray wants equal versions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from mfimage.errors import OptionError
from mfimage.image.targets.target import RUNTIME_REQUIREMENTS, Target
from mfimage.runtime.layout import TARGET_VARIABLE

RAY_VERSION = "io.mfimage.ray-version"
RAY_PARTS = "io.mfimage.ray-parts"  # Ray's extras, as "default,serve"
# To the patch version: all nodes of a cluster must have the same.
PYTHON_VERSION = "io.mfimage.python-version"

# Batch jobs read and write buckets with it.
BATCH_REQUIREMENTS = ("obstore>=0.8",)
OLDEST_RAY = "2.53"  # the oldest version whose parts all run in an image
# Bare `ray` has no health endpoint: no probe would pass.
_ALWAYS = "default"
PARTS = ("data", "serve")


@dataclass(frozen=True, kw_only=True)
class RayTarget(Target):
    """A node of a Ray cluster."""

    name = "ray"
    template = "ray.Dockerfile.j2"
    check = "mfimage.image.checks.ray:check_ray"
    env: ClassVar = {TARGET_VARIABLE: "ray", "RAY_USAGE_STATS_ENABLED": "0"}
    # The cluster's store, its dashboard and Jobs API, Ray Client, Ray Serve.
    ports = (6379, 8265, 10001, 8000)
    programs: ClassVar = {"wget": "mfimage.runtime.ray.wget"}  # KubeRay's probes call it
    label_names = (PYTHON_VERSION, RAY_VERSION, RAY_PARTS)

    ray_version: str | None = None
    parts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for part in self.parts:
            if part not in PARTS:
                raise OptionError(
                    f"with: {part!r} is not a part of Ray that mfimage installs",
                    hint=f"one of: {', '.join(PARTS)}",
                )
        if self.ray_version is not None and not _is_supported(self.ray_version):
            raise OptionError(
                f"ray-version: {self.ray_version!r} is not a version of Ray from {OLDEST_RAY} on",
                hint=f"such as {OLDEST_RAY}.0; older versions have no health endpoint",
            )

    @property
    def requirements(self) -> tuple[str, ...]:
        """See `Target`."""
        version = f"=={self.ray_version}" if self.ray_version else f">={OLDEST_RAY}"
        ray = f"ray[{self._extras}]{version}"
        return (*RUNTIME_REQUIREMENTS, *BATCH_REQUIREMENTS, ray)

    @property
    def cmd(self) -> tuple[str, ...]:
        """See `Target`."""
        if "serve" in self.parts:
            return ("serve",)
        return ("ray", "start", "--head", "--block", "--dashboard-host=0.0.0.0",
                "--disable-usage-stats")  # fmt: skip

    def labels(self, *, lock: bytes, python: str) -> dict[str, str]:
        """See `Target`."""
        from mfimage.capture.lock import toml

        packages = toml.loads(lock.decode()).get("packages", [])
        found = (str(each.get("version", "")) for each in packages if each["name"] == "ray")
        return {PYTHON_VERSION: python, RAY_VERSION: next(found, ""), RAY_PARTS: self._extras}

    @classmethod
    def options_from(cls, labels: Mapping[str, str]) -> dict[str, Any]:
        """See `Target`."""
        parts = labels.get(RAY_PARTS, "").split(",")
        return {"parts": tuple(part for part in parts if part not in ("", _ALWAYS))}

    @property
    def _extras(self) -> str:
        return ",".join([_ALWAYS, *sorted(self.parts)])


def _is_supported(text: str) -> bool:
    from packaging.version import InvalidVersion, Version

    try:
        return Version(text) >= Version(OLDEST_RAY)
    except InvalidVersion:
        return False
