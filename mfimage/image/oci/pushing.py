"""Pushes images to registries, and finds those that were pushed before.

Beside the requested tags there is one derived from everything that decides the images. A later
push of the same images finds that tag, and nothing is built.
"""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

from mfimage.errors import RegistryError
from mfimage.image.builder import BuildEvent, BuiltImage, BuiltLayer, Kind
from mfimage.image.oci.config import Composed, compose_index
from mfimage.image.oci.images import StoredImage, encode, platform_of
from mfimage.image.oci.layers import PlannedLayer
from mfimage.image.plan.plan import ImagePlan
from mfimage.image.registry.client import RegistryClient, repository_of
from mfimage.image.registry.descriptors import INDEX, Descriptor
from mfimage.image.registry.reference import Reference
from mfimage.image.sbom.attach import EMPTY, NOT_ATTACHED, push_artifact
from mfimage.package.spec import sha256_digest

_PARALLEL = 6
_STEP = 1 << 20
_PREFIX = "fn-"
_DIGITS = 40
_NOT_KEPT = "the next build cannot find this image"
OnEvent = Callable[[BuildEvent], None]
Say = Callable[[str], None]
_Image = tuple[Descriptor, Mapping[str, Any], Mapping[str, Any]]  # manifest, configuration


class _Stopped(Exception):
    """Another layer failed, or the user interrupted."""


class Push:
    """Pushes images, one for each platform, to a repository.

    ``on_event`` is called with the progress of each layer, by one thread at a time.
    """

    def __init__(
        self, client: RegistryClient, repository: str, on_event: OnEvent, say: Say = lambda _: None
    ) -> None:
        self._client = client
        self._repository = repository
        self._on_event = on_event
        self._say = say
        self._reporting = threading.Lock()
        self._stop = threading.Event()

    def run(
        self, images: Sequence[Composed], tags: Sequence[str], *, content_tag: str | None = None,
        also_in: Sequence[str] = (), sboms: Sequence[bytes | None] = (),
    ) -> str:  # fmt: skip
        """Push images with their SBOMs, and write the tags last; return their digest."""
        # ``also_in`` are other repositories of this registry that have all blobs.
        client, repository = self._client, self._repository
        client.settle()
        small = {image.id: image.config for image in images}
        small |= {sha256_digest(data): data for sbom in sboms if sbom for data in (EMPTY, sbom)}
        # What changes most often comes first: it is sent while the rest is found to be there.
        blobs: dict[str, tuple[int, Callable[[], BinaryIO], Sequence[str]]] = {
            each: (len(data), partial(io.BytesIO, data), also_in) for each, data in small.items()
        }
        for layer in (layer for image in images for layer in reversed(image.layers)):
            here = [layer.source[1]] if layer.source and layer.source[0] == client.host else []
            blobs.setdefault(layer.digest, (layer.size, layer.open, [*also_in, *here]))
        with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="mfimage-push") as pool:

            def put(*sent: Any) -> Future[Any]:
                return pool.submit(client.push_manifest, repository, *sent)

            try:
                _wait([pool.submit(self._blob, digest, *blob) for digest, blob in blobs.items()])
                data, kind = images[0].manifest, images[0].descriptor.media_type
                if len(images) > 1:
                    data, kind = compose_index(images), INDEX
                    found = [(each, each.descriptor.media_type) for each in images]
                    _wait([put(each.digest, at, each.manifest) for each, at in found])
                written = [put(tag, kind, data) for tag in tags]
                # What is refused of these costs a line.
                extra = {put(content_tag, kind, data): _NOT_KEPT} if content_tag else {}
                for image, sbom in zip(images, sboms, strict=False):
                    if sbom:
                        sent = client, repository, image.descriptor, sbom
                        extra[pool.submit(push_artifact, *sent)] = NOT_ATTACHED
                _wait(written)
                for done, what in extra.items():
                    try:
                        done.result()
                    except RegistryError as error:
                        self._say(f"{what}: {error.message}")
            except BaseException:
                self._stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return sha256_digest(data)

    def _blob(
        self, digest: str, size: int, open_it: Callable[[], BinaryIO], sources: Sequence[str]
    ) -> None:
        step = f"push {digest[7:19]}"
        reported = 0

        def on_progress(current: int) -> None:
            nonlocal reported
            if self._stop.is_set():
                raise _Stopped
            if current - reported >= _STEP:
                reported = current
                self._report("progress", step, current, size)

        sent = self._client.push_blob(
            self._repository, digest, size, open_it, on_progress=on_progress,
            sources=[source for source in sources if source != self._repository],
        )  # fmt: skip
        self._report("done" if sent else "cached", step, size, size, 0 if sent else size)

    def _report(self, kind: Kind, step: str, current: int, total: int, spared: int = 0) -> None:
        event = BuildEvent(
            kind=kind, step=step, text="pushing", current=current, total=total, spared=spared
        )
        with self._reporting:
            self._on_event(event)


