"""Where an image is found: in which order places are searched, and what is said if none has it."""

from __future__ import annotations

from contextlib import AbstractContextManager

import pytest

from mfimage.errors import EngineError, ReferenceNotFound
from mfimage.image.find.info import ImageInfo
from mfimage.image.find.places import FILES, FoundImage, Place, find_image, machine_platform
from mfimage.image.oci.images import StoredImage
from tests.image.oci.bases import layout


class Shelf:
    """A place with images by name."""

    def __init__(self, name: str, *names: str, error: Exception | None = None) -> None:
        self.name = name
        self._names = names
        self._error = error
        self.asked = 0

    def find(self, name: str, platform: str | None) -> FoundImage | None:
        self.asked += 1
        if self._error:
            raise self._error
        if name not in self._names:
            raise ReferenceNotFound(f"not in {self.name}")
        return FoundImage(name=name, place=self, info=ImageInfo(id=self.name))

    def open(self, image: FoundImage, platform: str) -> AbstractContextManager[StoredImage]:
        raise AssertionError("layers are opened only when they are asked for")

    def read_sbom(self, image: FoundImage) -> bytes | None:
        return self.name.encode()


def test_the_first_place_that_has_it_is_asked_last() -> None:
    engine, registry = Shelf("engine", "a"), Shelf("registry", "a", "b")
    places: list[Place] = [FILES, engine, registry]
    assert find_image("a", places=places).place is engine
    assert registry.asked == 0
    found = find_image("b", places=places)
    assert found.place is registry
    assert found.sbom() == b"registry"


def test_an_engine_that_does_not_respond_has_no_images() -> None:
    engine = Shelf("engine", error=EngineError("no engine responds"))
    assert find_image("a", places=(engine, Shelf("registry", "a"))).place.name == "registry"
    with pytest.raises(ReferenceNotFound) as raised:
        find_image("b", places=(engine, Shelf("registry", "a")))
    assert raised.value.message == "no image 'b': no engine responds; not in registry"


def test_an_image_in_a_folder_is_sought_nowhere_else(tmp_path) -> None:
    other = machine_platform().replace("amd64", "arm64")
    location = layout(tmp_path / "image", platforms=(machine_platform(), other), User="1000")
    found = find_image(str(location))
    assert (found.place, found.platform) == (FILES, machine_platform())
    assert found.platforms == (machine_platform(), other)
    assert found.info.user == "1000"
    assert found.sbom() is None, "others built it"
    with found.open() as stored:
        assert stored.digest == found.digest
    with found.open(other) as stored:
        assert stored.platform == other
    assert find_image(str(location), platform=other).platform == other
    with pytest.raises(ReferenceNotFound, match=f"for {machine_platform()}.*, not for linux/s390x"):
        find_image(str(location), platform="linux/s390x")
