"""The builder that hands a plan to a Docker engine."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from mfimage.errors import OptionError
from mfimage.image.builder import DOCKER, BuiltImage, BuiltLayer, OnEvent
from mfimage.image.docker.render import context_files
from mfimage.image.engine import Engine
from mfimage.image.engine_events import BuildEvent
from mfimage.image.find.info import HistoryEntry, ImageInfo
from mfimage.image.plan.base import BaseImage
from mfimage.image.plan.layers import BlobPath, artifact_folder
from mfimage.image.plan.plan import ImagePlan
from mfimage.image.registry.location import Location
from mfimage.image.registry.reference import Reference
from mfimage.package.storage.cache import cache_folder, remember
from mfimage.runtime.layout import VENV

if TYPE_CHECKING:
    from collections.abc import Iterable

# What history says of steps that make a layer.
_LAYERED = ("RUN", "COPY", "ADD", "WORKDIR")


class DockerBuilder:
    """Builds images with a Docker engine.

    Parameters
    ----------
    engine : Engine
        The connection, which `close` closes.
    tags : sequence of Reference
        What to call images.
    secrets : mapping of str to bytes
        Credentials for the dependency step.
    no_cache : bool
        Run every step anew.
    on_event : callable
        Told of every step.
    cache_from : sequence of Reference
        Images in registries whose steps need not be run again.
    cache_to : Reference, optional
        What `export` calls the image in a registry, for others to build from.
    """

    name = DOCKER

    def __init__(
        self,
        engine: Engine,
        *,
        tags: Sequence[Reference],
        secrets: Mapping[str, bytes],
        no_cache: bool,
        on_event: OnEvent,
        cache_from: Sequence[Reference] = (),
        cache_to: Reference | None = None,
    ) -> None:
        self._engine = engine
        self._cache_from = cache_from
        self._cache_to = cache_to
        self._tags = tags
        self._secrets = secrets
        self._no_cache = no_cache
        self._on_event = on_event
        self._cached: list[str] = []

    def base(self, source: Reference | Location, platform: str) -> BaseImage:
        """Return what the engine knows of a base, pulled if it does not have it."""
        if isinstance(source, Location):
            raise OptionError(
                f"base-image: the Docker engine does not build on {source}",
                hint="use --builder oci, or `docker load` it and give its name",
            )
        info = self._engine.inspect(str(source))
        if info is None:
            info = self._engine.pull(str(source), platform=platform, on_event=self._on_event)
        return BaseImage(
            reference=source,
            python=self._python_of(info),
            digest=source.digest or _digest_of(info, source),
            platform=info.platform,
            env=info.env,
            labels=info.labels,
        )

    def find(
        self, plans: Sequence[ImagePlan], tags: Sequence[Reference], blob_path: BlobPath
    ) -> tuple[BuiltImage, ...] | None:
        """Return None: what the engine will make is not known before."""
        return None

    def build(self, plan: ImagePlan, blob_path: BlobPath) -> BuiltImage:
        """Build by BuildKit."""
        start = time.perf_counter()
        image_id = self._engine.build(
            context=context_files(plan, blob_path),
            tags=[str(tag) for tag in self._tags],
            secrets=self._secrets,
            platform=plan.platform,
            no_cache=self._no_cache,
            cache_from=[str(source) for source in self._cache_from],
            # BuildKit writes into the image what its steps were.
            build_args={"BUILDKIT_INLINE_CACHE": "1"} if self._cache_to else {},
            on_event=self._see,
        )
        info = self._engine.inspect(image_id) or ImageInfo(id=image_id)
        base = self._engine.inspect(str(plan.base.pinned)) or self._engine.inspect(
            str(plan.base.reference)
        )
        return BuiltImage(
            id=image_id,
            digest=None,
            plan=plan,
            layers=tuple(_layers(plan, info, base or ImageInfo(id=""), self._cached)),
            size=info.size,
            timings={"build": time.perf_counter() - start},
        )

    def _see(self, event: BuildEvent) -> None:
        if event.kind == "cached":
            self._cached.append(event.step)
        self._on_event(event)

    def info(self, image: BuiltImage) -> ImageInfo:
        """Ask the engine for an image's configuration."""
        return self._engine.inspect(image.id) or ImageInfo(id=image.id)

    def layer(self, image: BuiltImage, name: str) -> Iterator[bytes]:
        """Export the folder that a layer fills; of system packages, which fill many, nothing."""
        if name == "dependencies":
            yield from self._engine.export(image.id, VENV)

    def write(
        self, images: Sequence[BuiltImage], output: Location | None, tags: Sequence[Reference]
    ) -> str:
        """Return the image's name: the engine has it already."""
        if output is not None:
            raise OptionError(
                f"output: the docker builder does not write {output}",
                hint="use --builder oci, or `docker save`",
            )
        return str(next(iter(tags), images[0].id))

    def push(self, images: Sequence[BuiltImage], tags: Sequence[Reference]) -> tuple[str, ...]:
        """Push each tag by the engine."""
        return tuple(
            f"{tag.name}@{self._engine.push(str(tag), on_event=self._on_event)}" for tag in tags
        )

    def export(self, images: Sequence[BuiltImage], tags: Sequence[Reference]) -> None:
        """Push the image by its name as a cache."""
        if self._cache_to is None:
            return
        name = str(self._cache_to)
        self._engine.tag(images[0].id, name)
        try:
            self._engine.push(name, on_event=self._on_event)
        finally:
            if self._cache_to not in tags:
                self._engine.remove(name)

    def close(self) -> None:
        """Close the connection."""
        self._engine.close()

    def _python_of(self, info: ImageInfo) -> str:
        """Ask an image for its Python, once."""
        known = cache_folder() / "bases" / info.id.removeprefix("sha256:")
        try:
            return known.read_text()
        except OSError:
            version = self._engine.python_version(info.id)
        remember(known, version.encode())
        return version


