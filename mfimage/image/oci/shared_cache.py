"""Layers in a registry, for machines that have none: ``--cache-to`` and ``--cache-from``.

A cache is an artifact whose layers are the image's own, each with what went into it. So a fresh
machine that pushes to the same registry need not even fetch what it did not have to make.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from functools import partial

from mfimage.errors import RegistryError
from mfimage.image.oci.base import Images
from mfimage.image.oci.cache import LayerCache
from mfimage.image.oci.images import StoredLayer, encode, layer_descriptor
from mfimage.image.oci.layers import PlannedLayer
from mfimage.image.oci.layout import stored
from mfimage.image.registry.client import repository_of
from mfimage.image.registry.descriptors import MANIFEST
from mfimage.image.registry.reference import DEFAULT_TAG, Reference
from mfimage.package.spec import BlobRef, sha256_digest

ARTIFACT_TYPE = "application/vnd.mfimage.layers.v1"
_EMPTY = b"{}"
_EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
_INPUTS, _DIFF_ID = "io.mfimage.inputs", "io.mfimage.diff-id"


class SharedCache:
    """Layers of this machine, and those of registries.

    Parameters
    ----------
    local : LayerCache
        This machine's.
    images : Images
        Reads from registries.
    sources : sequence of Reference
        Where further layers are, the first that has one first.
    """

    def __init__(
        self,
        local: LayerCache,
        images: Images,
        *,
        sources: Sequence[Reference],
    ) -> None:
        self._local = local
        self._images = images
        self._sources = sources
        self._imported: Mapping[str, StoredLayer] | None = None
        self._used: dict[str, StoredLayer] = {}

    def layer(self, planned: PlannedLayer) -> tuple[StoredLayer, bool]:
        """Return a layer, and whether it was there: here, in a cache, else it is made."""
        key = self._local.key(planned.inputs)
        if (found := self._local.find(planned.inputs)) is not None:
            layer, cached = stored(found), True
        elif not self._local.fresh and key in self._others():
            layer, cached = self._others()[key], True
        else:
            made = self._local.layer(planned.inputs, planned.chunks)
            layer, cached = stored(made), made.cached
        self._used[key] = layer
        return layer, cached

    def _others(self) -> Mapping[str, StoredLayer]:
        if self._imported is None:
            found: dict[str, StoredLayer] = {}
            for source in self._sources:
                found = {**self._read(source), **found}
            self._imported = found
        return self._imported

    def _read(self, source: Reference) -> dict[str, StoredLayer]:
        client, repository = self._images.client(source), repository_of(source)
        answer = client.manifest(repository, source.digest or source.tag or DEFAULT_TAG)
        if answer is None:
            return {}  # nobody has exported yet
        manifest = json.loads(answer[1])
        if manifest.get("artifactType") != ARTIFACT_TYPE:
            raise RegistryError(
                f"cache-from: {source} is no cache of the oci builder's",
                hint="name what --cache-to wrote with --builder oci; an image's name is of use "
                "with --builder docker alone",
            )
        found = {}
        for plain in manifest["layers"]:
            descriptor = layer_descriptor(plain, str(source))
            ref = BlobRef(digest=descriptor.digest, size=descriptor.size)
            found[plain["annotations"][_INPUTS]] = StoredLayer(
                descriptor=descriptor,
                diff_id=plain["annotations"][_DIFF_ID],
                open=partial(self._images.open_blob, client, repository, ref),
                source=(client.host, repository),
            )
        return found

    def export(self, target: Reference, pushed: Sequence[Reference]) -> None:
        """Push the layers that were used, for others to find.

        Parameters
        ----------
        target : Reference
            What to call the cache.
        pushed : sequence of Reference
            Where the image was pushed: its layers are mounted from there.
        """
        client, repository = self._images.client(target), repository_of(target)
        near = {repository_of(each) for each in pushed if each.registry == target.registry}
        for layer in self._used.values():
            host, origin = layer.source or ("", "")
            sources = {*near, *([origin] if host == client.host else [])}
            client.push_blob(
                repository, layer.descriptor.digest, layer.descriptor.size, layer.open,
                sources=tuple(sorted(sources - {repository})),
            )  # fmt: skip
        client.push_blob(repository, sha256_digest(_EMPTY), len(_EMPTY), lambda: io.BytesIO(_EMPTY))
        name = target.tag or DEFAULT_TAG
        client.push_manifest(repository, name, MANIFEST, encode(self._manifest()))

    def _manifest(self) -> dict[str, object]:
        empty = {
            "mediaType": _EMPTY_TYPE, "digest": sha256_digest(_EMPTY), "size": len(_EMPTY)
        }  # fmt: skip
        layers = [
            {
                **layer.descriptor.to_dict(),
                "annotations": {_INPUTS: key, _DIFF_ID: layer.diff_id},
            }
            for key, layer in sorted(self._used.items())
        ]
        return {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": ARTIFACT_TYPE,
            "config": empty,
            "layers": layers,
        }
