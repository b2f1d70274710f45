"""The builder that runs ``docker build`` on the context that ``mfimage render`` writes."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from mfimage.errors import BuildError, EngineError, OptionError
from mfimage.image.builder import DOCKER, BuildEvent, BuiltImage, BuiltLayer, OnEvent
from mfimage.image.docker.command import DockerCommand, ended_by_signals
from mfimage.image.docker.engine import Engine, engine_gone
from mfimage.image.docker.render import write_context
from mfimage.image.find.info import HistoryEntry, ImageInfo
from mfimage.image.plan.base import BaseImage
from mfimage.image.plan.layers import BlobPath, artifact_folder
from mfimage.image.plan.options import BuildxCache
from mfimage.image.plan.plan import ImagePlan
from mfimage.image.registry.location import Location
from mfimage.image.registry.reference import Reference
from mfimage.package.storage.cache import cache_folder, remember
from mfimage.runtime.layout import VENV

_DOING = "building the image"
_LAYERED = ("RUN", "COPY", "ADD", "WORKDIR")  # what history says of steps that make a layer


class DockerBuilder:
    """Builds images by ``docker build``; `export` pushes under a reference in ``cache_to``."""

    name = DOCKER

    def __init__(
        self,
        engine: Engine,
        command: DockerCommand,
        *,
        tags: Sequence[Reference],
        secrets: Mapping[str, bytes],
        no_cache: bool,
        on_event: OnEvent,
        pull: bool = False,
        cache_from: Sequence[Reference | BuildxCache] = (),
        cache_to: Reference | BuildxCache | None = None,
    ) -> None:
        self._engine = engine
        self._command = command
        self._cache_from = cache_from
        self._cache_to = cache_to
        self._tags = tags
        self._secrets = secrets
        self._no_cache = no_cache
        self._pull = pull
        self._on_event = on_event
        self._cached: list[str] = []

    def base(self, source: Reference | Location, platform: str) -> BaseImage:
        """Return what the engine knows of a base, pulled if it does not have it."""
        if isinstance(source, Location):
            raise OptionError(
                f"base-image: the Docker engine does not build on {source}",
                hint="use --builder oci, or `docker load` it and give its name",
            )
        info = None if self._pull else self._engine.inspect(str(source))
        if info is None:
            info = self._engine.pull(str(source), platform=platform, on_event=self._on_event)
        digest = source.digest or info.digest_of(source)
        return BaseImage(
            reference=source,
            python=self._python_of(info),
            digest=digest,
            id=None if digest else info.id,
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
        """Write the context and build it."""
        start = time.perf_counter()
        # The context is named by what builds have in common whose contexts are worth comparing.
        names = ",".join(tag.name for tag in self._tags) or f"{plan.function},{plan.target.name}"
        digest = hashlib.sha256(names.encode()).hexdigest()
        with ended_by_signals(), tempfile.TemporaryDirectory(prefix="mfimage-") as folder:
            context = Path(folder, f"mfimage-{digest[:16]}")
            write_context(plan, context, blob_path)
            try:
                known = self._command.build(
                    context,
                    tags=[str(tag) for tag in self._tags],
                    platform=plan.platform,
                    secrets=self._secrets,
                    no_cache=self._no_cache,
                    cache_from=self._cache_from,
                    cache_to=self._cache_to,
                    on_event=self._see,
                )
            except BuildError:
                if not self._engine.alive():  # an engine that goes away cancels its builds
                    raise engine_gone(_DOING) from None
                raise
        info = self._find(known, plan)
        bases = (str(plan.base.pinned), str(plan.base.reference))
        base = next(filter(None, map(self._engine.inspect, bases)), ImageInfo(id=""))
        return BuiltImage(
            id=info.id,
            digest=None,
            plan=plan,
            layers=tuple(_layers(plan, info, base, self._cached)),
            size=info.size,
            timings={"build": time.perf_counter() - start},
        )

    def _find(self, names: Sequence[str], plan: ImagePlan) -> ImageInfo:
        """Return the image that was built; engines know it by different digests."""
        for name in names:
            if (info := self._engine.inspect(name)) is not None:
                return info
        for tag in self._tags:
            info = self._engine.inspect(str(tag))
            # Another build may have taken the tag meanwhile.
            if info is not None and plan.labels.items() <= info.labels.items():
                return info
        raise EngineError(
            f"{_DOING}: the Docker engine does not have {names[0]} afterwards",
            hint="the builder that BUILDX_BUILDER or `docker buildx use` names must load images "
            "into the engine that DOCKER_HOST or the docker context names",
        )

    def _see(self, event: BuildEvent) -> None:
        if event.kind == "cached":
            self._cached.append(event.step)
        self._on_event(event)

    def info(self, image: BuiltImage) -> ImageInfo:
        """Ask the engine for an image's configuration."""
        return self._engine.inspect(image.id) or ImageInfo(id=image.id)

    def layer(self, image: BuiltImage, name: str) -> Iterator[bytes]:
        """Export the folder that a layer fills; of system packages, the one with their settings."""
        yield from self._engine.export(image.id, VENV if name == "dependencies" else "/etc")

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
        """Push the image, which has the cache in it, under the cache's name."""
        if not isinstance(self._cache_to, Reference):
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
        known = cache_folder() / "bases" / info.id.removeprefix("sha256:")
        try:
            return known.read_text()
        except OSError:
            version = self._engine.python_version(info.id)
        remember(known, version.encode())
        return version


def _layers(
    plan: ImagePlan, info: ImageInfo, base: ImageInfo, cached: Sequence[str]
) -> Iterable[BuiltLayer]:
    """Describe an image's layers, by what the Dockerfile makes of the plan."""
    under, reason = len(base.layers), str(plan.base.pinned)
    sizes = [entry.size for entry in base.history if entry.size]
    # The engine does not distinguish empty layers from steps that make none: the first has it all.
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
    yield "runtime", f"mfimage {plan.version}", "COPY --from=runtime /out/"
    yield "code", f"function {plan.digest}", "layers/code/"
