"""The image to build on, and whether it fits the function."""

from __future__ import annotations

from dataclasses import dataclass

from mfimage.errors import OptionError
from mfimage.image.options import parse_platform
from mfimage.image.reference import Reference, parse_reference
from mfimage.package.spec import FunctionSpec


@dataclass(frozen=True, kw_only=True)
class BaseImage:
    """The image to build on, as an engine or registry knows it.

    Attributes
    ----------
    reference : Reference
        Its name.
    python : str
        Version of its Python, as ``3.11`` or ``3.11.7``.
    digest : str or None
        Its digest, where it came from a registry.
    platform : str or None
        As ``linux/amd64``, where known.
    """

    reference: Reference
    python: str
    digest: str | None = None
    platform: str | None = None

    @property
    def pinned(self) -> Reference:
        """The reference with its digest, where one is known."""
        digest = self.reference.digest or self.digest
        return self.reference.with_digest(digest) if digest else self.reference


def default_base(spec: FunctionSpec) -> Reference:
    """Return the base image for a function's Python, when none is asked for."""
    return parse_reference(f"python:{spec.environment.python_minor}-slim")


def check_base(spec: FunctionSpec, base: BaseImage, platform: str) -> None:
    """Refuse a base whose Python or platform is not the image's.

    Raises
    ------
    OptionError
        Naming both.
    """
    wanted = spec.environment.python_minor
    found = ".".join(base.python.split(".")[:2])
    if found != wanted:
        raise OptionError(
            f"base-image: {base.reference} has Python {found}, "
            f"but {spec.name} was bound with Python {wanted}",
            hint=f"use a base with Python {wanted}, as --base-image {default_base(spec)}",
        )
    if base.platform and parse_platform(base.platform, field="base-image") != platform:
        raise OptionError(
            f"base-image: {base.reference} is for {base.platform}, the image for {platform}",
            hint=f"pull it for that platform: docker pull --platform {platform} {base.reference}",
        )
