"""Finds an image wherever it stands: engine, registry, folder or file; nothing is pulled."""

from __future__ import annotations

import json
import platform as machine
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from mfimage.errors import EngineError, OptionError, ReferenceNotFound
from mfimage.image.find.seen import (
    ENGINE,
    FILES,
    MOST,
    REGISTRY,
    SBOM_PATH,
    SeenImage,
    SeenLayer,
    sbom_of,
    seen,
)
from mfimage.image.plan.options import LABEL_PREFIX
from mfimage.image.registry.location import Location, parse_location
from mfimage.image.registry.reference import DEFAULT_TAG, Reference, parse_reference
from mfimage.image.sbom.document import MEDIA_TYPE

if TYPE_CHECKING:
    from mfimage.image.registry.client import RegistryClient

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def see_image(name: str, *, platform: str | None = None, engine: bool = True) -> SeenImage:
    """Look at an image: in a folder or file if it is named so, else the engine, else a registry.

    Parameters
    ----------
    name : str
        ``oci:DIR``, ``oci-archive:FILE``, ``docker-archive:FILE``, or a name or ID.
    platform : str, optional
        Which of an index; this machine's by default.
    engine : bool
        Whether the engine is asked before a registry.

    Raises
    ------
    ReferenceNotFound
        When it is nowhere.
    MfimageError
        When where it should be cannot be read.
    """
    if location := parse_location(name, field="image"):
        return _in_files(name, location, platform)
    absent: EngineError | None = None
    try:
        if engine and (found := _in_engine(name, platform)):
            return found
    except EngineError as error:
        absent = error
    if found := _in_registry(name, platform):
        return found
    why = f" ({absent.message})" if absent else ""
    raise ReferenceNotFound(
        f"{name!r} is neither a reference nor an image that the Docker engine has{why}",
        hint="a reference ends in function.json; name an image of a registry whole, "
        "as registry.example.com/team/name:tag, one in a folder as oci:DIR",
    )


def _in_engine(name: str, platform: str | None) -> SeenImage | None:
    from mfimage.image.docker.engine import Engine

    with Engine.connect() as engine:
        info = engine.inspect(name)
        if info is None or (platform and not _same(info.platform, platform)):
            return None
        ours = f"{LABEL_PREFIX}version" in info.labels
        sbom = engine.read_file(info.id, SBOM_PATH) if ours else None
    layers = [entry for entry in info.history if entry.size]
    return SeenImage(
        name=name,
        place=ENGINE,
        info=info,
        layers=tuple(
            SeenLayer(digest=None, size=entry.size, instruction=entry.created_by)
            for entry in layers
        ),
        digest=next((each.partition("@")[2] for each in info.repo_digests), None),
        sbom=sbom,
    )


def _same(one: str, other: str) -> bool:
    return one.split("/")[:2] == other.split("/")[:2]


def _in_registry(name: str, platform: str | None) -> SeenImage | None:
    from mfimage.image.registry.client import open_registry, repository_of

    try:
        reference = parse_reference(name)
    except OptionError:
        return None  # an ID, which engines alone know
    if "/" not in reference.name:
        return None  # nobody's function is one of Docker Hub's own images
    with closing(open_registry(reference)) as client:
        wanted = reference.digest or reference.tag or DEFAULT_TAG
        found = client.manifest(repository_of(reference), wanted)
        if found is None:
            raise ReferenceNotFound(
                f"{name!r} is neither in the Docker engine nor in the registry {client.host}",
                hint="check the name and the tag",
            )
        top, document = found[0].digest, json.loads(found[1])
        platforms = _platforms(document)
        platform = _choose(name, platforms, platform)
        return _read_remote(client, reference.with_digest(top), name, platform, platforms)


def _platforms(document: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what an index has images for; attestations name no platform."""
    found = [each.get("platform") or {} for each in document.get("manifests", ())]
    names = [f"{each.get('os')}/{each.get('architecture')}" for each in found]
    return tuple(name for name in names if "unknown" not in name and "None" not in name)


def _choose(name: str, platforms: Sequence[str], platform: str | None) -> str:
    here = machine.machine()
    usual = f"linux/{_ARCHITECTURES.get(here, here)}"
    if platform is None:
        return usual if usual in platforms or not platforms else platforms[0]
    if platforms and platform not in platforms:
        raise ReferenceNotFound(
            f"{name!r} has no image for {platform}", hint=f"it has: {', '.join(platforms)}"
        )
    return platform


def _read_remote(
    client: RegistryClient,
    pinned: Reference,
    name: str,
    platform: str,
    platforms: tuple[str, ...],
) -> SeenImage:
    from mfimage.image.oci.base import read_image

    with read_image(pinned, platform) as stored:
        sbom = _attached(client, pinned, stored.digest) or sbom_of(stored)
    index = pinned.digest if pinned.digest != stored.digest else None
    return seen(name, REGISTRY, stored, index=index, platforms=platforms, sbom=sbom)


def _attached(client: RegistryClient, pinned: Reference, digest: str | None) -> bytes | None:
    """Return the SBOM that a registry has beside an image."""
    from mfimage.image.registry.client import repository_of

    repository = repository_of(pinned)
    for referrer in client.referrers(repository, digest, MEDIA_TYPE) if digest else ():
        found = client.manifest(repository, referrer.digest)
        layers = json.loads(found[1]).get("layers", []) if found else []
        if len(layers) == 1 and layers[0]["size"] <= MOST:
            return b"".join(client.blob(repository, layers[0]["digest"]))
    return None


def _in_files(name: str, location: Location, platform: str | None) -> SeenImage:
    from mfimage.image.oci.base import read_image
    from mfimage.image.oci.layout import platforms_of

    platforms = platforms_of(location)
    platform = _choose(name, platforms, platform)
    with read_image(location, platform) as stored:
        return seen(name, FILES, stored, platforms=platforms, sbom=sbom_of(stored))
