"""Images that a registry has already: found by a tag that says what decides them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from mfimage.image.builder import BuiltImage, BuiltLayer
from mfimage.image.oci.images import StoredImage, encode, platform_of
from mfimage.image.oci.layers import PlannedLayer
from mfimage.image.plan.plan import ImagePlan
from mfimage.image.registry.client import RegistryClient
from mfimage.image.registry.descriptors import Descriptor
from mfimage.package.spec import sha256_digest

_PREFIX = "fn-"
_DIGITS = 40
_PARALLEL = 6


def image_key(plan: ImagePlan, base: StoredImage, layers: Sequence[str], *, epoch: int) -> str:
    """Return what stands for everything that decides an image.

    Parameters
    ----------
    plan, base, epoch
        As of `compose`.
    layers : sequence of str
        What stands for the inputs of each layer above the base, and its compression.
    """
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
    """Return the tag for images of these keys, one a platform, in any order."""
    digest = sha256_digest(encode(sorted(keys))).removeprefix("sha256:")
    return f"{_PREFIX}{digest[:_DIGITS]}"


@dataclass(frozen=True, kw_only=True)
class Known:
    """Images that a registry has.

    Attributes
    ----------
    media_type : str
        Of `data`.
    data : bytes
        The manifest, or the index of several.
    images : mapping of str to (Descriptor, manifest, configuration)
        By platform.
    """

    media_type: str
    data: bytes
    images: Mapping[str, tuple[Descriptor, Mapping[str, Any], Mapping[str, Any]]]

    def built(
        self, plan: ImagePlan, base: StoredImage, layers: Sequence[PlannedLayer]
    ) -> BuiltImage:
        """Tell of the image for a plan's platform."""
        descriptor, manifest, config = self.images[plan.platform]
        under = [("base", str(plan.base.pinned))] * len(base.layers)
        names = [*under, *((layer.name, layer.reason) for layer in layers)]
        found = zip(names, manifest["layers"], config["rootfs"]["diff_ids"], strict=True)
        told = tuple(
            BuiltLayer(
                name=name, diff_id=diff_id, digest=plain["digest"], size=plain["size"],
                cached=True, reason=reason,
            )
            for (name, reason), plain, diff_id in found
        )  # fmt: skip
        return BuiltImage(
            id=manifest["config"]["digest"], digest=descriptor.digest, plan=plan, layers=told,
            size=sum(layer.size for layer in told), cached=True,
        )  # fmt: skip

    def retag(self, client: RegistryClient, repository: str, tags: Sequence[str]) -> str:
        """Let further tags lead to it; return its digest."""
        digest = sha256_digest(self.data)
        for tag in tags:
            client.push_manifest(repository, tag, self.media_type, self.data)
        return digest


def find_known(
    client: RegistryClient,
    repository: str,
    tag: str,
    plans: Sequence[ImagePlan],
    counts: Sequence[int],
) -> Known | None:
    """Look a content-addressed tag up; what does not fit the plans is not used.

    Parameters
    ----------
    client, repository, tag
        Where.
    plans : sequence of ImagePlan
        One a platform.
    counts : sequence of int
        How many layers each of them has.
    """
    found = client.manifest(repository, tag)
    if found is None:
        return None
    plain = json.loads(found[1])
    images = {}
    for descriptor in _manifests(found[0], plain):
        held = client.manifest(repository, descriptor.digest)
        if held is None:
            return None
        manifest = json.loads(held[1])
        if not _is_whole(client, repository, manifest):
            return None
        config = json.loads(b"".join(client.blob(repository, manifest["config"]["digest"])))
        images[platform_of(config)] = held[0], manifest, config
    wanted = {plan.platform: count for plan, count in zip(plans, counts, strict=True)}
    if {name: len(image[1]["layers"]) for name, image in images.items()} != wanted:
        return None
    return Known(media_type=found[0].media_type, data=found[1], images=images)


def _is_whole(client: RegistryClient, repository: str, manifest: Mapping[str, Any]) -> bool:
    """Tell whether a registry has all that a manifest names: it may have cleaned up."""
    digests = {plain["digest"] for plain in (manifest["config"], *manifest["layers"])}
    with ThreadPoolExecutor(_PARALLEL) as pool:
        return all(pool.map(lambda digest: client.has_blob(repository, digest), digests))


def _manifests(descriptor: Descriptor, plain: Mapping[str, Any]) -> list[Descriptor]:
    if "manifests" not in plain:
        return [descriptor]
    return [Descriptor.parse(each) for each in plain["manifests"]]
