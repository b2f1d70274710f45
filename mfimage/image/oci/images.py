"""Images as stored in folders, files and registries: manifests, configurations and layers."""

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
_DOCKER, _OCI = "application/vnd.docker.image.rootfs.diff.tar", "application/vnd.oci.image.layer.v1"
# Equal bytes under OCI's own names.
_LAYER_TYPES = {
    f"{_DOCKER}.gzip": f"{_OCI}.tar+gzip",
    _DOCKER: f"{_OCI}.tar",
    f"{_DOCKER}.zstd": f"{_OCI}.tar+zstd",
}


@dataclass(frozen=True, kw_only=True)
class StoredLayer:
    """A layer, and where to get it."""

    descriptor: Descriptor  # with OCI's media type
    diff_id: str
    open: Callable[[], BinaryIO]  # the compressed tar, fetched if needed
    source: tuple[str, str] | None = None  # registry and repository that have it
    cached: bool = False  # whether it was found in a cache
    shared: bool = False  # whether that is a cache in a registry

    @property
    def digest(self) -> str:
        """``sha256:<hex>`` of the compressed tar."""
        return self.descriptor.digest

    @property
    def size(self) -> int:
        """Compressed bytes."""
        return self.descriptor.size


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """An image for one platform."""

    digest: str | None  # the manifest's; an engine and a Docker archive have none
    config: Mapping[str, Any]
    raw_config: bytes  # as stored
    raw_manifest: bytes  # as stored; empty if there is none
    layers: tuple[StoredLayer, ...]  # lowest first
    # Reads the layers of an image that an engine has only described, so far.
    whole: Callable[[], StoredImage] | None = None

    @property
    def platform(self) -> str:
        """As ``linux/amd64``."""
        return platform_of(self.config)


def platform_of(document: Mapping[str, Any]) -> str:
    """Return the platform in a configuration or an index's entry."""
    return f"{document.get('os', 'linux')}/{document.get('architecture', '')}"


def encode(value: Any) -> bytes:
    """Return canonical JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def layer_descriptor(document: Mapping[str, Any], where: str) -> Descriptor:
    """Parse a layer's descriptor; refuse media types that are not a tar's."""
    kind = _LAYER_TYPES.get(document["mediaType"], document["mediaType"])
    if kind not in _LAYER_TYPES.values():
        raise BuildError(
            f"{where}: layer {document['digest']} has the media type {kind}, "
            "which cannot be copied",
            hint="choose a base whose layers are tars, gzip or zstd",
        )
    return Descriptor(media_type=kind, digest=document["digest"], size=document["size"])


def pick(index: Mapping[str, Any], platform: str, where: str) -> Mapping[str, Any]:
    """Return the first entry of an index for a platform, as Docker does."""
    listed: list[Mapping[str, Any]] = list(index.get("manifests", ()))
    entries = [each for each in listed if each.get("mediaType") in (*MANIFESTS, *INDEXES)]
    found = [each for each in entries if _fits(each.get("platform"), platform)]
    if not found:
        there = sorted({platform_of(each["platform"]) for each in entries if each.get("platform")})
        raise BuildError(
            f"{where} has no image for {platform}",
            hint=f"it has: {', '.join(there)}" if there else "choose another one",
        )
    return found[0]


def _fits(entry: Mapping[str, Any] | None, platform: str) -> bool:
    if not entry:  # the only image of a layout need not name its platform
        return True
    return platform_of(entry) == platform and entry.get("variant") in (None, "", "v8")
