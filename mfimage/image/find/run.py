"""Images in folders and files, as this machine would run them."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from mfimage.errors import EngineError
from mfimage.image.docker.engine import Engine
from mfimage.image.find.info import ImageInfo
from mfimage.image.find.seen import info_of
from mfimage.image.oci.base import read_image
from mfimage.image.oci.config import Composed, recompose
from mfimage.image.oci.images import StoredImage
from mfimage.image.registry.location import DOCKER_ARCHIVE, Location, parse_location
from mfimage.image.registry.reference import Reference, parse_reference
from mfimage.package.spec import sha256_digest

# By what Python calls a machine.
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def machine_platform() -> str:
    """Return this machine's platform, as ``linux/amd64``."""
    machine = platform.machine()
    return f"linux/{_ARCHITECTURES.get(machine, machine)}"


@contextmanager
def image_at(location: Location) -> Iterator[tuple[Composed, ImageInfo]]:
    """Read the image for this machine; its layers can be opened while the block lasts.

    Raises
    ------
    BuildError
        When there is none, or it is damaged.
    """
    with read_image(location, machine_platform()) as stored:
        sizes = [layer.descriptor.size for layer in stored.layers]
        identity = sha256_digest(stored.raw_config)
        yield recompose(stored), dataclasses.replace(info_of(stored.config, sizes), id=identity)


@contextmanager
def saved(image: str) -> Iterator[Location]:
    """Write an image of the engine's to a file, until the block ends.

    Raises
    ------
    EngineError
        If the engine does not have it, or goes away.
    """
    with TemporaryDirectory(prefix="mfimage-") as folder:
        path = Path(folder) / "image.tar"
        with Engine.connect() as engine, path.open("wb") as file:
            for chunk in engine.save(image):
                file.write(chunk)
        yield Location(kind=DOCKER_ARCHIVE, path=path)


@contextmanager
def image_anywhere(name: str, platform: str) -> Iterator[StoredImage]:
    """Read an image in a folder or file, in the engine, or in a registry, in this order.

    Raises
    ------
    MfimageError
        If it is nowhere.
    """
    with ExitStack() as stack:
        source: Reference | Location | None = parse_location(name, field="image")
        if source is None and in_engine(name):
            source = stack.enter_context(saved(name))
        source = source or parse_reference(name)
        yield stack.enter_context(read_image(source, platform))


def in_engine(name: str) -> bool:
    """Tell whether an engine answers and has an image."""
    try:
        with Engine.connect() as engine:
            return engine.inspect(name) is not None
    except EngineError:
        return False
