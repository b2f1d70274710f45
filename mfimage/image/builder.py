"""What every builder does, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
    """One thing that happened in a build, a pull or a push."""

    # ``started``; any number of ``log`` and ``progress``; then ``cached``, ``done`` or ``failed``.
    kind: Kind
    step: str  # as ``[build 3/7] RUN make``; for a pull or push the layer's short digest
    text: str = ""  # the log line, what progresses, or what failed
    part: str = ""  # of a step in which several things progress at once
    current: int = 0  # bytes, of a ``progress``; 0 where unknown
    total: int = 0  # also of a step that is over
    seconds: float | None = None  # how long the step took, when it is over
    spared: int = 0  # bytes that were not sent or written, since they were there
    brief: bool = False  # of a step that is over: it is shown while it lasts, and leaves no line


OnEvent = Callable[[BuildEvent], None]


@contextmanager
def lasting(step: str, on_event: OnEvent) -> Iterator[None]:
    """Report a step that is shown while the block lasts, and leaves no line."""
    on_event(BuildEvent(kind="started", step=step))
    try:
        yield
    finally:
        on_event(BuildEvent(kind="done", step=step, brief=True))


@dataclass(frozen=True, kw_only=True)
class BuiltLayer:
    """One layer of an image; one that is in the engine only has no digest."""

    # ``base``, ``system``, ``dependencies``, ``artifact:<names, with commas>``, ``runtime``,
    # ``code``, or ``workdir`` (an empty layer of the docker builder).
    name: str
    diff_id: str
    digest: str | None
    size: int  # bytes of the compressed layer; unpacked if it is in the engine only
    cached: bool
    reason: str  # what its content comes from, as ``lock sha256:...``
    # Whether it is from a cache in a registry: the machine that exported it has scanned it.
    shared: bool = False


@dataclass(frozen=True, kw_only=True)
class BuiltImage:
    """An image for one platform; its digest is None if it is in the engine only."""

    id: str  # digest of its configuration; the engine's name for it
    digest: str | None
    plan: ImagePlan
    layers: tuple[BuiltLayer, ...]  # lowest first
    size: int  # bytes of all layers
    cached: bool = False  # whether the registry had it, so that nothing was built
    timings: Mapping[str, float] = field(default_factory=dict)  # seconds by step

    @property
    def platform(self) -> str:
        """As ``linux/amd64``."""
        return self.plan.platform


class Builder(Protocol):
    """Turns plans into images."""

    @property
    def name(self) -> str:
        """``docker`` or ``oci``."""

    def base(self, source: Reference | Location, platform: str) -> BaseImage:
        """Read a base image's settings."""

    def find(
        self, plans: Sequence[ImagePlan], tags: Sequence[Reference], blob_path: BlobPath
    ) -> tuple[BuiltImage, ...] | None:
        """Return the images of these plans, if the registries of ``tags`` have all of them."""

    def build(self, plan: ImagePlan, blob_path: BlobPath) -> BuiltImage:
        """Make an image."""

    def info(self, image: BuiltImage) -> ImageInfo:
        """Return the configuration of an image that was built."""

    def layer(self, image: BuiltImage, name: str) -> Iterator[bytes]:
        """Yield the tar of a layer of an image that was built."""

    def write(
        self, images: Sequence[BuiltImage], output: Location | None, tags: Sequence[Reference]
    ) -> str:
        """Write images, one for each platform, to ``output``, or to the engine if it is None."""
        # Returns their name there.

    def push(self, images: Sequence[BuiltImage], tags: Sequence[Reference]) -> tuple[str, ...]:
        """Push images, one for each platform; return ``repository@digest`` of each tag."""

    def export(self, images: Sequence[BuiltImage], tags: Sequence[Reference]) -> None:
        """Push the cache for other machines, if one was requested."""
        # ``tags`` are those that were pushed.

    def close(self) -> None:
        """Close connections."""
