"""Where an image is: in a folder or file, the Docker engine, or a registry."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar

from mfimage.errors import EngineError, OptionError, ReferenceNotFound
from mfimage.image.find.files import read_file
from mfimage.image.find.info import ImageInfo
from mfimage.image.plan.options import LABEL_PREFIX
from mfimage.image.registry.location import DOCKER_ARCHIVE, Location, parse_location
from mfimage.image.registry.reference import DEFAULT_TAG, Reference, parse_reference
from mfimage.package.platforms import machine_platform
from mfimage.runtime.layout import FUNCTION, SBOM

if TYPE_CHECKING:
    from mfimage.image.oci.images import StoredImage

_SBOM_PATH = f"{FUNCTION}/{SBOM}"
# Of a last layer, which describes what is in an image, that is read to describe it.
LARGEST_LAYER = 32 << 20


@dataclass(frozen=True, kw_only=True)
class FoundLayer:
    """One layer."""

    digest: str | None  # of the compressed layer; an engine does not report it
    size: int  # bytes: compressed in a registry, unpacked in an engine
    instruction: str  # according to the history


@dataclass(frozen=True, kw_only=True)
class FoundImage:
    """An image, and where it is."""

    name: str
    place: Place
    info: ImageInfo
    layers: tuple[FoundLayer, ...] = ()  # lowest first
    # The pinned reference in a registry, or the folder or file; None in an engine.
    source: Reference | Location | None = None
    digest: str | None = None  # of its manifest; `index` is that of the index that lists it
    index: str | None = None
    platforms: tuple[str, ...] = ()  # all that the index, folder or file has

    def open(self, platform: str | None = None) -> AbstractContextManager[StoredImage]:
        """Yield the image with layers that can be read; for another platform if one is given."""
        return self.place.open(self, platform or self.platform)

    def sbom(self) -> bytes | None:
        """Return the SBOM that is attached to the image or inside it."""
        return self.place.read_sbom(self)

    @property
    def platform(self) -> str:
        """The platform as ``os/architecture``."""
        return f"{self.info.os}/{self.info.architecture}"

    @property
    def has_labels(self) -> bool:
        """Whether mfimage built it."""
        return f"{LABEL_PREFIX}version" in self.info.labels


class Place(ABC):
    """Where images are."""

    name: ClassVar[str]

    @abstractmethod
    def find(self, name: str, platform: str | None) -> FoundImage | None:
        """Return an image; None if an image in this place cannot have that name."""

    def open(self, image: FoundImage, platform: str) -> AbstractContextManager[StoredImage]:
        """Yield an image with layers that can be read."""
        from mfimage.image.oci.base import read_image

        assert image.source is not None
        return read_image(image.source, platform)

    def read_sbom(self, image: FoundImage) -> bytes | None:
        """Return an image's SBOM."""
        with image.open() as stored:
            return sbom_of(stored)


class _Files(Place):
    """``oci:DIR``, ``oci-archive:FILE`` and ``docker-archive:FILE``."""

    name = "files"

    def find(self, name: str, platform: str | None) -> FoundImage | None:
        from mfimage.image.oci.base import read_image
        from mfimage.image.oci.layout import platforms_of

        location = parse_location(name, field="image")
        if location is None:
            return None
        platforms = platforms_of(location)
        with read_image(location, _choose(platforms, platform)) as stored:
            return _found(name, self, location, stored, platforms)


class _Engine(Place):
    name = "engine"

    def find(self, name: str, platform: str | None) -> FoundImage | None:
        from mfimage.image.docker.engine import Engine

        if parse_location(name, field="image"):
            return None
        with Engine.connect() as engine:
            info = engine.inspect(name)
        if info is None or platform not in (None, f"{info.os}/{info.architecture}"):
            raise ReferenceNotFound("not in the Docker engine")
        layers = tuple(
            FoundLayer(digest=None, size=entry.size, instruction=entry.created_by)
            for entry in info.history
            if entry.size
        )
        digest = next((each.partition("@")[2] for each in info.repo_digests), None)
        return FoundImage(name=name, place=self, info=info, layers=layers, digest=digest)

    @contextmanager
    def open(self, image: FoundImage, platform: str) -> Iterator[StoredImage]:
        from mfimage.image.docker.engine import Engine
        from mfimage.image.oci.base import read_image

        with TemporaryDirectory(prefix="mfimage-") as folder:
            path = Path(folder) / "image.tar"
            with Engine.connect() as engine, path.open("wb") as file:
                file.writelines(engine.save(image.name))
            with read_image(Location(kind=DOCKER_ARCHIVE, path=path), platform) as stored:
                yield stored

    def read_sbom(self, image: FoundImage) -> bytes | None:
        from mfimage.image.docker.engine import Engine

        if not image.has_labels:
            return None
        with Engine.connect() as engine:
            return engine.read_file(image.info.id, _SBOM_PATH)


