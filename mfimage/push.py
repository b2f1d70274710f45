"""push: an existing image -> registries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing

from mfimage.errors import OptionError, ReferenceNotFound, RegistryError
from mfimage.image.builder import OnEvent
from mfimage.image.find.places import ENGINE, FILES, REGISTRY, FoundImage, find_image, sbom_of
from mfimage.image.registry.reference import Reference, parse_reference
from mfimage.image.sbom.attach import NOT_ATTACHED, attach_sbom

Say = Callable[[str], None]


def push(
    image: str,
    tags: Sequence[Reference],
    *,
    on_event: OnEvent = lambda _: None,
    say: Say = lambda _: None,
) -> tuple[str, ...]:
    """Push an image under one or more tags, and attach its SBOM.

    Parameters
    ----------
    image : str
        ``oci:DIR``, ``oci-archive:FILE``, ``docker-archive:FILE``, or the name of an image in the
        Docker engine.
    tags : sequence of Reference
        The names to push, each with its registry.
    on_event : callable
        Receives an event for every layer.
    say : callable
        Receives a line if a registry refuses the SBOM.

    Returns
    -------
    tuple of str
        ``repository@sha256:...`` of each tag.

    Raises
    ------
    MfimageError
        If the image does not exist, or a registry refuses it.
    """
    if not tags:
        raise OptionError("push: the image has no name", hint="REGISTRY/NAME:TAG")
    found = find_image(image, places=(FILES, ENGINE))
    if found.place is ENGINE:
        return _push_from_engine(found, tags, on_event, say)
    return _push_from_files(found, tags, on_event, say)


def _push_from_files(
    found: FoundImage, tags: Sequence[Reference], on_event: OnEvent, say: Say
) -> tuple[str, ...]:
    from mfimage.image.oci.config import recompose
    from mfimage.image.oci.pushing import Push, by_repository
    from mfimage.image.registry.client import open_registry

    with ExitStack() as stack:
        opened = [stack.enter_context(found.open(each)) for each in dict.fromkeys(found.platforms)]
        images = [recompose(stored) for stored in opened]
        sboms = [sbom_of(stored) for stored in opened]
        digests: dict[Reference, str] = {}
        for (_, repository), group in by_repository(tags).items():
            names = [tag.tag or "latest" for tag in group]
            with closing(open_registry(group[0])) as client:
                pushing = Push(client, repository, on_event, say)
                digest = pushing.run(images, names, sboms=sboms)
            digests |= {tag: f"{tag.name}@{digest}" for tag in group}
    return tuple(digests[tag] for tag in tags)


def _push_from_engine(
    found: FoundImage, tags: Sequence[Reference], on_event: OnEvent, say: Say
) -> tuple[str, ...]:
    from mfimage.image.docker.engine import Engine

    with Engine.connect() as engine:
        for tag in tags:
            engine.tag(found.name, str(tag))
        digests = [f"{tag.name}@{engine.push(str(tag), on_event=on_event)}" for tag in tags]
    if sbom := found.sbom():
        for pinned in sorted(set(digests)):
            try:
                # An engine may push an index: the SBOM belongs to the image that it lists.
                pushed = find_image(pinned, platform=found.platform, places=(REGISTRY,))
            except (RegistryError, ReferenceNotFound) as error:
                say(f"{NOT_ATTACHED}: {error.message}")
            else:
                attach_sbom(parse_reference(pinned), pushed.digest or "", sbom, say)
    return tuple(digests)
