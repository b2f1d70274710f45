"""What a manifest needs to know of an image for Ray, from its labels or from the user."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mfimage.errors import EngineError, OptionError
from mfimage.image.plan.labels import (
    FUNCTION_DIGEST,
    FUNCTION_NAME,
    PYTHON_VERSION,
    RAY_PARTS,
    RAY_VERSION,
    TARGET,
)
from mfimage.image.registry.reference import Reference, parse_reference
from mfimage.manifests.kuberay.parts import RayImage

if TYPE_CHECKING:
    from mfimage.image.find.info import ImageInfo

_BUILD = "mfimage build REFERENCE --target ray -t NAME --push"


@dataclass(frozen=True, kw_only=True)
class Known:
    """What the user says of an image that cannot be read here; else it must agree with it.

    Attributes
    ----------
    ray_version, function, function_digest : str or None
        The version of Ray, and the function's name and digest.
    """

    ray_version: str | None = None
    function: str | None = None
    function_digest: str | None = None


def read_ray_image(name: str, known: Known, *, say: Callable[[str], None]) -> RayImage:
    """Ask the Docker engine for an image; do with what is known where it has no answer.

    Parameters
    ----------
    name : str
        As nodes shall pull it.
    known : Known
        What the user says.
    say : callable
        Is told what will be missing from the manifest.

    Raises
    ------
    OptionError
        If the image is for another target, or does not say enough.
    """
    from mfimage.image.docker.engine import Engine

    reference = parse_reference(name)
    try:
        with Engine.connect() as engine:
            info = engine.inspect(name)
        why = "the Docker engine does not have it"
    except EngineError as error:
        info, why = None, error.message
    return ray_image(reference, info, known, why=why, say=say)


def ray_image(
    reference: Reference,
    info: ImageInfo | None,
    known: Known,
    *,
    why: str,
    say: Callable[[str], None],
) -> RayImage:
    """Put together what labels and user say of an image.

    Parameters
    ----------
    reference : Reference
        Its name.
    info : ImageInfo or None
        What the engine has.
    known : Known
        What the user says.
    why : str
        Why there is no ``info``.
    say : callable
        Is told what will be missing from the manifest.

    Raises
    ------
    OptionError
        If it is for another target, contradicts what was said, or does not say enough.
    """
    labels = dict(info.labels) if info is not None else {}
    target = labels.get(TARGET)
    if target not in (None, "ray"):
        raise OptionError(
            f"image: {reference} is for {target}, not for Ray", hint=f"build one: {_BUILD}"
        )
    if info is not None and target is None:
        why = "it has no labels of mfimage"
    found = _Facts(reference, labels, why)
    ray_version = found.need("ray-version", RAY_VERSION, known.ray_version)
    function = found.need("function", FUNCTION_NAME, known.function)
    digest = found.get("function-digest", FUNCTION_DIGEST, known.function_digest)
    pinned = _pin(reference, info)
    if digest is None:
        say(f"{reference} does not say which function it has: no placement resource")
    if pinned.digest is None:
        say(
            f"no digest is known of {reference}: the manifest has its tag, which may come to "
            "mean another image; push it from here, or pull it"
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


@dataclass(frozen=True)
class _Facts:
    reference: Reference
    labels: dict[str, str]
    why: str

    def get(self, option: str, label: str, given: str | None) -> str | None:
        found = self.labels.get(label)
        if given is not None and found not in (None, given):
            raise OptionError(
                f"{option}: {given!r} is not what {self.reference} has, which is {found!r}",
                hint=f"leave out --{option}",
            )
        return given if found is None else found

    def need(self, option: str, label: str, given: str | None) -> str:
        value = self.get(option, label, given)
        if value is None:
            raise OptionError(
                f"{option}: not known of {self.reference}: {self.why}",
                hint=f"docker pull {self.reference}, or give --{option}",
            )
        return value


def _pin(reference: Reference, info: ImageInfo | None) -> Reference:
    if reference.digest or info is None:
        return reference
    for text in info.repo_digests:
        if not text.startswith("<none>"):
            found = parse_reference(text)
            if _repository(found) == _repository(reference) and found.digest:
                return reference.with_digest(found.digest)
    return reference


def _repository(reference: Reference) -> str:
    return dataclasses.replace(reference, tag=None, digest=None).canonical
