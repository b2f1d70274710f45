"""Attaches an image's SBOM to it in a registry: an artifact whose subject is the image."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING

from mfimage.errors import RegistryError
from mfimage.image.find.seen import sbom_of
from mfimage.image.oci.base import read_image
from mfimage.image.plan.layers import BlobPath, code_files, sbom_file
from mfimage.image.registry.client import RegistryClient, open_registry, repository_of
from mfimage.image.registry.descriptors import MANIFEST, Descriptor
from mfimage.image.registry.reference import Reference, parse_reference
from mfimage.image.sbom.document import MEDIA_TYPE
from mfimage.package.spec import sha256_digest

if TYPE_CHECKING:
    from mfimage.image.builder import BuiltImage

_EMPTY = b"{}"
_EMPTY_TYPE = "application/vnd.oci.empty.v1+json"


def attach_sboms(
    images: Sequence[BuiltImage],
    digests: Sequence[str],
    blob_path: BlobPath,
    say: Callable[[str], None],
) -> None:
    """Attach to each image that was pushed what is in it.

    A registry that does not take it is no reason to fail: the image holds its SBOM, too.

    Parameters
    ----------
    images : sequence of BuiltImage
        One a platform.
    digests : sequence of str
        ``repository@sha256:...`` of each tag.
    blob_path : callable
        Returns where a blob is.
    say : callable
        Told when a registry refuses.
    """
    where = {(pinned.name, pinned) for pinned in map(parse_reference, digests)}
    for _, pinned in sorted(where, key=lambda each: each[0]):
        for image in images:
            digest = image.digest or pinned.digest or ""
            sbom = sbom_file(code_files(image.plan, blob_path))
            try:
                attach_sbom(pinned, digest, sbom)
            except RegistryError as error:
                say(f"the SBOM is in the image, but not attached to it: {error.message}")


def attach_found(digests: Sequence[str], say: Callable[[str], None]) -> None:
    """Attach to images that were pushed, not built here, the SBOMs that stand in them.

    Parameters
    ----------
    digests : sequence of str
        ``repository@sha256:...`` of images and indexes.
    say : callable
        Told when a registry refuses.
    """
    for pinned in map(parse_reference, sorted(set(digests))):
        try:
            for image in _images(pinned):
                with read_image(image, "") as stored:
                    if (sbom := sbom_of(stored)) is not None:
                        attach_sbom(image, image.digest or "", sbom)
        except RegistryError as error:
            say(f"the SBOM is in the image, but not attached to it: {error.message}")


def _images(pinned: Reference) -> list[Reference]:
    """Return an image, or those of an index."""
    with closing(open_registry(pinned)) as client:
        found = client.manifest(repository_of(pinned), pinned.digest or "")
    entries = json.loads(found[1]).get("manifests") if found else None
    if entries is None:
        return [pinned]
    return [pinned.with_digest(each["digest"]) for each in entries]


def attach_sbom(reference: Reference, digest: str, sbom: bytes) -> None:
    """Attach an SBOM to an image that was pushed, unless it has that one.

    Parameters
    ----------
    reference : Reference
        Names the repository.
    digest : str
        The image's manifest.
    sbom : bytes
        The document.

    Raises
    ------
    RegistryError
        When the registry refuses.
    """
    repository = repository_of(reference)
    with closing(open_registry(reference)) as client, ThreadPoolExecutor(3) as pool:
        # Side by side: a build after an edit takes hardly longer than these requests.
        listed = pool.submit(client.referrers, repository, digest, MEDIA_TYPE)
        pushed = [pool.submit(_push, client, repository, data) for data in (_EMPTY, sbom)]
        found = client.manifest(repository, digest)
        if found is None:
            return
        manifest = _manifest(found[0], sbom)
        if sha256_digest(manifest) in {each.digest for each in listed.result()}:
            return
        for each in pushed:
            each.result()
        client.push_manifest(repository, sha256_digest(manifest), MANIFEST, manifest)


def _manifest(subject: Descriptor, sbom: bytes) -> bytes:
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": MEDIA_TYPE,
        "config": _descriptor(_EMPTY_TYPE, _EMPTY),
        "layers": [_descriptor(MEDIA_TYPE, sbom)],
        "subject": subject.to_dict(),
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _descriptor(media_type: str, data: bytes) -> dict[str, object]:
    return Descriptor(media_type=media_type, digest=sha256_digest(data), size=len(data)).to_dict()


def _push(client: RegistryClient, repository: str, data: bytes) -> None:
    client.push_blob(repository, sha256_digest(data), len(data), lambda: io.BytesIO(data))
