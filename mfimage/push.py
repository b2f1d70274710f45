"""push: an image that is there already -> registries."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mfimage.errors import OptionError
from mfimage.image.builder import OnEvent
from mfimage.image.registry.location import Location, parse_location
from mfimage.image.registry.reference import Reference, parse_reference
from mfimage.image.sbom.attach import attach_found


def push(
    what: str,
    tags: Sequence[Reference],
    *,
    on_event: OnEvent = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[str, ...]:
    """Push an image under one or more tags.

    Parameters
    ----------
    what : str
        ``oci:DIR``, ``oci-archive:FILE``, ``docker-archive:FILE``, or the name of an image that
        the Docker engine has.
    tags : sequence of Reference
        What to call it, each with its registry.
    on_event : callable
        Told of every layer.
    say : callable
        Told when a registry does not take the SBOM.

    Returns
    -------
    tuple of str
        ``repository@sha256:...`` of each tag.

    Raises
    ------
    MfimageError
        When it is not there, or a registry refuses.
    """
    if not tags:
        raise OptionError("push: the image has no name", hint="REGISTRY/NAME:TAG")
    location = parse_location(what, field="image")
    if location is not None:
        digests = _push_location(location, tags, on_event)
    else:
        digests = _push_engine(str(parse_reference(what)), tags, on_event)
    attach_found(digests, say)
    return digests


def _push_location(
    location: Location, tags: Sequence[Reference], on_event: OnEvent
) -> tuple[str, ...]:
    from mfimage.image.oci.base import Images
    from mfimage.image.oci.cache import LayerCache
    from mfimage.image.oci.compression import GZIP
    from mfimage.image.oci.config import recompose
    from mfimage.image.oci.layout import platforms_of
    from mfimage.image.oci.pushing import Push, by_repository

    layers = LayerCache(GZIP)
    images = Images(layers)
    try:
        platforms = dict.fromkeys(platforms_of(location))
        composed = [recompose(images.read(location, platform)) for platform in platforms]
        digests: dict[Reference, str] = {}
        for (_, repository), group in by_repository(tags).items():
            names = [tag.tag or "latest" for tag in group]
            digest = Push(images.client(group[0]), repository, on_event).run(composed, names)
            digests |= {tag: f"{tag.name}@{digest}" for tag in group}
        return tuple(digests[tag] for tag in tags)
    finally:
        images.close()
        layers.close()


def _push_engine(name: str, tags: Sequence[Reference], on_event: OnEvent) -> tuple[str, ...]:
    from mfimage.image.docker.engine import Engine

    with Engine.connect() as engine:
        if engine.inspect(name) is None:
            raise OptionError(
                f"push: the Docker engine has no image {name}",
                hint="an image in a folder or file is named as oci:DIR, oci-archive:FILE or "
                "docker-archive:FILE",
            )
        for tag in tags:
            engine.tag(name, str(tag))
        return tuple(f"{tag.name}@{engine.push(str(tag), on_event=on_event)}" for tag in tags)