def _wait(futures: Sequence[Future[Any]]) -> None:
    for done in as_completed(futures):
        done.result()


def by_repository(tags: Iterable[Reference]) -> dict[tuple[str, str], list[Reference]]:
    """Group tags by registry, and by the repository's name there."""
    found: dict[tuple[str, str], list[Reference]] = {}
    for tag in tags:
        found.setdefault((tag.host, repository_of(tag)), []).append(tag)
    return found


def image_key(plan: ImagePlan, base: StoredImage, layers: Sequence[str], *, epoch: int) -> str:
    """Return a digest of everything that decides an image; ``layers`` are cache keys."""
    decides = {
        "base": base.digest or sha256_digest(base.raw_config),
        "layers": list(layers),
        "platform": plan.platform,
        "env": list(plan.env.items()),
        "labels": list(plan.labels.items()),
        "settings": [plan.user, plan.workdir, plan.stop_signal, plan.version],
        "starts": [plan.entrypoint, plan.cmd, plan.ports, sorted(plan.programs)],
        "epoch": epoch,
    }
    return sha256_digest(encode(decides))


def content_tag(keys: Sequence[str]) -> str:
    """Return the tag for images with these keys, in any order."""
    digest = sha256_digest(encode(sorted(keys))).removeprefix("sha256:")
    return f"{_PREFIX}{digest[:_DIGITS]}"


@dataclass(frozen=True, kw_only=True)
class PushedImages:
    """Images that a registry has, one for each platform."""

    media_type: str
    document: bytes  # the manifest, or the index of several
    images: Mapping[str, _Image]  # by platform

    def built(
        self, plan: ImagePlan, base: StoredImage, layers: Sequence[PlannedLayer]
    ) -> BuiltImage:
        """Describe the image for a plan's platform."""
        descriptor, manifest, config = self.images[plan.platform]
        under = [("base", str(plan.base.pinned))] * len(base.layers)
        names = [*under, *((layer.name, layer.reason) for layer in layers)]
        found = zip(names, manifest["layers"], config["rootfs"]["diff_ids"], strict=True)
        described = tuple(
            BuiltLayer(
                name=name, diff_id=diff_id, digest=entry["digest"], size=entry["size"],
                cached=True, reason=reason,
            )
            for (name, reason), entry, diff_id in found
        )  # fmt: skip
        return BuiltImage(
            id=manifest["config"]["digest"], digest=descriptor.digest, plan=plan, layers=described,
            size=sum(layer.size for layer in described), cached=True,
        )  # fmt: skip

    def retag(self, client: RegistryClient, repository: str, tags: Sequence[str]) -> str:
        """Write further tags; return the digest."""
        digest = sha256_digest(self.document)
        for tag in tags:
            client.push_manifest(repository, tag, self.media_type, self.document)
        return digest


def find_pushed(
    client: RegistryClient, repository: str, tag: str, plans: Sequence[ImagePlan],
    counts: Sequence[int], *, say: Say,
) -> PushedImages | None:  # fmt: skip
    """Look up a content-addressed tag; images with other platforms or layer counts are not used."""
    client.settle()
    try:
        found = client.manifest(repository, tag)
        images = dict(_images(client, repository, *found)) if found else {}
    except (RegistryError, ValueError, LookupError, TypeError) as error:
        say(f"images that were pushed before cannot be looked up: {error}")
        return None
    wanted = {plan.platform: count for plan, count in zip(plans, counts, strict=True)}
    if found is None or {name: len(each[1]["layers"]) for name, each in images.items()} != wanted:
        return None
    return PushedImages(media_type=found[0].media_type, document=found[1], images=images)


def _images(
    client: RegistryClient, repository: str, found: Descriptor, document: bytes
) -> Iterator[tuple[str, _Image]]:
    """Yield images by platform, without those of which a registry has removed blobs."""
    listed = json.loads(document).get("manifests")
    for descriptor in map(Descriptor.parse, listed) if listed else [found]:
        if (held := client.manifest(repository, descriptor.digest)) is None:
            continue
        manifest = json.loads(held[1])
        sizes = {each["digest"]: each["size"] for each in (manifest["config"], *manifest["layers"])}
        with ThreadPoolExecutor(_PARALLEL) as pool:
            here = pool.map(partial(client.has_blob, repository), sizes, sizes.values())
            if all(here):
                config = json.loads(b"".join(client.blob(repository, manifest["config"]["digest"])))
                yield platform_of(config), (held[0], manifest, config)
