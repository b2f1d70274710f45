"""The oci builder: makes layers itself, and writes to engines, registries, folders and files."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from typing import Any

from mfimage.errors import EngineError, OptionError
from mfimage.files import CHUNK, chunks_of
from mfimage.image.builder import OCI, BuildEvent, BuiltImage, BuiltLayer, Kind, OnEvent
from mfimage.image.docker.local import ImageEngine, LocalEngine, connect
from mfimage.image.find.info import ImageInfo
from mfimage.image.oci.base import BasePython, Images, environment_of, find_python
from mfimage.image.oci.cache import LayerCache
from mfimage.image.oci.compression import NONE, decompressed
from mfimage.image.oci.config import Composed, NewLayer, compose
from mfimage.image.oci.images import StoredImage, StoredLayer
from mfimage.image.oci.layers import PlannedLayer, SharedCache, image_epoch, planned_layers
from mfimage.image.oci.libraries import FilesOf, lacking, package_of
from mfimage.image.oci.outputs import Reading, load_into, write_images
from mfimage.image.oci.pushing import (
    Push,
    PushedImages,
    by_repository,
    content_tag,
    find_pushed,
    image_key,
)
from mfimage.image.plan.base import BaseImage
from mfimage.image.plan.labels import LOCK_DIGEST
from mfimage.image.plan.layers import BlobPath, code_files, sbom_file
from mfimage.image.plan.plan import ImagePlan
from mfimage.image.registry.client import RegistryClient
from mfimage.image.registry.location import Location
from mfimage.image.registry.reference import DEFAULT_TAG, Reference


class OciBuilder:
    """Builds images on this machine, without running a container.

    Without compression, for an image that goes into the engine only, no manifest is reported.
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
        pull: bool = False,
        say: Callable[[str], None] = lambda _: None,
        cache_from: Sequence[Reference] = (),
        cache_to: Reference | None = None,
    ) -> None:
        self._layers = LayerCache(compression, fresh=fresh)
        self._images = Images(self._layers)
        self._cache_to = cache_to
        self._shared = SharedCache(self._layers, self._images, sources=cache_from, say=say)
        self._compiled = compiled
        self._pull = pull
        self._secrets = secrets
        self._on_event = on_event
        self._say = say
        self._epoch = image_epoch()
        self._bases: dict[tuple[str, str], tuple[StoredImage, BasePython, FilesOf | None]] = {}
        # By id, since hashing a plan takes long; the plan is held so that its id stays its own.
        self._planned: dict[int, tuple[ImagePlan, StoredImage, list[PlannedLayer]]] = {}
        self._composed: dict[str, _Made] = {}  # by the image's ID
        self._pushed: dict[str, PushedImages] = {}  # by the digest of the first image

    @cached_property
    def engine(self) -> ImageEngine:
        """The Docker engine; raises `EngineError` if none answers."""
        return connect()

    def base(self, source: Reference | Location, platform: str) -> BaseImage:
        """Read a base: the engine's image of that name if there is one, else the registry's."""
        info, files = None, None
        if isinstance(source, Reference) and (info := self._in_engine(source, platform)):
            image = self._images.read_engine(self.engine, info)
            digest = info.digest_of(source)
            if image.whole and isinstance(self.engine, LocalEngine):
                files = partial(self.engine.files, info.id)
            where = f"the Docker engine, image {info.id}"
        else:
            image = self._images.read(source, platform)
            digest, where = image.digest, _place(source)
        python = find_python(image, str(source), files)
        self._bases[str(source), platform] = image, python, files
        self._say(f"base: {source}, from {where}")
        settings = image.config.get("config") or {}
        return BaseImage(
            reference=source, python=python.version, digest=digest, platform=image.platform,
            id=info.id if info and not digest else None,
            env=environment_of(image), labels=settings.get("Labels") or {},
        )  # fmt: skip

    def _in_engine(self, source: Reference, platform: str) -> ImageInfo | None:
        if self._pull:
            return None
        try:
            info = self.engine.inspect(str(source))
        except EngineError:
            return None
        # An image for another platform does not count: `docker build` pulls this one, too.
        fits = info is not None and f"{info.os}/{info.architecture}" == platform
        return info if fits else None

    def find(
        self, plans: Sequence[ImagePlan], tags: Sequence[Reference], blob_path: BlobPath
    ) -> tuple[BuiltImage, ...] | None:
        """Look up the content-addressed tag in each repository that is pushed to."""
        parts = [self._parts(plan, blob_path) for plan in plans]
        keys = [self._key(plan, *part) for plan, part in zip(plans, parts, strict=True)]
        found: PushedImages | None = None
        for (_, repository), group in by_repository(tags).items():
            counts = [len(base.layers) + len(layers) for base, layers in parts]
            found = find_pushed(
                self._images.client(group[0]), repository, content_tag(keys), plans, counts,
                say=self._say,
            )  # fmt: skip
            if found is None:
                return None
        if found is None:
            return None
        images = tuple(
            found.built(plan, base, layers)
            for plan, (base, layers) in zip(plans, parts, strict=True)
        )
        self._pushed[images[0].digest or ""] = found
        return images

    def build(self, plan: ImagePlan, blob_path: BlobPath) -> BuiltImage:
        """Make the missing layers, and compose the image."""
        base, layers = self._parts(plan, blob_path)
        timings: dict[str, float] = {}
        new: list[NewLayer] = []
        built: list[BuiltLayer] = [
            BuiltLayer(
                name="base", diff_id=layer.diff_id, digest=self._digest(layer), size=layer.size,
                cached=True, reason=str(plan.base.pinned),
            )
            for layer in base.layers
        ]  # fmt: skip
        for planned in layers:
            start = time.perf_counter()
            self._report("started", planned.name)
            watched = dataclasses.replace(planned, chunks=partial(self._packed, planned))
            layer = self._shared.layer(watched)
            seconds = time.perf_counter() - start
            kind: Kind = "cached" if layer.cached else "done"
            self._report(kind, planned.name, seconds=seconds, total=layer.size)
            timings[planned.name] = seconds
            new.append(NewLayer(name=planned.name, reason=planned.reason, layer=layer))
            built.append(
                BuiltLayer(
                    name=planned.name, diff_id=layer.diff_id, digest=self._digest(layer),
                    size=layer.size, cached=layer.cached, reason=planned.reason,
                    shared=layer.shared,
                )
            )  # fmt: skip
        self._warn(plan, layers[0])
        composed = compose(plan, base, new, epoch=self._epoch)
        self._composed[composed.id] = _Made(
            image=composed, plan=plan, base=base, layers=new, key=self._key(plan, base, layers),
            sbom=sbom_file(code_files(plan, blob_path)),
        )  # fmt: skip
        packed = self._layers.compression != NONE
        return BuiltImage(
            id=composed.id, digest=composed.digest if packed else None, plan=plan,
            layers=tuple(built),
            size=sum(layer.size for layer in built), timings=timings,
        )  # fmt: skip

    def _packed(self, planned: PlannedLayer) -> Iterator[bytes]:
        """Yield the tar of a layer that is made, and report how far that is."""
        self._report("progress", planned.name, text=planned.making)
        current = reported = 0
        for chunk in planned.chunks():
            current += len(chunk)
            if current - reported >= CHUNK:
                reported = current
                total = max(planned.size, current) if planned.size else 0
                self._report("progress", planned.name, current=current, total=total)
            yield chunk

    def _warn(self, plan: ImagePlan, dependencies: PlannedLayer) -> None:
        """Name what wheels expect of the base and it lacks; they may work without it."""
        base, python, files = self._bases[str(plan.base.reference), plan.platform]
        missing = lacking(plan, dependencies.inputs, base, python.path, files)
        for library, module in missing.items():
            self._say(
                f"warning: {module} needs {library}, which {plan.base.reference} does not have: "
                f"give --apt {package_of(library)}"
            )

    def _parts(
        self, plan: ImagePlan, blob_path: BlobPath
    ) -> tuple[StoredImage, list[PlannedLayer]]:
        if plan.system_packages:
            raise OptionError(
                f"apt: {', '.join(plan.system_packages)}: system packages need a container to "
                "install them in, which the oci builder does not have",
                hint="use --builder docker, or a --base-image that has them",
            )
        if (known := self._planned.get(id(plan))) is not None:
            return known[1:]
        base, python, _ = self._bases[str(plan.base.reference), plan.platform]
        layers = planned_layers(
            plan, blob_path, python,
            epoch=self._epoch, compiled=self._compiled, secrets=self._secrets,
        )  # fmt: skip
        self._planned[id(plan)] = plan, base, layers
        return base, layers

    def info(self, image: BuiltImage) -> ImageInfo:
        """Read an image's configuration."""
        composed = self._composed[image.id].image
        return ImageInfo.from_config(composed.config, [layer.size for layer in image.layers])

    def layer(self, image: BuiltImage, name: str) -> Iterator[bytes]:
        """Unpack a layer of the cache."""
        layers = self._composed[image.id].image.layers
        for built, layer in zip(image.layers, layers, strict=True):
            if built.name == name:
                with layer.open() as file, decompressed(file) as tar:
                    yield from chunks_of(tar)

    def write(
        self, images: Sequence[BuiltImage], output: Location | None, tags: Sequence[Reference]
    ) -> str:
        """Write images to a folder, a file, or (None) the Docker engine."""
        made = [self._composed[image.id] for image in images]
        start = time.perf_counter()
        step = f"write {output or 'docker'}"
        self._report("started", step)
        reading = Reading(lambda now, all_: self._report("progress", step, current=now, total=all_))
        if output is not None:
            write_images(reading.of(self._whole(made)), output, tags)
        else:
            plan = images[0].plan
            # An image of the same lock begins with the same layers.
            base = plan.base.reference
            names = [*map(str, tags), *([] if isinstance(base, Location) else [str(base)])]
            label = f"{LOCK_DIGEST}={plan.dependencies.digest}"
            load_into(
                self.engine, reading.of([each.image for each in made]), tags,
                like=chain(names, self.engine.labelled(label)),
                whole=lambda: reading.of(self._whole(made)),
            )  # fmt: skip
        seconds = time.perf_counter() - start
        self._report("done", step, seconds=seconds, total=reading.done, spared=reading.spared)
        return str(output) if output else str(next(iter(tags), images[0].id))

    def push(self, images: Sequence[BuiltImage], tags: Sequence[Reference]) -> tuple[str, ...]:
        """Push images under the content-addressed tag, then under the requested tags."""
        pushed = self._pushed.get(images[0].digest or "")
        digests: dict[Reference, str] = {}
        done: dict[str, list[str]] = {}
        for (_, repository), group in by_repository(tags).items():
            client = self._images.client(group[0])
            names = [tag.tag or DEFAULT_TAG for tag in group]
            if pushed:
                digest = pushed.retag(client, repository, names)
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
        made = [self._composed[image.id] for image in images]
        composed = self._whole(made)
        tag = content_tag([each.key for each in made])
        push = Push(client, repository, self._on_event, self._say)
        sboms = [each.sbom for each in made]
        return push.run(composed, tags, content_tag=tag, also_in=also_in, sboms=sboms)

    def export(self, images: Sequence[BuiltImage], tags: Sequence[Reference]) -> None:
        """Push layers to the cache in a registry, unless nothing was built."""
        if self._cache_to and not all(image.cached for image in images):
            self._shared.export(self._cache_to, tags)

    def _key(self, plan: ImagePlan, base: StoredImage, layers: Sequence[PlannedLayer]) -> str:
        keys = [self._layers.key(layer.inputs) for layer in layers]
        return image_key(plan, base, keys, epoch=self._epoch)

    def _digest(self, layer: StoredLayer) -> str | None:
        return None if self._layers.compression == NONE else layer.digest

    def _whole(self, made: Sequence[_Made]) -> list[Composed]:
        """Return images with all layers of bases that an engine has only described."""
        return [
            compose(each.plan, each.base.whole(), each.layers, epoch=self._epoch)
            if each.base.whole
            else each.image
            for each in made
        ]

    def _report(self, kind: Kind, step: str, **more: Any) -> None:
        self._on_event(BuildEvent(kind=kind, step=step, **more))

    def close(self) -> None:
        """Close connections and release cached layers."""
        if "engine" in self.__dict__:
            self.engine.close()
        self._images.close()
        self._layers.close()


@dataclass(frozen=True, kw_only=True)
class _Made:
    image: Composed
    plan: ImagePlan
    base: StoredImage
    layers: Sequence[NewLayer]
    key: str
    sbom: bytes


def _place(source: Reference | Location) -> str:
    if isinstance(source, Location):
        return source.kind
    return f"the registry {source.host}"
