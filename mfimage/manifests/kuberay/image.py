"""An image for Ray, described by its labels or by the user."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mfimage.errors import OptionError
from mfimage.image.find.places import ENGINE, REGISTRY, Place
from mfimage.image.plan.labels import FUNCTION_DIGEST, FUNCTION_NAME
from mfimage.image.targets.ray import PYTHON_VERSION, RAY_PARTS, RAY_VERSION, RayTarget
from mfimage.manifests.checks import check_function
from mfimage.manifests.image import FUNCTIONS_COUNT, locate
from mfimage.manifests.kuberay.options import StatedRay

# From 2.53 on, one HTTP request shows whether a node is healthy; before, KubeRay's probes run wget.
_OLDEST_RAY = (2, 53)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_RAY_VERSION = re.compile(r"(\d+)\.(\d+)(?:\.\d+)?[A-Za-z0-9.+-]*")


@dataclass(frozen=True, kw_only=True)
class RayImage:
    """An image for Ray."""

    reference: str  # what nodes pull; with the digest if it is known
    ray_version: str  # as 2.60.0; both versions to the patch
    function: str
    python_version: str | None = None
    digest: str | None = None  # the function's, which names the placement resource
    parts: tuple[str, ...] | None = None  # Ray's extras in the image, such as default and serve
    several: bool = False  # whether the function is one of several in the image

    def __post_init__(self) -> None:
        found = _RAY_VERSION.fullmatch(self.ray_version)
        if not found or (int(found[1]), int(found[2])) < _OLDEST_RAY:
            oldest = ".".join(map(str, _OLDEST_RAY))
            raise OptionError(
                f"ray-version: {self.ray_version!r} is not a version of Ray from {oldest} on",
                hint=f"give the version in the image, such as {oldest}.0",
            )
        check_function(self.function)
        if self.digest is not None and not _DIGEST.fullmatch(self.digest):
            raise OptionError(
                f"function-digest: {self.digest!r} is not a digest",
                hint="sha256: and 64 hex digits",
            )

    @property
    def pinned(self) -> bool:
        """Whether the reference has a digest, so that it always means the same image."""
        return "@" in self.reference


def read_ray_image(
    name: str,
    stated: StatedRay,
    *,
    say: Callable[[str], None],
    places: Sequence[Place] = (ENGINE, REGISTRY),
) -> RayImage:
    """Describe an image by its labels; if it is not found, as stated."""
    located = locate(name, stated, say=say, places=places)
    located.check_target(RayTarget.name, "Ray")
    ray_version = located.agreed("ray-version", RAY_VERSION, stated.ray_version)
    function = located.agreed("function", FUNCTION_NAME, stated.function)
    digest = located.agreed("function-digest", FUNCTION_DIGEST, stated.function_digest)
    if ray_version is None or function is None:
        raise located.unknown("function" if ray_version else "ray-version")
    if digest is None:
        say(f"the function in {located.reference} is not known: no placement resource")
    parts = located.labels.get(RAY_PARTS)
    return RayImage(
        reference=str(located.reference),
        ray_version=ray_version,
        python_version=located.labels.get(PYTHON_VERSION),
        function=function,
        digest=digest,
        parts=None if parts is None else tuple(parts.split(",")),
        several=FUNCTIONS_COUNT in located.labels,
    )
