"""Which builder it is, and that an image always has somewhere to go."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from mfimage.errors import EngineError, OptionError
from mfimage.image.builders import open_builder
from mfimage.image.engine import Engine
from mfimage.image.plan.options import ENGINE, BuildOptions
from mfimage.image.plan.settings import make_options
from mfimage.image.registry.location import Location

OUT = Location(kind="oci", path=Path("out"))


@pytest.fixture
def engine(monkeypatch) -> None:
    found = SimpleNamespace(close=lambda: None)
    monkeypatch.setattr(Engine, "connect", classmethod(lambda cls: found))


@pytest.fixture
def no_engine(monkeypatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere.sock")


def chosen(*, push: bool = False, **options) -> tuple[str, list[str]]:
    said: list[str] = []
    builder = open_builder(
        BuildOptions(**options), push=push, secrets={}, on_event=lambda _: None, say=said.append
    )
    builder.close()
    return builder.name, said


def test_docker_when_an_engine_answers(engine):
    assert chosen() == ("docker", ["builder: docker (a Docker engine answers)"])


def test_oci_when_none_does(no_engine):
    name, (line,) = chosen(push=True)
    assert name == "oci"
    assert line.startswith("builder: oci (no Docker engine")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"output": OUT}, "--output oci:out"),
        ({"base_image": OUT, "output": OUT}, "--output oci:out"),
        ({"base_image": OUT, "output": ENGINE}, "a base in oci:out"),
        ({"platform": "linux/amd64,linux/arm64", "output": ENGINE}, "several platforms"),
    ],
)
def test_oci_when_only_that_can(engine, options, why):
    name, (line,) = chosen(**options)
    assert name == "oci"
    assert why in line
    with pytest.raises(OptionError, match="docker does not do") as raised:
        chosen(builder="docker", **options)
    assert raised.value.hint == "use --builder oci"


def test_what_was_asked_for_is_not_explained(engine):
    assert chosen(builder="docker") == ("docker", [])
    assert chosen(builder="oci", push=True) == ("oci", [])


@pytest.mark.parametrize("options", [{}, {"builder": "oci"}, {"output": ENGINE}])
def test_an_image_has_to_go_somewhere(no_engine, options):
    with pytest.raises(OptionError, match=r"nowhere to go: .*/nowhere\.sock") as raised:
        chosen(**options)
    assert "--output docker, oci:DIR" in raised.value.hint


def test_the_docker_builder_needs_an_engine(no_engine):
    with pytest.raises(EngineError, match=r"/nowhere\.sock"):
        chosen(builder="docker", push=True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"output": "somewhere"}, "output: 'somewhere' is not a place for an image"),
        ({"output": "oci:"}, "output: 'oci:' has no path"),
        ({"builder": "podman"}, "builder: 'podman' is not known"),
        ({"compression": "xz"}, "compression: 'xz' is not known"),
        ({"platform": "linux/amd64,amiga"}, "platform: images cannot be built for 'amiga'"),
    ],
)
def test_wrong_options_are_named(given, message):
    with pytest.raises(OptionError) as raised:
        make_options(given)
    assert message in str(raised.value)


def test_where_images_go_and_come_from():
    options = make_options(
        {
            "output": "docker-archive:a/b.tar",
            "base_image": "oci:layouts/python",
            "platform": "linux/aarch64,linux/x86_64,linux/arm64",
        }
    )
    assert options.output == Location(kind="docker-archive", path=Path("a/b.tar"))
    assert options.base_image == Location(kind="oci", path=Path("layouts/python"))
    assert options.platforms == ("linux/arm64", "linux/amd64")
    assert make_options({"output": "docker"}).output == ENGINE
