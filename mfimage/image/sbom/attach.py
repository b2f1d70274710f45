"""The SBOM beside an image in a registry: an artifact whose subject is the image."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING

from mfimage.errors import RegistryError
from mfimage.image.plan.layers import BlobPath, code_files, sbom_file
from mfimage.image.registry.client import RegistryClient, open_registry, repository_of
from mfimage.image.registry.descriptors import MANIFEST, Descriptor
from mfimage.image.registry.reference import Reference, parse_reference
from mfimage.image.sbom.document import MEDIA_TYPE
from mfimage.package.spec import sha256_digest

if TYPE_CHECKING:
    from mfimage.image.builder import BuiltImage

EMPTY = b"{}"  # an artifact's configuration
NOT_ATTACHED = "the SBOM is in the image, but not attached to it"
_EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
_LARGEST = 32 << 20


def attach_sboms(
    images: Sequence[BuiltImage], digests: Sequence[str], blob_path: BlobPath,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Attach their SBOMs to images that were built and pushed."""
    where = {pinned.name: pinned for pinned in map(parse_reference, digests)}
    for pinned in (where[name] for name in sorted(where)):
        for image in images:
            sbom = sbom_file(code_files(image.plan, blob_path))
            attach_sbom(pinned, image.digest or pinned.digest or "", sbom, say)


def attach_sbom(reference: Reference, digest: str, sbom: bytes, say: Callable[[str], None]) -> None:
    """Attach an SBOM to an image in a registry."""
    # A registry that refuses it is only reported, since the SBOM is inside the image too.
    try:
        repository = repository_of(reference)
        with closing(open_registry(reference)) as client:
            if found := client.manifest(repository, digest):
                for data in (EMPTY, sbom):
                    opened = partial(BytesIO, data)
                    client.push_blob(repository, sha256_digest(data), len(data), opened)
                push_artifact(client, repository, found[0], sbom)
    except RegistryError as error:
        say(f"{NOT_ATTACHED}: {error.message}")


def push_artifact(
    client: RegistryClient, repository: str, subject: Descriptor, sbom: bytes
) -> None:
    """Attach an SBOM, which is pushed like `EMPTY`; doing so again changes nothing."""
    document = {
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": MEDIA_TYPE,
        "config": _descriptor(_EMPTY_TYPE, EMPTY), "layers": [_descriptor(MEDIA_TYPE, sbom)],
        "subject": subject.to_dict(),
    }  # fmt: skip
    manifest = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    client.push_manifest(repository, sha256_digest(manifest), MANIFEST, manifest)


def attached_sbom(reference: Reference, digest: str) -> bytes | None:
    """Return the SBOM that is attached to an image; None if there is none."""
    repository = repository_of(reference)
    with closing(open_registry(reference)) as client:
        for referrer in client.referrers(repository, digest, MEDIA_TYPE):
            found = client.manifest(repository, referrer.digest)
            layers = json.loads(found[1]).get("layers", []) if found else []
            if len(layers) == 1 and layers[0]["size"] <= _LARGEST:
                return b"".join(client.blob(repository, layers[0]["digest"]))
    return None


def _descriptor(media_type: str, data: bytes) -> dict[str, object]:
    return Descriptor(media_type=media_type, digest=sha256_digest(data), size=len(data)).to_dict()
