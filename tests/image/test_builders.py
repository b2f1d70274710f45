"""Which builder it is, and that an image always has somewhere to go."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from mfimage.errors import EngineError, OptionError
from mfimage.image.builders import open_builder
from mfimage.image.docker import local
from mfimage.image.docker.command import DockerCommand
from mfimage.image.docker.engine import Engine, connect
from mfimage.image.plan.options import ENGINE, BuildOptions, parse_cache
from mfimage.image.plan.settings import make_options
from mfimage.image.registry.location import Location
from mfimage.image.registry.reference import parse_reference

OUT = Location(kind="oci", path=Path("out"))


@pytest.fixture
def engine(monkeypatch) -> None:
    found = SimpleNamespace(close=lambda: None)
    monkeypatch.setattr(Engine, "connect", classmethod(lambda cls: found))
    command = DockerCommand(path="docker", buildx=(0, 29))
    monkeypatch.setattr(DockerCommand, "find", classmethod(lambda cls: command))
    monkeypatch.setattr("mfimage.image.oci.builder.connect", lambda: found)


@pytest.fixture
def no_engine(engine, monkeypatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere.sock")
    monkeypatch.setattr(Engine, "connect", classmethod(lambda cls: cls(connect())))
    monkeypatch.setattr("mfimage.image.oci.builder.connect", local.connect)


@pytest.fixture
def no_command(engine, monkeypatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(Engine, "connect", classmethod(lambda cls: SimpleNamespace()))


def chosen(*, push: bool = False, needs: tuple[str, ...] = (), **options) -> tuple[str, list[str]]:
    said: list[str] = []
    builder = open_builder(
        BuildOptions(**options), system_packages=needs, push=push, secrets={},
        on_event=lambda _: None, say=said.append,
    )  # fmt: skip
    builder.close()
    return builder.name, said


def test_oci_is_the_default(engine):
    assert chosen() == ("oci", [])


def test_oci_needs_no_engine_to_push_or_write(no_engine):
    assert chosen(push=True) == ("oci", [])
    assert chosen(output=OUT) == ("oci", [])


@pytest.mark.parametrize(
    ("options", "compression"),
    [
        ({}, "none"),
        ({"output": ENGINE, "compression": "zstd"}, "none"),
        ({"push": True}, "gzip"),
        ({"output": OUT, "compression": "zstd"}, "zstd"),
        ({"cache_to": parse_reference("localhost:1/cache")}, "gzip"),
        ({"cache_from": (parse_reference("localhost:1/cache"),)}, "gzip"),
    ],
)
def test_only_layers_that_leave_the_engine_are_compressed(
    engine, monkeypatch, options, compression
):
    given = []
    fake = SimpleNamespace(name="oci", engine=None, close=lambda: None)
    monkeypatch.setattr(
        "mfimage.image.oci.builder.OciBuilder",
        lambda **found: given.append(found["compression"]) or fake,
    )
    chosen(**options)
    assert given == [compression]


@pytest.mark.parametrize("needs", [{"apt": ("libgomp1",)}, {"needs": ("libgomp1",)}])
def test_system_packages_are_installed_by_docker(engine, needs):
    name, (line,) = chosen(**needs)
    assert name == "docker"
    assert line.startswith("builder: docker, since")
    assert "libgomp1" in line
    assert chosen(builder="docker", **needs) == ("docker", [])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"output": OUT}, "--output oci:out"),
        ({"compression": "zstd"}, "--compression zstd"),
        ({"base_image": OUT, "output": ENGINE}, "a base in oci:out"),
        ({"platform": "linux/amd64,linux/arm64", "output": ENGINE}, "several platforms"),
    ],
)
def test_docker_says_what_it_does_not_do(engine, options, why):
    assert chosen(**options) == ("oci", [])
    with pytest.raises(OptionError, match=f"docker does not do {why}") as raised:
        chosen(builder="docker", **options)
    assert raised.value.hint == "use --builder oci"
    with pytest.raises(OptionError, match=r"libgomp1, and docker does not do " + why):
        chosen(apt=("libgomp1",), **options)


def test_the_requested_builder_is_not_explained(engine):
    assert chosen(builder="docker") == ("docker", [])
    assert chosen(builder="oci", push=True) == ("oci", [])


@pytest.mark.parametrize("options", [{}, {"builder": "oci"}, {"output": ENGINE}])
def test_an_image_has_to_go_somewhere(no_engine, options):
    with pytest.raises(OptionError, match=r"nowhere to go: .*/nowhere\.sock") as raised:
        chosen(**options)
    for way in ("--push --tag", "--output oci:DIR", "start Docker"):
        assert way in raised.value.hint


def test_system_packages_need_an_engine(no_engine):
    with pytest.raises(EngineError, match=r"system packages.*libgomp1.*nowhere\.sock"):
        chosen(apt=("libgomp1",), push=True)


def test_the_docker_builder_needs_an_engine(no_engine):
    with pytest.raises(EngineError, match=r"/nowhere\.sock"):
        chosen(builder="docker", push=True)


def test_the_docker_builder_needs_the_command(no_command):
    with pytest.raises(EngineError, match="no `docker` command on PATH") as raised:
        chosen(builder="docker")
    assert "--builder oci, which needs no Docker" in raised.value.hint


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


def test_python_files_are_compiled_by_default():
    project = {"compile": False}
    assert make_options({}).compile
    assert not make_options({"compile": False}).compile
    assert not make_options({}, project).compile
    assert make_options({"compile": True}, project).compile
