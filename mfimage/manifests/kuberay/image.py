"""An image for Ray, described by its labels or by the user."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mfimage.errors import MfimageError, OptionError
from mfimage.image.find.places import ENGINE, REGISTRY, FoundImage, Place, find_image
from mfimage.image.plan.labels import FUNCTION_DIGEST, FUNCTION_NAME, TARGET
from mfimage.image.registry.reference import Reference, parse_reference
from mfimage.image.targets.ray import PYTHON_VERSION, RAY_PARTS, RAY_VERSION, RayTarget
from mfimage.manifests.kuberay.options import Stated
from mfimage.package.spec import NAME

# From 2.53 on, one HTTP request shows whether a node is healthy; before, KubeRay's probes run wget.
_OLDEST_RAY = (2, 53)
_BUILD = "mfimage build REFERENCE --target ray -t NAME --push"
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

    def __post_init__(self) -> None:
        found = _RAY_VERSION.fullmatch(self.ray_version)
        if not found or (int(found[1]), int(found[2])) < _OLDEST_RAY:
            oldest = ".".join(map(str, _OLDEST_RAY))
            raise OptionError(
                f"ray-version: {self.ray_version!r} is not a version of Ray from {oldest} on",
                hint=f"give the version in the image, such as {oldest}.0",
            )
        if not NAME.fullmatch(self.function):
            raise OptionError(
                f"function: {self.function!r} cannot be the name of a function",
                hint="give the name that it was bound with",
            )
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
    stated: Stated,
    *,
    say: Callable[[str], None],
    places: Sequence[Place] = (ENGINE, REGISTRY),
) -> RayImage:
    """Describe an image by its labels; if it is not found, as stated."""
    reference = parse_reference(name)
    image, why = None, f"{name} has no labels of mfimage"
    try:
        image = find_image(name, places=places)
    except MfimageError as error:
        why = error.message
    labels = image.info.labels if image else {}
    target = labels.get(TARGET)
    if target not in (None, RayTarget.name):
        raise OptionError(
            f"image: {reference} is for {target}, not for Ray", hint=f"build one: {_BUILD}"
        )
    ray_version = _agreed("ray-version", labels, RAY_VERSION, stated.ray_version)
    function = _agreed("function", labels, FUNCTION_NAME, stated.function)
    digest = _agreed("function-digest", labels, FUNCTION_DIGEST, stated.function_digest)
    if ray_version is None or function is None:
        option = "function" if ray_version else "ray-version"
        raise OptionError(
            f"{option}: not known: {why}",
            hint=f"give --{option}, or let the image be found: docker login, docker pull",
        )
    pinned = _pin(reference, image)
    if digest is None:
        say(f"the function in {reference} is not known: no placement resource")
    if pinned.digest is None:
        say(
            f"the digest of {reference} is not known: the manifest has its tag, which may move to "
            "another image; push the image, or pull it"
        )
    parts = labels.get(RAY_PARTS)
    return RayImage(
        reference=str(pinned),
        ray_version=ray_version,
        python_version=labels.get(PYTHON_VERSION),
        function=function,
        digest=digest,
        parts=None if parts is None else tuple(parts.split(",")),
    )


def _agreed(option: str, labels: Mapping[str, str], label: str, stated: str | None) -> str | None:
    found = labels.get(label)
    if None not in (found, stated) and found != stated:
        raise OptionError(
            f"{option}: {stated!r} is not what the image has, which is {found!r}",
            hint=f"leave out --{option}",
        )
    return stated if found is None else found


def _pin(reference: Reference, image: FoundImage | None) -> Reference:
    """Return the reference with the digest under which its own repository has the image."""
    if reference.digest or image is None:
        return reference
    if image.place is REGISTRY:
        digest = image.index or image.digest
        return reference.with_digest(digest) if digest else reference
    for text in image.info.repo_digests:
        if not text.startswith("<none>"):
            found = parse_reference(text)
            if found.digest and _repository(found) == _repository(reference):
                return reference.with_digest(found.digest)
    return reference


def _repository(reference: Reference) -> str:
    return dataclasses.replace(reference, tag=None, digest=None).canonical
