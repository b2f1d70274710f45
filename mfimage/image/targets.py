"""The interfaces an image can expose, each as data."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field

from mfimage.errors import OptionError

# What the files of mfimage that ship inside an image import: the same in every target.
RUNTIME_REQUIREMENTS = ("orjson>=3.10", "pydantic>=2.10")

# Equal to the extra `serve` in pyproject.toml; a test holds that.
SERVE_REQUIREMENTS = (
    "fastapi>=0.115",
    "uvicorn>=0.34",
    "httptools>=0.6.3",
    "uvloop>=0.21; sys_platform != 'win32'",
    "prometheus-client>=0.21",
)


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
    """

    name: str
    template: str
    requirements: tuple[str, ...]
    cmd: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    ports: tuple[int, ...] = ()


FASTAPI = Target(
    name="fastapi",
    template="fastapi.Dockerfile.j2",
    requirements=RUNTIME_REQUIREMENTS + SERVE_REQUIREMENTS,
    cmd=("serve",),
    ports=(8000,),
)

TARGETS: Mapping[str, Target] = {target.name: target for target in (FASTAPI,)}


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
