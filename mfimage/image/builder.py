"""The seam between a plan and what makes an image of it: ``docker build``, or mfimage itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from mfimage.image.find.info import ImageInfo
from mfimage.image.plan.base import BaseImage
from mfimage.image.plan.plan import ImagePlan
from mfimage.image.registry.location import Location
from mfimage.image.registry.reference import Reference

if TYPE_CHECKING:
    from mfimage.image.plan.layers import BlobPath

DOCKER, OCI, AUTO = "docker", "oci", "auto"
Kind = Literal["started", "log", "progress", "cached", "done", "failed"]


@dataclass(frozen=True, kw_only=True)
class BuildEvent:
    """One thing that happened in a build, a pull or a push.

    Attributes
    ----------
    kind : str
        ``started``; ``log`` and ``progress``, any number of them; then one of ``cached``, ``done``
        and ``failed``.
    step : str
        The step's name, such as ``[build 3/7] RUN make``; for a pull or push the layer's short
        digest.
    text : str
        The log line, what progresses, or what failed.
    current, total : int
        Bytes, of a ``progress``; 0 where unknown.
    seconds : float, optional
        How long the step took, when it is over.
    """

    kind: Kind
    step: str
    text: str = ""
    current: int = 0
    total: int = 0
    seconds: float | None = None


OnEvent = Callable[[BuildEvent], None]


@dataclass(frozen=True, kw_only=True)
class BuiltLayer:
    """One layer of an image.

    Attributes
    ----------
    name : str
        ``base``, ``system``, ``dependencies``, ``artifact:<names, with commas>``, ``runtime``,
        ``code``, or ``workdir`` (an empty one that Docker makes).
    diff_id : str
        ``sha256:<hex>`` of the tar.
    digest : str or None
        ``sha256:<hex>`` of what a registry keeps; None where only a push would tell.
    size : int
        Bytes of what a registry keeps; of the unpacked files where only a push would tell.
    cached : bool
        Whether it was there already.
    reason : str
        What decides its content, as ``lock sha256:...``.
    shared : bool
        Whether a cache in a registry had it: then whoever exported it has scanned it.
    """

    name: str
    diff_id: str
    digest: str | None
    size: int
    cached: bool
    reason: str
    shared: bool = False


@dataclass(frozen=True, kw_only=True)
class BuiltImage:
    """An image for one platform.

    Attributes
    ----------
    id : str
        Its configuration's digest, by which an engine knows it.
    digest : str or None
        Its manifest's, by which a registry knows it; None where only a push would tell.
    plan : ImagePlan
        What it was made from: platform, digests of base, lock and function, tags of none.
    layers : tuple of BuiltLayer
        Lowest first.
    size : int
        Bytes, of all layers.
    cached : bool
        Whether it was found in the registry, and nothing was built.
    timings : mapping of str to float
        Seconds by step.
    """

    id: str
    digest: str | None
    plan: ImagePlan
    layers: tuple[BuiltLayer, ...]
    size: int
    cached: bool = False
    timings: Mapping[str, float] = field(default_factory=dict)

    @property
    def platform(self) -> str:
        """As ``linux/amd64``."""
        return self.plan.platform


class Builder(Protocol):
    """Makes images of plans."""

    @property
    def name(self) -> str:
        """``docker`` or ``oci``."""

    def base(self, source: Reference | Location, platform: str) -> BaseImage:
        """Return what there is to know of a base image; nothing but that is fetched."""

    def find(
        self, plans: Sequence[ImagePlan], tags: Sequence[Reference], blob_path: BlobPath
    ) -> tuple[BuiltImage, ...] | None:
        """Return the images of these plans, if each registry of ``tags`` has all of them."""

    def build(self, plan: ImagePlan, blob_path: BlobPath) -> BuiltImage:
        """Make an image."""

    def info(self, image: BuiltImage) -> ImageInfo:
        """Return the configuration of an image that was built: variables, labels, history."""

    def layer(self, image: BuiltImage, name: str) -> Iterator[bytes]:
        """Yield the tar of what an image that was built has in a layer of that name."""

    def write(
        self, images: Sequence[BuiltImage], output: Location | None, tags: Sequence[Reference]
    ) -> str:
        """Put images, one a platform, where they are wanted (None: into the engine).

        Returns what to call them there.
        """

    def push(self, images: Sequence[BuiltImage], tags: Sequence[Reference]) -> tuple[str, ...]:
        """Push images, one a platform, under each tag; return ``repository@digest`` of each tag."""

    def export(self, images: Sequence[BuiltImage], tags: Sequence[Reference]) -> None:
        """Push what later builds elsewhere can use, where that was asked for.

        ``tags`` are those that were pushed.
        """

    def close(self) -> None:
        """Let go of engines and registries."""
