"""The interfaces an image can expose, each as data."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mfimage.errors import OptionError
from mfimage.runtime.layout import TARGET_VARIABLE

# What the files of mfimage that ship inside an image import: the same in every target.
RUNTIME_REQUIREMENTS = ("orjson>=3.10", "pydantic>=2.10")

# Equal to the extra `serve` in pyproject.toml; a test holds that.
SERVE_REQUIREMENTS = (
    "fastapi>=0.115",
    "uvicorn>=0.34,<0.55",
    "httptools>=0.6.3",
    "uvloop>=0.21; sys_platform != 'win32'",
    "prometheus-client>=0.21",
)
# What batch jobs read and write buckets with; with Ray itself, equal to the extra `ray`.
BATCH_REQUIREMENTS = ("obstore>=0.8",)


@dataclass(frozen=True, kw_only=True)
class Target:
    """What makes one kind of image different from another.

    Attributes
    ----------
    name : str
        As ``--target`` takes it.
    template : str
        File in ``mfimage.templates``.
    requirements : tuple of str
        What is locked together with the function's own environment.
    cmd : tuple of str
        Arguments of the entrypoint, when ``docker run`` gives none.
    env : mapping
        Variables beside those of every image.
    ports : tuple of int
        Ports that the image exposes.
    programs : mapping of str to str
        Commands of ours, each the name of a module that has a ``main``; whatever else has the
        name is found before it.
    ray : bool
        Whether it is built around Ray, and takes ``ray_version`` and ``parts``.
    """

    name: str
    template: str
    requirements: tuple[str, ...]
    cmd: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    ports: tuple[int, ...] = ()
    programs: Mapping[str, str] = field(default_factory=dict)
    ray: bool = False


FASTAPI = Target(
    name="fastapi",
    template="fastapi.Dockerfile.j2",
    requirements=RUNTIME_REQUIREMENTS + SERVE_REQUIREMENTS,
    cmd=("serve",),
    ports=(8000,),
)

# One image for head, workers and submitter: Ray wants the same versions on every node.
RAY = Target(
    name="ray",
    template="ray.Dockerfile.j2",
    requirements=RUNTIME_REQUIREMENTS + BATCH_REQUIREMENTS,
    cmd=("ray", "start", "--head", "--block", "--dashboard-host=0.0.0.0", "--disable-usage-stats"),
    env={TARGET_VARIABLE: "ray", "RAY_USAGE_STATS_ENABLED": "0"},
    # The cluster's store, its dashboard and Jobs API, Ray Client, Ray Serve.
    ports=(6379, 8265, 10001, 8000),
    # KubeRay's probes call it.
    programs={"wget": "mfimage.runtime.ray.wget"},
    ray=True,
)
# Of Ray, what runs in every image; bare `ray` has no health endpoint, so no probe would pass.
OLDEST_RAY = "2.53"
RAY_PARTS = ("data", "serve")

TARGETS: Mapping[str, Target] = {target.name: target for target in (FASTAPI, RAY)}


def ray_requirement(version: str | None, parts: Sequence[str]) -> str:
    """Return what to lock of Ray, as ``ray[default,serve]==2.60.0``."""
    extras = ",".join(["default", *sorted(parts)])
    return f"ray[{extras}]{f'=={version}' if version else f'>={OLDEST_RAY}'}"


def check_ray(target: Target, version: str | None, parts: Sequence[str]) -> None:
    """Refuse what no image can have of Ray.

    Raises
    ------
    OptionError
        Naming the option and the value.
    """
    if not target.ray and (version or parts):
        name = "ray-version" if version else "with"
        raise OptionError(f"{name}: an image for {target.name} has no Ray", hint="add --target ray")
    for part in parts:
        if part not in RAY_PARTS:
            raise OptionError(
                f"with: {part!r} is no part of Ray that an image can have",
                hint=f"one of: {', '.join(RAY_PARTS)}",
            )
    if version is not None and not _is_ray(version):
        raise OptionError(
            f"ray-version: {version!r} is no version of Ray from {OLDEST_RAY} on",
            hint=f"as {OLDEST_RAY}.0; older ones have no endpoint that says whether they are well",
        )


def _is_ray(text: str) -> bool:
    from packaging.version import InvalidVersion, Version

    try:
        return Version(text) >= Version(OLDEST_RAY)
    except InvalidVersion:
        return False


def find_target(name: str) -> Target:
    """Return a target by name.

    Raises
    ------
    OptionError
        If there is none of that name.
    """
    if target := TARGETS.get(name):
        return target
    close = difflib.get_close_matches(name, TARGETS, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"one of: {', '.join(TARGETS)}"
    raise OptionError(f"target: there is no target {name!r}", hint=hint)