def _digest_of(info: ImageInfo, reference: Reference) -> str | None:
    """Return the digest by which a registry has the image, if it came from one."""
    for text in info.repo_digests:
        name, _, digest = text.partition("@")
        if name == reference.name or name in reference.canonical:
            return digest
    return None


def _layers(
    plan: ImagePlan, info: ImageInfo, base: ImageInfo, cached: Sequence[str]
) -> Iterable[BuiltLayer]:
    """Tell of an image's layers, by what the Dockerfile makes of the plan."""
    under, reason = len(base.layers), str(plan.base.pinned)
    sizes = [entry.size for entry in base.history if entry.size]
    # The engine does not tell empty layers from steps that make none: then the first has it all.
    sizes = sizes if len(sizes) == under else [base.size] + [0] * (under - 1)
    for diff_id, size in zip(base.layers, sizes, strict=False):
        yield BuiltLayer(
            name="base", diff_id=diff_id, digest=None, size=size, cached=True, reason=reason
        )
    made = [entry for entry in info.history if entry.created_by.startswith(_LAYERED)]
    steps = list(_steps(plan))
    above = info.layers[under:]
    entries = made[-len(above) :] if len(made) >= len(above) else []
    for number, diff_id in enumerate(above):
        known = number < len(steps) and len(steps) == len(above)
        name, reason, text = steps[number] if known else ("other", "", "")
        entry = entries[number] if entries else HistoryEntry(created_by="", size=0)
        yield BuiltLayer(
            name=name, diff_id=diff_id, digest=None, size=entry.size, reason=reason,
            cached=bool(text) and any(text in step for step in cached),
        )  # fmt: skip


def _steps(plan: ImagePlan) -> Iterable[tuple[str, str, str]]:
    """Yield name and reason of each layer, and what its step's name has in it."""
    if plan.system_packages:
        yield "system", f"apt {' '.join(plan.system_packages)}", "apt-get install"
    yield "dependencies", f"lock {plan.dependencies.digest}", "COPY --from=build /out/"
    yield "workdir", "", "WORKDIR"
    for layer in plan.artifacts:
        digests = ", ".join(blob.digest for blob in layer.blobs)
        folder = artifact_folder(layer)
        yield f"artifact:{','.join(layer.names)}", f"artifact {digests}", f"layers/{folder}/"
    yield "runtime", f"mfimage {plan.version}", "layers/runtime/"
    yield "code", f"function {plan.digest}", "layers/code/"
