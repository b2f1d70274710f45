"""Images as they lie in folders, files and registries: manifests, configurations, and layers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from mfimage.errors import BuildError
from mfimage.image.registry.descriptors import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    INDEX,
    MANIFEST,
    Descriptor,
)

CONFIG = "application/vnd.oci.image.config.v1+json"
INDEXES = (INDEX, DOCKER_LIST)
MANIFESTS = (MANIFEST, DOCKER_MANIFEST)
# Equal bytes under OCI's own names.
_LAYER_TYPES = {
    "application/vnd.docker.image.rootfs.diff.tar.gzip": (
        "application/vnd.oci.image.layer.v1.tar+gzip"
    ),
    "application/vnd.docker.image.rootfs.diff.tar": "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar.zstd": (
        "application/vnd.oci.image.layer.v1.tar+zstd"
    ),
}


@dataclass(frozen=True, kw_only=True)
class StoredLayer:
    """A layer, and where to get it.

    Attributes
    ----------
    descriptor : Descriptor
        What a manifest says of it, in OCI's terms.
    diff_id : str
        ``sha256:<hex>`` of the tar.
    open : callable
        Opens the compressed tar; that may fetch it.
    source : tuple of str
        Registry and repository that have it, if some do.
    """

    descriptor: Descriptor
    diff_id: str
    open: Callable[[], BinaryIO]
    source: tuple[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """An image for one platform: what a manifest and what it names hold.

    Attributes
    ----------
    digest : str or None
        The manifest's; None of a Docker archive, which has none.
    config : mapping
        The configuration.
    raw_config, raw_manifest : bytes
        As they lie there; the manifest empty where there is none.
    layers : tuple of StoredLayer
        Lowest first.
    names : tuple of str
        What it is called where it lies.
    """

    digest: str | None
    config: Mapping[str, Any]
    raw_config: bytes
    raw_manifest: bytes
    layers: tuple[StoredLayer, ...]
    names: tuple[str, ...] = ()

    @property
    def platform(self) -> str:
        """As ``linux/amd64``."""
        return platform_of(self.config)


def platform_of(plain: Mapping[str, Any]) -> str:
    """Return the platform that a configuration, or an index, tells."""
    return f"{plain.get('os', 'linux')}/{plain.get('architecture', '')}"


def encode(value: Any) -> bytes:
    """Return JSON, the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def layer_descriptor(plain: Mapping[str, Any], where: str) -> Descriptor:
    """Return a layer's descriptor in OCI's terms.

    Raises
    ------
    BuildError
        When it is of a kind that cannot be passed on.
    """
    kind = _LAYER_TYPES.get(plain["mediaType"], plain["mediaType"])
    if kind not in _LAYER_TYPES.values():
        raise BuildError(
            f"{where}: its layer {plain['digest']} is of the kind {kind}, which cannot be copied",
            hint="choose a base of ordinary layers",
        )
    return Descriptor(media_type=kind, digest=plain["digest"], size=plain["size"])


def pick(index: Mapping[str, Any], platform: str, where: str) -> Mapping[str, Any]:
    """Return the entry of an index that is for a platform.

    Raises
    ------
    BuildError
        When there is none, or more than one: lists what there is.
    """
    listed: list[Mapping[str, Any]] = list(index.get("manifests", ()))
    entries = [each for each in listed if each.get("mediaType") in (*MANIFESTS, *INDEXES)]
    found = [each for each in entries if _fits(each.get("platform"), platform)]
    if len(found) != 1:
        there = sorted({platform_of(each["platform"]) for each in entries if each.get("platform")})
        what = "has more than one image" if found else "has no image"
        raise BuildError(
            f"{where} {what} for {platform}",
            hint=f"it has: {', '.join(there)}" if there else "choose another one",
        )
    return found[0]


def _fits(plain: Mapping[str, Any] | None, platform: str) -> bool:
    if not plain:  # an image alone in its layout need not say
        return True
    return platform_of(plain) == platform and plain.get("variant") in (None, "", "v8")
