"""The image to build on, and whether it fits the function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mfimage.errors import OptionError
from mfimage.image.plan.options import parse_platform
from mfimage.image.plan.subject import FUNCTION, STEP, Subject
from mfimage.image.registry.location import Location
from mfimage.image.registry.reference import Reference, parse_reference

_MADE = {FUNCTION: "was bound with", STEP: "needs"}


@dataclass(frozen=True, kw_only=True)
class BaseImage:
    """The image to build on, as an engine or a registry describes it."""

    reference: Reference | Location  # its name, or the folder or file that holds it
    python: str  # as 3.11 or 3.11.7
    digest: str | None = None  # in a registry or a layout
    # The engine's ID of an image without a digest: it was built there, or loaded.
    id: str | None = None
    platform: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def known_digest(self) -> str | None:
        """Its digest, from the reference or from where it was found."""
        return self.reference.digest or self.digest

    @property
    def pinned(self) -> Reference | Location:
        """The reference with its digest, where known."""
        if isinstance(self.reference, Location) or self.known_digest is None:
            return self.reference
        return self.reference.with_digest(self.known_digest)


def default_base(python: str) -> Reference:
    """Return the base image for a minor version of Python when none is asked for."""
    return parse_reference(f"python:{python}-slim")


def check_base(subject: Subject, base: BaseImage, platform: str) -> None:
    """Refuse a base with another Python or platform than the image's."""
    wanted = subject.environment.python_minor
    found = ".".join(base.python.split(".")[:2])
    if found != wanted:
        raise OptionError(
            f"base-image: {base.reference} has Python {found}, "
            f"but {subject.name} {_MADE[subject.kind]} Python {wanted}",
            hint=f"use a base with Python {wanted}, as --base-image {default_base(wanted)}",
        )
    if base.platform and parse_platform(base.platform, field="base-image") != platform:
        raise OptionError(
            f"base-image: {base.reference} is for {base.platform}, the image for {platform}",
            hint=f"pull it for that platform: docker pull --platform {platform} {base.reference}",
        )
