"""What is known of an image, by its labels and by the user; and the commands that use it."""

from __future__ import annotations

import uuid
from contextlib import contextmanager

import pytest
import yaml
from click.testing import CliRunner

from mfimage.cli import main
from mfimage.errors import EngineError, OptionError, ReferenceNotFound, RegistryError
from mfimage.image.docker.engine import Engine
from mfimage.image.find.info import ImageInfo
from mfimage.image.find.places import FoundImage, find_image
from mfimage.image.oci.config import recompose
from mfimage.image.oci.outputs import docker_archive
from mfimage.image.registry.reference import parse_tag
from mfimage.manifests.kuberay.image import read_ray_image
from mfimage.manifests.kuberay.options import StatedRay
from mfimage.push import push
from tests.image.oci.bases import layout
from tests.support.docker import ensure_engine, registry

FUNCTION = "sha256:" + "0123456789abcdef" * 4
LABELS = {
    "io.mfimage.target": "ray",
    "io.mfimage.function.name": "predict",
    "io.mfimage.function.digest": FUNCTION,
    "io.mfimage.ray-version": "2.60.0",
    "io.mfimage.ray-parts": "default,serve",
    "io.mfimage.python-version": "3.11.7",
}
DIGEST = "sha256:" + "ab" * 32
OTHER = "sha256:" + "cd" * 32


class OneImage:
    """An engine that has one image, or none."""

    name = "engine"

    def __init__(self, info):
        self._info = info

    def find(self, name, platform):
        if self._info is None:
            raise ReferenceNotFound("it is not here")
        return FoundImage(name=name, place=self, info=self._info)


def read(name="registry.example.com/iris:1", labels=LABELS, stated=None, digests=()):
    said = []
    info = None if labels is None else ImageInfo(id="x", labels=labels, repo_digests=digests)
    image = read_ray_image(
        name, stated or StatedRay(allow_tag=True), say=said.append, places=[OneImage(info)]
    )
    return image, said


def test_labels_say_everything():
    image, said = read(
        digests=(f"other.example.com/iris@{OTHER}", f"registry.example.com/iris@{DIGEST}")
    )
    assert image.reference == f"registry.example.com/iris:1@{DIGEST}"
    assert (image.ray_version, image.python_version) == ("2.60.0", "3.11.7")
    assert (image.function, image.digest) == ("predict", FUNCTION)
    assert image.parts == ("default", "serve")
    assert said == []


@pytest.mark.parametrize(
    ("name", "digests", "reference"),
    [
        (f"iris@{OTHER}", (f"iris@{DIGEST}",), f"iris@{OTHER}"),
        ("iris", (f"docker.io/library/iris@{DIGEST}",), f"iris@{DIGEST}"),
        ("iris:1", ("<none>@<none>", f"team/iris@{DIGEST}"), "iris:1"),
    ],
)
def test_only_the_names_own_digest_pins_it(name, digests, reference):
    image, said = read(name, digests=digests)
    assert image.reference == reference
    assert [line for line in said if "the tag of" in line] == ([] if image.pinned else said)
    assert bool(said) != image.pinned


def test_another_target_is_sent_to_build():
    with pytest.raises(OptionError, match="is for fastapi, not for Ray") as raised:
        read(labels={**LABELS, "io.mfimage.target": "fastapi"})
    assert "mfimage build REFERENCE --target ray" in raised.value.hint


def test_of_several_functions_one_is_named():
    several = {k: v for k, v in LABELS.items() if ".function." not in k}
    several |= {"io.mfimage.functions.count": "3"}
    with pytest.raises(OptionError, match="function: not known"):
        read(labels=several)
    stated = StatedRay(allow_tag=True, function="predict/emea")
    image, _ = read(labels=several, stated=stated)
    assert (image.function, image.several) == ("predict/emea", True)


@pytest.mark.parametrize(
    ("labels", "why"), [(None, "it is not here"), ({}, "has no labels of mfimage")]
)
def test_an_image_without_labels_has_to_be_described(labels, why):
    with pytest.raises(OptionError, match=f"ray-version: .*{why}") as raised:
        read(labels=labels)
    assert "--ray-version" in raised.value.hint
    with pytest.raises(OptionError, match="function: "):
        read(labels=labels, stated=StatedRay(allow_tag=True, ray_version="2.60.0"))
    image, said = read(
        labels=labels, stated=StatedRay(allow_tag=True, ray_version="2.60.0", function="predict")
    )
    assert (image.ray_version, image.function, image.digest) == ("2.60.0", "predict", None)
    assert any("no placement resource" in line for line in said)


def test_a_registry_that_cannot_be_read_is_no_obstacle_to_what_is_stated():
    class Broken(OneImage):
        def find(self, name, platform):
            raise RegistryError("it refuses")

    stated = StatedRay(
        allow_tag=True, ray_version="2.60.0", function="predict", function_digest=FUNCTION
    )
    said = []
    image = read_ray_image("iris:1", stated, say=said.append, places=[Broken(None)])
    assert (image.function, image.digest) == ("predict", FUNCTION)
    assert ["the tag of" in line for line in said] == [True]


