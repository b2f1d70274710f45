"""The builder that needs no engine: it makes the layers, and speaks formats and registries."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from mfimage.errors import OptionError
from mfimage.image.builder import OCI, BuildEvent, BuiltImage, BuiltLayer, OnEvent
from mfimage.image.find.info import ImageInfo
from mfimage.image.find.seen import info_of
from mfimage.image.oci.base import Images
from mfimage.image.oci.base_python import BasePython, environment_of, find_python
from mfimage.image.oci.cache import LayerCache
from mfimage.image.oci.compression import decompressed
from mfimage.image.oci.config import Composed, NewLayer, compose
from mfimage.image.oci.images import StoredImage
from mfimage.image.oci.known import Known, content_tag, find_known, image_key
from mfimage.image.oci.layers import PlannedLayer, image_epoch, planned_layers
from mfimage.image.oci.outputs import docker_archive, write_images
from mfimage.image.oci.pushing import Push, by_repository
from mfimage.image.oci.shared_cache import SharedCache
from mfimage.image.plan.base import BaseImage
from mfimage.image.plan.plan import ImagePlan
from mfimage.image.registry.client import RegistryClient
from mfimage.image.registry.location import Location
from mfimage.image.registry.reference import Reference

if TYPE_CHECKING:
    from mfimage.image.plan.layers import BlobPath

_CHUNK = 1 << 20


class OciBuilder:
    """Builds images on this machine alone.

    Parameters
    ----------
    compression : str
        Of layers: ``gzip`` or ``zstd``.
    compiled : bool
        Compile the distributions' Python files.
    fresh : bool
        Make every layer anew.
    secrets : mapping of str to bytes
        Credentials for the dependency step.
    on_event : callable
        Told of every layer.
    cache_from : sequence of Reference
        Where layers of other machines are.
    cache_to : Reference, optional
        Where `export` puts layers for others.
    """

    name = OCI

    def __init__(
        self,
        *,
        compression: str,
        compiled: bool,
        fresh: bool,
        secrets: Mapping[str, bytes],
        on_event: OnEvent,
        cache_from: Sequence[Reference] = (),
        cache_to: Reference | None = None,
    ) -> None:
        self._layers = LayerCache(compression, fresh=fresh)
        self._images = Images(self._layers)
        self._cache_to = cache_to
        self._shared = SharedCache(self._layers, self._images, sources=cache_from)
        self._compiled = compiled
        self._secrets = secrets
        self._on_event = on_event
        self._epoch = image_epoch()
        self._bases: dict[tuple[str, str], tuple[StoredImage, BasePython]] = {}
        self._composed: dict[str, Composed] = {}
        self._known: dict[str, Known] = {}  # by the digest of the first image
        self._keys: dict[str, str] = {}  # by the image's digest

    def base(self, source: Reference | Location, platform: str) -> BaseImage:
        """Read a base's manifest and configuration."""
        image = self._images.read(source, platform)
        python = find_python(image, str(source))
        self._bases[str(source), platform] = image, python
        settings = image.config.get("config") or {}
        return BaseImage(
            reference=source, python=python.version, digest=image.digest, platform=image.platform,
            env=environment_of(image), labels=settings.get("Labels") or {},
        )  # fmt: skip

    def find(
        self, plans: Sequence[ImagePlan], tags: Sequence[Reference], blob_path: BlobPath
    ) -> tuple[BuiltImage, ...] | None:
        """Look the content-addressed tag up in each repository that is pushed to."""
        parts = [self._parts(plan, blob_path) for plan in plans]
        keys = [self._key(plan, *part) for plan, part in zip(plans, parts, strict=True)]
        found: Known | None = None
        for (_, repository), group in by_repository(tags).items():
            counts = [len(base.layers) + len(layers) for base, layers in parts]
            found = find_known(
                self._images.client(group[0]), repository, content_tag(keys), plans, counts
            )
            if found is None:
                return None
        if found is None:
            return None
        images = tuple(
            found.built(plan, base, layers)
            for plan, (base, layers) in zip(plans, parts, strict=True)
        )
        self._known[images[0].digest or ""] = found
        return images

    def build(self, plan: ImagePlan, blob_path: BlobPath) -> BuiltImage:
        """Make what layers are missing, and put the image together."""
        base, layers = self._parts(plan, blob_path)
        timings: dict[str, float] = {}
        new: list[NewLayer] = []
        told: list[BuiltLayer] = [
            BuiltLayer(
                name="base", diff_id=layer.diff_id, digest=layer.descriptor.digest,
                size=layer.descriptor.size, cached=True, reason=str(plan.base.pinned),
            )
            for layer in base.layers
        ]  # fmt: skip
        for planned in layers:
            start = time.perf_counter()
            self._tell("started", planned.name)
            layer, cached = self._shared.layer(planned)
            seconds = time.perf_counter() - start
            self._tell("cached" if cached else "done", planned.name, seconds)
            timings[planned.name] = seconds
            new.append(NewLayer(name=planned.name, reason=planned.reason, layer=layer))
            told.append(
                BuiltLayer(
                    name=planned.name, diff_id=layer.diff_id, digest=layer.descriptor.digest,
                    size=layer.descriptor.size, cached=cached, reason=planned.reason,
                    shared=layer.source is not None,
                )
            )  # fmt: skip
        composed = compose(plan, base, new, epoch=self._epoch)
        self._composed[composed.digest] = composed
        self._keys[composed.digest] = self._key(plan, base, layers)
        return BuiltImage(
            id=composed.id, digest=composed.digest, plan=plan, layers=tuple(told),
            size=sum(layer.size for layer in told), timings=timings,
        )  # fmt: skip

    def _parts(
        self, plan: ImagePlan, blob_path: BlobPath
    ) -> tuple[StoredImage, list[PlannedLayer]]:
        if plan.system_packages:
            raise OptionError(
                f"apt: {', '.join(plan.system_packages)}: system packages need a container to "
                "install them in, which the oci builder does not have",
                hint="use --builder docker, or a --base-image that has them",
            )
        base, python = self._bases[str(plan.base.reference), plan.platform]
        layers = planned_layers(
            plan, blob_path, python,
            epoch=self._epoch, compiled=self._compiled, secrets=self._secrets,
        )  # fmt: skip
        return base, layers

    def info(self, image: BuiltImage) -> ImageInfo:
        """Read the configuration that was put together."""
        composed = self._composed[image.digest or ""]
        return info_of(json.loads(composed.config), [layer.size for layer in image.layers])

    def layer(self, image: BuiltImage, name: str) -> Iterator[bytes]:
        """Unpack a layer of the cache."""
        layers = self._composed[image.digest or ""].layers
        for told, layer in zip(image.layers, layers, strict=True):
            if told.name == name:
                with layer.open() as file, decompressed(file) as tar:
                    while chunk := tar.read(1 << 20):
                        yield chunk

    def write(
        self, images: Sequence[BuiltImage], output: Location | None, tags: Sequence[Reference]
    ) -> str:
        """Write images to a folder, a file, or the Docker engine."""
        composed = [self._composed[image.digest or ""] for image in images]
        start = time.perf_counter()
        where = str(output) if output else "docker"
        self._tell("started", f"write {where}")
        if output is not None:
            write_images(composed, output, tags)
        else:
            from mfimage.image.docker.engine import Engine

            with Engine.connect() as engine:
                engine.load(docker_archive(composed, tags))
        self._tell("done", f"write {where}", time.perf_counter() - start)
        return str(output) if output else str(next(iter(tags), composed[0].id))

    def push(self, images: Sequence[BuiltImage], tags: Sequence[Reference]) -> tuple[str, ...]:
        """Push images; the content-addressed tag first, the others in the end."""
        known = self._known.get(images[0].digest or "")
        digests: dict[Reference, str] = {}
        done: dict[str, list[str]] = {}
        for (_, repository), group in by_repository(tags).items():
            client = self._images.client(group[0])
            names = [tag.tag or "latest" for tag in group]
            if known:
                digest = known.retag(client, repository, names)
            else:
                digest = self._push(client, repository, images, names, done.get(client.host, []))
                done.setdefault(client.host, []).append(repository)
            digests |= {tag: f"{tag.name}@{digest}" for tag in group}
        return tuple(digests[tag] for tag in tags)

    def _push(
        self,
        client: RegistryClient,
        repository: str,
        images: Sequence[BuiltImage],
        tags: Sequence[str],
        also_in: Sequence[str],
    ) -> str:
        composed = [self._composed[image.digest or ""] for image in images]
        tag = content_tag([self._keys[image.digest or ""] for image in images])
        return Push(client, repository, self._on_event).run(composed, [tag, *tags], also_in=also_in)

    def export(self, images: Sequence[BuiltImage], tags: Sequence[Reference]) -> None:
        """Push the layers to where they are shared; not of images that were not built."""
        if self._cache_to and not all(image.cached for image in images):
            self._shared.export(self._cache_to, tags)

    def _key(self, plan: ImagePlan, base: StoredImage, layers: Sequence[PlannedLayer]) -> str:
        keys = [self._layers.key(layer.inputs) for layer in layers]
        return image_key(plan, base, keys, epoch=self._epoch)

    def _tell(self, kind: str, step: str, seconds: float | None = None) -> None:
        self._on_event(BuildEvent(kind=kind, step=step, seconds=seconds))  # type: ignore[arg-type]

    def close(self) -> None:
        """Let go of registries and cached layers."""
        self._images.close()
        self._layers.close()
