"""Pushes images to registries, and finds those that were pushed before.

Beside the requested tags there is one derived from everything that decides the images. A later
push of the same images finds that tag, and nothing is built.
"""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

from mfimage.errors import RegistryError
from mfimage.image.builder import BuildEvent, BuiltImage, BuiltLayer
from mfimage.image.oci.config import Composed, compose_index
from mfimage.image.oci.images import StoredImage, StoredLayer, encode, platform_of
from mfimage.image.oci.layers import PlannedLayer
from mfimage.image.plan.plan import ImagePlan
from mfimage.image.registry.client import RegistryClient, repository_of
from mfimage.image.registry.descriptors import INDEX, Descriptor
from mfimage.image.registry.reference import Reference
from mfimage.image.sbom.attach import not_attached, push_artifact, push_sbom
from mfimage.package.spec import sha256_digest

_PARALLEL = 6
_STEP = 1 << 20
_PREFIX = "fn-"
_DIGITS = 40
OnEvent = Callable[[BuildEvent], None]
Say = Callable[[str], None]


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
        self,
        images: Sequence[Composed],
        tags: Sequence[str],
        *,
        content_tag: str | None = None,
        also_in: Sequence[str] = (),
        sboms: Sequence[bytes | None] = (),
    ) -> str:
        """Push images with their SBOMs, and write the tags last; return their digest."""
        # ``also_in`` are other repositories of this registry that have all blobs.
        self._client.settle()
        blobs: dict[str, Callable[[], bool]] = {}
        # What changes most often comes first: it is sent while the rest is found to be there.
        for image in images:
            blobs[image.id] = partial(self._bytes, image.id, image.config, also_in)
            for layer in reversed(image.layers):
                blobs.setdefault(layer.digest, partial(self._layer, layer, also_in))
        subjects = [
            (image.descriptor, sbom)
            for image, sbom in zip(images, sboms or [None] * len(images), strict=True)
            if sbom
        ]
        client, repository = self._client, self._repository
        with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="mfimage-push") as pool:

            def put(reference: str, kind: str, data: bytes) -> Future[str]:
                return pool.submit(client.push_manifest, repository, reference, kind, data)

            try:
                sent = [
                    pool.submit(push_sbom, client, repository, sbom, sources=tuple(also_in))
                    for _, sbom in subjects
                ]
                _wait([pool.submit(push) for push in blobs.values()])
                data, kind = images[0].manifest, images[0].descriptor.media_type
                if len(images) > 1:
                    data, kind = compose_index(images), INDEX
                    _wait(
                        [
                            put(each.digest, each.descriptor.media_type, each.manifest)
                            for each in images
                        ]
                    )
                written = [put(tag, kind, data) for tag in tags]
                kept = put(content_tag, kind, data) if content_tag else None
                if all(self._succeeds(each, not_attached) for each in sent):
                    sent = [
                        pool.submit(push_artifact, client, repository, *each) for each in subjects
                    ]
                    all(self._succeeds(each, not_attached) for each in sent)
                if kept:
                    self._succeeds(kept, _not_kept)
                _wait(written)
            except BaseException:
                self._stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return sha256_digest(data)

    def _succeeds(self, done: Future[Any], describe: Callable[[RegistryError], str]) -> bool:
        try:
            done.result()
        except RegistryError as error:
            self._say(describe(error))
            return False
        return True

    def _layer(self, layer: StoredLayer, also_in: Sequence[str]) -> bool:
        sources = [*also_in]
        if layer.source and layer.source[0] == self._client.host:
            sources.append(layer.source[1])
        others = tuple(source for source in sources if source != self._repository)
        return self._blob(layer.digest, layer.size, layer.open, others)

    def _bytes(self, digest: str, data: bytes, also_in: Sequence[str]) -> bool:
        return self._blob(digest, len(data), lambda: io.BytesIO(data), tuple(also_in))

    def _blob(
        self, digest: str, size: int, open_it: Callable[[], BinaryIO], sources: tuple[str, ...]
    ) -> bool:
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
            self._repository, digest, size, open_it, sources=sources, on_progress=on_progress
        )
        self._report("done" if sent else "cached", step, size, size)
        return sent

    def _report(self, kind: str, step: str, current: int, total: int) -> None:
        event = BuildEvent(
            kind=kind,  # type: ignore[arg-type]
            step=step,
            text="pushing",
            current=current,
            total=total,
        )
        with self._reporting:
            self._on_event(event)


def _wait(futures: Sequence[Future[Any]]) -> None:
    for done in as_completed(futures):
        done.result()


def _not_kept(error: RegistryError) -> str:
    return f"the next build cannot find this image: {error.message}"


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
    images: Mapping[str, tuple[Descriptor, Mapping[str, Any], Mapping[str, Any]]]

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
    client: RegistryClient,
    repository: str,
    tag: str,
    plans: Sequence[ImagePlan],
    counts: Sequence[int],
    *,
    say: Say,
) -> PushedImages | None:
    """Look up a content-addressed tag; images with other platforms or layer counts are not used."""
    client.settle()
    try:
        found = client.manifest(repository, tag)
        images = _read_images(client, repository, *found) if found else {}
    except (RegistryError, ValueError, LookupError, TypeError) as error:
        say(f"images that were pushed before cannot be looked up: {error}")
        return None
    wanted = {plan.platform: count for plan, count in zip(plans, counts, strict=True)}
    if found is None or {name: len(each[1]["layers"]) for name, each in images.items()} != wanted:
        return None
    return PushedImages(media_type=found[0].media_type, document=found[1], images=images)


def _read_images(
    client: RegistryClient, repository: str, found: Descriptor, document: bytes
) -> dict[str, tuple[Descriptor, Mapping[str, Any], Mapping[str, Any]]]:
    """Return images by platform; without those of which a registry has removed blobs."""
    images = {}
    for descriptor in _manifests(found, json.loads(document)):
        held = client.manifest(repository, descriptor.digest)
        manifest = json.loads(held[1]) if held else {}
        if held and _is_whole(client, repository, manifest):
            config = json.loads(b"".join(client.blob(repository, manifest["config"]["digest"])))
            images[platform_of(config)] = held[0], manifest, config
    return images


def _is_whole(client: RegistryClient, repository: str, manifest: Mapping[str, Any]) -> bool:
    sizes = {each["digest"]: each["size"] for each in (manifest["config"], *manifest["layers"])}
    with ThreadPoolExecutor(_PARALLEL) as pool:
        return all(pool.map(partial(client.has_blob, repository), sizes, sizes.values()))


def _manifests(descriptor: Descriptor, document: Mapping[str, Any]) -> list[Descriptor]:
    if "manifests" not in document:
        return [descriptor]
    return [Descriptor.parse(each) for each in document["manifests"]]
