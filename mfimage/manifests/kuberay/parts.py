"""What manifests are made of: the image, the size of pods, where they may run."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from mfimage.errors import OptionError
from mfimage.manifests.kuberay.checks import check_label, check_whole, parse_cpu, parse_memory
from mfimage.package.spec import NAME

# Since then one HTTP request tells whether a node is healthy; before, probes run wget.
OLDEST_RAY = (2, 53)
EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_RAY_VERSION = re.compile(r"(\d+)\.(\d+)(?:\.\d+)?[A-Za-z0-9.+-]*")


@dataclass(frozen=True, kw_only=True)
class RayImage:
    """An image for Ray, as far as manifests need to know it.

    Attributes
    ----------
    reference : str
        What nodes pull; with the digest where it is known.
    ray_version : str
        To the patch, as ``2.60.0``.
    python_version : str or None
        To the patch.
    function : str
        The function's name.
    digest : str or None
        The function's digest; without it there is no placement resource.
    parts : tuple of str or None
        Ray's extras that are in it, as ``default`` and ``serve``; None if it does not say.
    """

    reference: str
    ray_version: str
    function: str
    python_version: str | None = None
    digest: str | None = None
    parts: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        found = _RAY_VERSION.fullmatch(self.ray_version)
        if not found or (int(found[1]), int(found[2])) < OLDEST_RAY:
            oldest = ".".join(map(str, OLDEST_RAY))
            raise OptionError(
                f"ray-version: {self.ray_version!r} is no version of Ray from {oldest} on",
                hint=f"as {oldest}.0, the version that is in the image",
            )
        if not NAME.fullmatch(self.function):
            raise OptionError(
                f"function: {self.function!r} is no name of a function", hint="as it was bound"
            )
        if self.digest is not None and not _DIGEST.fullmatch(self.digest):
            raise OptionError(
                f"function-digest: {self.digest!r} is none", hint="sha256: and 64 hex digits"
            )

    @property
    def pinned(self) -> bool:
        """Whether the reference can only ever mean this image."""
        return "@" in self.reference


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a pod asks for, and may use at most.

    Attributes
    ----------
    cpu, memory : str
        As Kubernetes writes them: ``2`` or ``500m``; ``4Gi``.
    gpus : int
        Whole GPUs.
    """

    cpu: str = "2"
    memory: str = "4Gi"
    gpus: int = 0

    def check(self, pod: str) -> None:
        """Raise an `OptionError` for what is no quantity."""
        parse_cpu(self.cpu, field=f"{pod}-cpu")
        parse_memory(self.memory, field=f"{pod}-memory")
        check_whole(self.gpus, field=f"{pod}-gpus")

    @property
    def ray_cpus(self) -> int:
        """The CPUs that Ray counts on such a pod: KubeRay rounds up."""
        return math.ceil(parse_cpu(self.cpu, field="cpu"))


@dataclass(frozen=True, kw_only=True)
class SecretRef:
    """A key in a Secret."""

    secret: str
    key: str


@dataclass(frozen=True, kw_only=True)
class Toleration:
    """A taint of nodes that pods may run on; any value of it if ``value`` is None."""

    key: str
    value: str | None = None
    effect: str | None = None

    def check(self) -> None:
        """Raise an `OptionError` for what is no taint."""
        check_label(self.key, self.value or "", field="toleration")
        if self.effect is not None and self.effect not in EFFECTS:
            raise OptionError(
                f"toleration: {self.key}: {self.effect!r} is no effect", hint=", ".join(EFFECTS)
            )


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How many: at the start, and between which bounds."""

    replicas: int
    least: int
    most: int


def check_order(scale: Scale, *, prefix: str) -> None:
    """Refuse bounds that exclude each other, or the number between them.

    Raises
    ------
    OptionError
        Naming both.
    """
    low, high = f"{prefix}min-replicas", f"{prefix}max-replicas"
    if scale.least > scale.most:
        raise OptionError(
            f"{low}: {scale.least} is more than {high} {scale.most}", hint=f"raise --{high}"
        )
    if not scale.least <= scale.replicas <= scale.most:
        more = scale.replicas > scale.most
        bound = f"more than {high} {scale.most}" if more else f"less than {low} {scale.least}"
        raise OptionError(
            f"{prefix}replicas: {scale.replicas} is {bound}",
            hint=f"change --{prefix}replicas or --{high if more else low}",
        )