class _Registry(Place):
    """The registry that a reference names; a few kilobytes are read."""

    name = "registry"

    def find(self, name: str, platform: str | None) -> FoundImage | None:
        from mfimage.image.oci.base import read_image
        from mfimage.image.registry.client import open_registry, repository_of

        if parse_location(name, field="image") or not may_be_pulled(name):
            return None
        reference = parse_reference(name)
        with closing(open_registry(reference)) as client:
            wanted = reference.digest or reference.tag or DEFAULT_TAG
            manifest = client.manifest(repository_of(reference), wanted)
        if manifest is None:
            raise ReferenceNotFound(f"not in the registry {client.host}")
        platforms = _platforms(json.loads(manifest[1]))
        pinned = reference.with_digest(manifest[0].digest)
        with read_image(pinned, _choose(platforms, platform)) as stored:
            return _found(name, self, pinned, stored, platforms)

    def read_sbom(self, image: FoundImage) -> bytes | None:
        from mfimage.image.sbom.attach import attached_sbom

        assert isinstance(image.source, Reference)
        return attached_sbom(image.source, image.digest or "") or super().read_sbom(image)


FILES, ENGINE, REGISTRY = _Files(), _Engine(), _Registry()
EVERYWHERE = (FILES, ENGINE, REGISTRY)


def may_be_pulled(name: str) -> bool:
    """Return whether a registry is asked for an image that is nowhere else."""
    # A bare name would be one of Docker Hub's official images, never a function's.
    try:
        return "/" in parse_reference(name).name
    except OptionError:
        return False  # an ID


def find_image(
    name: str, *, platform: str | None = None, places: Sequence[Place] = EVERYWHERE
) -> FoundImage:
    """Find an image in the first place that has it; ``ReferenceNotFound`` says why for each."""
    reasons = []
    for place in places:
        try:
            if image := place.find(name, platform):
                return image
        except (EngineError, ReferenceNotFound) as error:
            reasons.append(error.message)
    why = f": {'; '.join(reasons)}" if reasons else ""
    raise ReferenceNotFound(
        f"no image {name!r}{why}",
        hint="name an image in a registry in full, as registry.example.com/team/name:tag, one in "
        "a folder as oci:DIR; a function's reference ends in function.json",
    )


def sbom_of(stored: StoredImage) -> bytes | None:
    """Return the SBOM in an image's last layer, which is fetched if it is small."""
    labels = (stored.config.get("config") or {}).get("Labels") or {}
    if f"{LABEL_PREFIX}version" not in labels or not stored.layers:
        return None
    last = stored.layers[-1]
    return read_file(last, _SBOM_PATH) if last.size <= LARGEST_LAYER else None


def _found(
    name: str,
    place: Place,
    source: Reference | Location,
    stored: StoredImage,
    platforms: tuple[str, ...],
) -> FoundImage:
    descriptors = [layer.descriptor for layer in stored.layers]
    # A history is optional, and may be short.
    made = [
        entry.get("created_by") or entry.get("comment") or ""
        for entry in stored.config.get("history") or ()
        if not entry.get("empty_layer")
    ]
    made = [""] * (len(descriptors) - len(made)) + made[: len(descriptors)]
    return FoundImage(
        name=name,
        place=place,
        source=source,
        info=ImageInfo.from_config(stored.raw_config, [each.size for each in descriptors]),
        layers=tuple(
            FoundLayer(digest=each.digest, size=each.size, instruction=instruction)
            for each, instruction in zip(descriptors, made, strict=True)
        ),
        digest=stored.digest,
        index=source.digest if source.digest != stored.digest else None,
        platforms=platforms,
    )


def _platforms(document: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the platforms of an index; attestations have none."""
    found = [each.get("platform") or {} for each in document.get("manifests", ())]
    names = [f"{each.get('os')}/{each.get('architecture')}" for each in found]
    return tuple(name for name in names if "unknown" not in name and "None" not in name)


def _choose(platforms: Sequence[str], platform: str | None) -> str:
    if platform is None:
        usual = machine_platform()
        return usual if usual in platforms or not platforms else platforms[0]
    if platforms and platform not in platforms:
        raise ReferenceNotFound(f"there are images for {', '.join(platforms)}, not for {platform}")
    return platform
