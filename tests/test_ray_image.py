"""What is known of an image, by its labels and by the user; and the commands that use it."""

from __future__ import annotations

import uuid
from contextlib import contextmanager

import pytest
import yaml
from click.testing import CliRunner

from mfimage.cli import main
from mfimage.errors import EngineError, OptionError
from mfimage.image.docker.engine import Engine
from mfimage.image.find.info import ImageInfo
from mfimage.image.plan.files import ContextFile
from mfimage.image.registry.reference import parse_reference
from mfimage.manifests.kuberay.image import Known, ray_image
from tests.support.docker import ensure_engine

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


def read(name="registry.example.com/iris:1", labels=LABELS, known=None, digests=()):
    told = []
    info = None if labels is None else ImageInfo(id="x", labels=labels, repo_digests=digests)
    image = ray_image(
        parse_reference(name), info, known or Known(), why="it is not here", say=told.append
    )
    return image, told


def test_labels_say_everything():
    image, told = read(
        digests=(f"other.example.com/iris@{OTHER}", f"registry.example.com/iris@{DIGEST}")
    )
    assert image.reference == f"registry.example.com/iris:1@{DIGEST}"
    assert (image.ray_version, image.python_version) == ("2.60.0", "3.11.7")
    assert (image.function, image.digest) == ("predict", FUNCTION)
    assert image.parts == ("default", "serve")
    assert told == []


@pytest.mark.parametrize(
    ("name", "digests", "reference"),
    [
        (f"iris@{OTHER}", (f"iris@{DIGEST}",), f"iris@{OTHER}"),
        ("iris", (f"docker.io/library/iris@{DIGEST}",), f"iris@{DIGEST}"),
        ("iris:1", ("<none>@<none>", f"team/iris@{DIGEST}"), "iris:1"),
    ],
)
def test_only_the_names_own_digest_pins_it(name, digests, reference):
    image, told = read(name, digests=digests)
    assert image.reference == reference
    assert [line for line in told if "its tag" in line] == ([] if image.pinned else told)
    assert bool(told) != image.pinned


def test_another_target_is_sent_to_build():
    with pytest.raises(OptionError, match="is for fastapi, not for Ray") as raised:
        read(labels={**LABELS, "io.mfimage.target": "fastapi"})
    assert "mfimage build REFERENCE --target ray" in raised.value.hint


@pytest.mark.parametrize(
    ("labels", "why"), [(None, "it is not here"), ({}, "it has no labels of mfimage")]
)
def test_an_image_that_does_not_say_needs_the_user_to(labels, why):
    with pytest.raises(OptionError, match=f"ray-version: .*{why}") as raised:
        read(labels=labels)
    assert "--ray-version" in raised.value.hint
    with pytest.raises(OptionError, match="function: "):
        read(labels=labels, known=Known(ray_version="2.60.0"))
    image, told = read(labels=labels, known=Known(ray_version="2.60.0", function="predict"))
    assert (image.ray_version, image.function, image.digest) == ("2.60.0", "predict", None)
    assert any("no placement resource" in line for line in told)


def test_what_the_user_says_must_agree_with_the_image():
    assert read(known=Known(ray_version="2.60.0"))[0].ray_version == "2.60.0"
    with pytest.raises(OptionError, match=r"ray-version: '2.59.0' is not what .* '2.60.0'"):
        read(known=Known(ray_version="2.59.0"))


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
    result = CliRunner().invoke(main, ["kuberay", kind.lower(), "r.example.com/iris:1", *arguments])
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    manifest = yaml.safe_load(result.stdout)
    assert manifest["kind"] == kind
    assert f'image: "r.example.com/iris:1@{DIGEST}"' in result.stdout


def test_without_an_engine_the_user_knows(monkeypatch):
    def connect():
        raise EngineError("no engine answers")

    monkeypatch.setattr(Engine, "connect", connect)
    command = ["kuberay", "raycluster", "iris:1"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1
    assert "error: ray-version: not known of iris:1: no engine answers" in result.stderr
    command += ["--ray-version", "2.60.0", "--function", "f", "--function-digest", FUNCTION]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0
    assert "mfimage-0123456789abcdef" in result.stdout
    assert "no digest is known of iris:1" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["raycluster", "IRIS", "--ray-version", "2.60"], "image: 'IRIS' is no image reference"),
        (["raycluster", "i", "--worker-memory", "8GB"], "worker-memory: '8GB'"),
        (["rayjob", "i", "--input", "a|b", "--output", "o"], "input: 'a|b' has the character '|'"),
        (["rayservice", "i", "--serve-replicas", "0"], "serve-replicas: 0 is too few"),
    ],
)
def test_options_are_refused_by_name(arguments, said):
    result = CliRunner().invoke(main, ["kuberay", *arguments])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {said}")
    assert "\nhint: " in result.stderr


@pytest.mark.docker
def test_a_real_engine_says_it():
    ensure_engine()
    name = f"mfimage-test/{uuid.uuid4().hex}:1"
    label = " ".join(f'{key}="{value}"' for key, value in LABELS.items())
    dockerfile = f"FROM scratch\nLABEL {label}\nCOPY Dockerfile /\n".encode()
    with Engine.connect() as engine:
        engine.build(context=[ContextFile(path="Dockerfile", content=dockerfile)], tags=[name])
        try:
            result = CliRunner().invoke(main, ["kuberay", "raycluster", name])
        finally:
            engine.remove(name, force=True)
    assert result.exit_code == 0, result.stderr
    assert yaml.safe_load(result.stdout)["spec"]["rayVersion"] == "2.60.0"
    assert "push it from here" in result.stderr
