"""Which builder it is, and that an image always has somewhere to go."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from mfimage.errors import EngineError, OptionError
from mfimage.image.builders import open_builder
from mfimage.image.docker.command import DockerCommand
from mfimage.image.docker.engine import Engine, connect
from mfimage.image.plan.options import BuildOptions, parse_cache
from mfimage.image.plan.settings import make_options
from mfimage.image.registry.location import Location

OUT = Location(kind="oci", path=Path("out"))


@pytest.fixture
def engine(monkeypatch) -> None:
    found = SimpleNamespace(close=lambda: None)
    monkeypatch.setattr(Engine, "connect", classmethod(lambda cls: found))
    command = DockerCommand(path="docker", buildx=(0, 29))
    monkeypatch.setattr(DockerCommand, "find", classmethod(lambda cls: command))


@pytest.fixture
def no_engine(engine, monkeypatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere.sock")
    monkeypatch.setattr(Engine, "connect", classmethod(lambda cls: cls(connect())))


@pytest.fixture
def no_command(engine, monkeypatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(Engine, "connect", classmethod(lambda cls: SimpleNamespace()))


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
        ({"base_image": OUT, "output_engine": True}, "a base in oci:out"),
        ({"platform": "linux/amd64,linux/arm64", "output_engine": True}, "several platforms"),
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


@pytest.mark.parametrize("options", [{}, {"builder": "oci"}, {"output_engine": True}])
def test_an_image_has_to_go_somewhere(no_engine, options):
    with pytest.raises(OptionError, match=r"nowhere to go: .*/nowhere\.sock") as raised:
        chosen(**options)
    assert "--output docker, oci:DIR" in raised.value.hint


def test_the_docker_builder_needs_an_engine(no_engine):
    with pytest.raises(EngineError, match=r"/nowhere\.sock"):
        chosen(builder="docker", push=True)


def test_the_docker_builder_needs_the_command(no_command):
    with pytest.raises(EngineError, match="no `docker` command on PATH") as raised:
        chosen(builder="docker")
    assert "--builder oci, which needs no Docker" in raised.value.hint
    name, (line,) = chosen(push=True)
    assert (name, line) == (
        "oci",
        "builder: oci (there is no `docker` command on PATH, which builds the image)",
    )


def test_a_cache_of_buildx_is_for_docker(engine):
    cache = parse_cache("type=gha,scope=iris", field="cache-to")
    assert chosen(cache_from=(cache,), cache_to=cache)[0] == "docker"
    for options in ({"cache_from": (cache,)}, {"cache_to": cache}):
        with pytest.raises(OptionError, match=r"type=gha,scope=iris is a cache of buildx"):
            chosen(builder="oci", push=True, **options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("type=gha,token=abc", "token is a credential"),
        ("type=s3,bucket=b,secret_access_key=abc", "secret_access_key is a credential"),
        ("type=registry,ref=https://u:abc@h/x", "has a password in it"),
        ("mode=max", "'mode=max' has no type"),
        ("UPPER", "cache-from"),
    ],
)
def test_wrong_caches_are_named(text, message):
    with pytest.raises(OptionError, match=message) as raised:
        parse_cache(text, field="cache-from")
    assert "abc" not in str(raised.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"output": "somewhere"}, "output: 'somewhere' is nowhere an image can go"),
        ({"output": "oci:"}, "output: 'oci:' has no path"),
        ({"builder": "podman"}, "builder: there is no builder 'podman'"),
        ({"compression": "xz"}, "compression: there is no compression 'xz'"),
        ({"platform": "linux/amd64,amiga"}, "platform: 'amiga' is no platform"),
    ],
)
def test_wrong_options_are_named(given, message):
    with pytest.raises(OptionError) as raised:
        make_options(**given)
    assert message in str(raised.value)


def test_where_images_go_and_come_from():
    options = make_options(
        output="docker-archive:a/b.tar", base_image="oci:layouts/python",
        platform="linux/aarch64,linux/x86_64,linux/arm64",
    )  # fmt: skip
    assert options.output == Location(kind="docker-archive", path=Path("a/b.tar"))
    assert options.base_image == Location(kind="oci", path=Path("layouts/python"))
    assert options.platforms == ("linux/arm64", "linux/amd64")
    assert make_options(output="docker").output_engine