def test_what_the_user_states_must_agree_with_the_image():
    assert read(stated=StatedRay(allow_tag=True, ray_version="2.60.0"))[0].ray_version == "2.60.0"
    with pytest.raises(OptionError, match=r"ray-version: '2.59.0' is not what .* '2.60.0'"):
        read(stated=StatedRay(allow_tag=True, ray_version="2.59.0"))


# Commands


@pytest.fixture
def here(monkeypatch):
    """An engine that has the image, once pushed."""

    class HasIt:
        def inspect(self, name):
            return ImageInfo(id="x", labels=LABELS, repo_digests=(f"r.example.com/iris@{DIGEST}",))

    @contextmanager
    def connected():
        yield HasIt()

    monkeypatch.setattr(Engine, "connect", connected)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("RayCluster", ["--env", "A=b", "--toleration", "gpu:NoSchedule", "--worker-gpus", "1"]),
        ("RayJob", ["--input", "s3://b/i", "--output", "s3://b/o", "--num-actors", "2"]),
        ("RayService", ["--serve-replicas", "2", "--env-from-secret", "A=s:k"]),
    ],
)  # fmt: skip
def test_a_manifest_is_all_that_stdout_has(here, kind, arguments):
    result = CliRunner().invoke(
        main, ["manifest", kind.lower(), "r.example.com/iris:1", *arguments]
    )
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    manifest = yaml.safe_load(result.stdout)
    assert manifest["kind"] == kind
    assert f'image: "r.example.com/iris:1@{DIGEST}"' in result.stdout


@pytest.mark.docker  # the registry's package is installed with the engine's
@pytest.mark.parametrize("platforms", [("linux/amd64",), ("linux/amd64", "linux/arm64")])
def test_an_image_in_a_registry_is_read_without_an_engine(tmp_path, no_engine, platforms):
    source = layout(tmp_path / "layout", platforms=platforms, Labels=LABELS)
    with registry("plain", directory=tmp_path) as running:
        name = f"{running.address}/team/iris:1"
        (pinned,) = push(str(source), [parse_tag(name)])
        result = CliRunner().invoke(main, ["manifest", "rayservice", name])
        absent = CliRunner().invoke(main, ["manifest", "rayservice", f"{name}0"])
        shown = CliRunner().invoke(main, ["inspect", name, "--all"])
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    manifest = yaml.safe_load(result.stdout)
    assert manifest["spec"]["rayClusterConfig"]["rayVersion"] == "2.60.0"
    # Of an index its own: each node chooses from it.
    assert f'image: "{name}@{pinned.partition("@")[2]}"' in result.stdout
    assert manifest["metadata"]["annotations"]["io.mfimage.function.digest"] == FUNCTION
    assert absent.exit_code == 1
    assert f"not in the registry {running.address}" in absent.stderr
    assert ["from", "registry"] in [line.split() for line in shown.stdout.splitlines()]


@pytest.fixture
def no_engine(monkeypatch):
    def connect():
        raise EngineError("no engine responds")

    monkeypatch.setattr(Engine, "connect", connect)


def test_without_an_engine_the_user_describes_it(no_engine):
    command = ["manifest", "raycluster", "iris:1", "--allow-tag"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1
    assert "error: ray-version: not known: no image 'iris:1'" in result.stderr
    assert "no engine responds" in result.stderr
    command += ["--ray-version", "2.60.0", "--function", "f", "--function-digest", FUNCTION]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0
    assert "mfimage-0123456789abcdef" in result.stdout
    assert "the manifest has the tag of iris:1" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["raycluster", "absent:1"],
            "image: the digest of absent:1 is not known: no image 'absent:1'",
        ),
        (
            ["raycluster", "IRIS", "--ray-version", "2.60"],
            "image: 'IRIS' is not an image",
        ),
        (["raycluster", "i", "--worker-memory", "8GB"], "worker-memory: '8GB'"),
        (["rayjob", "i", "--input", "a|b", "--output", "o"], "input: 'a|b' has the character '|'"),
        (["rayservice", "i", "--serve-replicas", "0"], "serve-replicas: 0 is out of range"),
    ],
)
def test_options_are_refused_by_name(arguments, said):
    result = CliRunner().invoke(main, ["manifest", *arguments])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {said}")
    assert "\nhint: " in result.stderr


@pytest.mark.docker
def test_a_real_engine_says_it(tmp_path):
    ensure_engine()
    name = f"mfimage-test/{uuid.uuid4().hex}:1"
    location = layout(tmp_path / "layout", Labels=LABELS)
    with Engine.connect() as engine, find_image(str(location)).open() as stored:
        engine.load(docker_archive([recompose(stored)], [parse_tag(name)]))
        try:
            refused = CliRunner().invoke(main, ["manifest", "raycluster", name])
            result = CliRunner().invoke(main, ["manifest", "raycluster", name, "--allow-tag"])
        finally:
            engine.remove(name, force=True)
    assert result.exit_code == 0, result.stderr
    assert yaml.safe_load(result.stdout)["spec"]["rayVersion"] == "2.60.0"
    assert "which may move to another image" in result.stderr
    assert refused.exit_code == 1
    assert "is not known: it is in the Docker engine only\nhint: push it" in refused.stderr
