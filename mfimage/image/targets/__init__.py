"""The interfaces that an image can have; to add one, write its module and list its class here.

`find_target` is the way in. The first in the table is the default.
"""

from __future__ import annotations

from collections.abc import Mapping

from mfimage.errors import OptionError, suggest
from mfimage.image.targets.fastapi import FastapiTarget
from mfimage.image.targets.ray import RayTarget
from mfimage.image.targets.step import StepTarget
from mfimage.image.targets.target import Target

_ALL: tuple[type[Target], ...] = (FastapiTarget, RayTarget, StepTarget)
TARGETS: Mapping[str, type[Target]] = {each.name: each for each in _ALL}
DEFAULT_TARGET = next(iter(TARGETS))


def find_target(name: str) -> type[Target]:
    """Return a target by name."""
    if target := TARGETS.get(name):
        return target
    raise OptionError(f"target: unknown target {name!r}", hint=suggest(name, TARGETS))
