"""Reading images, wherever they lie: manifest and configuration; layers when they are wanted."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from mfimage.errors import RegistryError
from mfimage.image.oci.cache import LayerCache
from mfimage.image.oci.compression import GZIP
from mfimage.image.oci.images import StoredImage, StoredLayer, layer_descriptor, pick
from mfimage.image.oci.layout import open_location
from mfimage.image.registry.client import RegistryClient, open_registry, repository_of
from mfimage.image.registry.location import Location
from mfimage.image.registry.reference import DEFAULT_TAG, Reference
from mfimage.package.spec import BlobRef
from mfimage.package.storage.blobs import BlobCache, Held


@contextlib.contextmanager
def read_image(source: Reference | Location, platform: str) -> Iterator[StoredImage]:
    """Yield an image for a platform; its layers can be opened while the block lasts."""
    layers = LayerCache(GZIP)
    images = Images(layers)
    try:
        yield images.read(source, platform)
    finally:
        images.close()
        layers.close()


class Images:
    """Images of registries, folders and files; what was fetched is kept in the user's cache folder.

    Parameters
    ----------
    layers : LayerCache
        Keeps compressed what lies uncompressed in Docker archives.
    """

    def __init__(self, layers: LayerCache) -> None:
        self._layers = layers
        self._blobs = BlobCache()
        self._held: list[Held] = []
        self._clients: dict[str, RegistryClient] = {}

    def client(self, reference: Reference) -> RegistryClient:
        """Return the registry that a reference names."""
        if reference.registry not in self._clients:
            self._clients[reference.registry] = open_registry(reference)
        return self._clients[reference.registry]

    def read(self, source: Reference | Location, platform: str) -> StoredImage:
        """Read the image for a platform.

        Raises
        ------
        RegistryError
            When the registry does not have it, or cannot be reached.
        BuildError
            When there is none for the platform.
        """
        if isinstance(source, Location):
            return open_location(source, platform, self._layers)
        client, reference = self.client(source), source
        repository, where = repository_of(reference), str(reference)
        wanted = reference.digest or reference.tag or DEFAULT_TAG
        digest, raw_manifest = self._manifest(client, repository, wanted, where)
        manifest = json.loads(raw_manifest)
        while "manifests" in manifest:
            entry = pick(manifest, platform, where)
            digest, raw_manifest = self._manifest(client, repository, entry["digest"], where)
            manifest = json.loads(raw_manifest)
        described = manifest["config"]
        ref = BlobRef(digest=described["digest"], size=described["size"])
        raw_config = self._path(client, repository, ref).read_bytes()
        config = json.loads(raw_config)
        pairs = zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True)
        return StoredImage(
            digest=digest,
            config=config,
            raw_config=raw_config,
            raw_manifest=raw_manifest,
            layers=tuple(
                self._layer(client, repository, plain, diff_id, where) for plain, diff_id in pairs
            ),
        )

    def _manifest(
        self, client: RegistryClient, repository: str, wanted: str, where: str
    ) -> tuple[str, bytes]:
        found = client.manifest(repository, wanted)
        if found is None:
            raise RegistryError(
                f"{client.host} has no image {where}",
                hint="check the name; a base in a folder or file is named as oci:DIR, "
                "oci-archive:FILE or docker-archive:FILE",
            )
        manifest = json.loads(found[1])
        if "manifests" not in manifest and "layers" not in manifest:
            raise RegistryError(f"{where} is no image, but {found[0].media_type}")
        return found[0].digest, found[1]

    def _layer(
        self,
        client: RegistryClient,
        repository: str,
        plain: Mapping[str, Any],
        diff_id: str,
        where: str,
    ) -> StoredLayer:
        descriptor = layer_descriptor(plain, where)
        ref = BlobRef(digest=descriptor.digest, size=descriptor.size)
        return StoredLayer(
            descriptor=descriptor,
            diff_id=diff_id,
            open=partial(self.open_blob, client, repository, ref),
            source=(client.host, repository),
        )

    def open_blob(self, client: RegistryClient, repository: str, ref: BlobRef) -> BinaryIO:
        """Open a blob, which is fetched if it is not here."""
        return self._path(client, repository, ref).open("rb")

    def _path(self, client: RegistryClient, repository: str, ref: BlobRef) -> Path:
        def fetch(ref: BlobRef, file: BinaryIO) -> None:
            file.seek(0)
            file.truncate()
            for chunk in client.blob(repository, ref.digest):
                file.write(chunk)

        held = self._blobs.hold(ref, fetch)
        self._held.append(held)
        return held.path

    def close(self) -> None:
        """Let go of registries and blobs."""
        for client in self._clients.values():
            client.close()
        for held in self._held:
            held.release()
        self._held.clear()
