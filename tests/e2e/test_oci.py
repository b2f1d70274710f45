"""The oci builder: from a function to an image in the engine, a registry or a file, which runs."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import SETOSA, Project, serving
from tests.support.docker import Registry, registry

pytestmark = [pytest.mark.e2e, pytest.mark.docker, pytest.mark.index]
ANSWER = {"prediction": 0, "name": "setosa"}


@pytest.fixture(scope="module")
def running(tmp_path_factory) -> Iterator[Registry]:
    with registry("plain", directory=tmp_path_factory.mktemp("registry")) as found:
        yield found


@pytest.fixture(scope="module")
def base(running, base_image) -> str:
    """The base image, in the registry and nowhere else."""
    name = f"{running.address}/base/{base_image}"
    for command in (["tag", base_image, name], ["push", name], ["rmi", name]):
        subprocess.run(["docker", *command], check=True, capture_output=True)
    return name


@pytest.fixture(scope="module")
def no_docker(tmp_path_factory) -> dict[str, str]:
    """An environment without an engine, without its command, and with a HOME of its own."""
    home = tmp_path_factory.mktemp("home")
    return {
        "DOCKER_HOST": "unix:///nowhere.sock", "PATH": "/nowhere", "HOME": str(home),
        # What was downloaded before need not be again.
        "UV_CACHE_DIR": os.environ.get("UV_CACHE_DIR", str(Path.home() / ".cache" / "uv")),
    }  # fmt: skip


@pytest.mark.parametrize("builder", ["oci", "auto"])
def test_pushed_without_docker_it_answers(iris, predict, running, base, no_docker, images, builder):
    tag = f"{running.address}/team/{builder}:1"
    built = iris.mfimage(
        "build", predict, "--builder", builder, "--base-image", base, "-t", tag, "--push",
        env=no_docker,
    )  # fmt: skip
    (pinned,) = built.stdout.splitlines()
    assert pinned.startswith(f"{running.address}/team/{builder}@sha256:")
    assert f"base: {base}, from the registry {running.address}" in built.stderr
    subprocess.run(["docker", "pull", pinned], check=True, capture_output=True)
    images.append(pinned)
    restricted = {"user": "12345", "read_only": True, "tmpfs": ("/tmp",), "cap_drop": ["ALL"]}
    with serving(pinned, **restricted) as server:
        assert server.post("/predict", SETOSA) == (200, ANSWER)
        assert server.ask("GET", "/healthz")[0] == 200


def test_as_typed_base_and_image_are_the_engines(iris, predict, base_image, images):
    name = "mfimage-test-typed:1"
    built = iris.mfimage("build", predict, "-t", name)
    assert built.stdout == f"{name}\n"
    assert f"base: {base_image}, from the Docker engine, image sha256:" in built.stderr
    images.append(name)
    with serving(name, user="12345", read_only=True, tmpfs=("/tmp",)) as server:
        assert server.post("/predict", SETOSA) == (200, ANSWER)
    found = json.loads(subprocess.check_output(["docker", "image", "inspect", name]))[0]
    base = json.loads(subprocess.check_output(["docker", "image", "inspect", base_image]))[0]
    assert found["RootFS"]["Layers"][: len(base["RootFS"]["Layers"])] == base["RootFS"]["Layers"]
    assert found["Config"]["Labels"]["io.mfimage.base.id"] == base["Id"]
    again = iris.mfimage("build", predict, "-t", "mfimage-test-typed:2", "--json")
    assert json.loads(again.stdout)["id"] == found["Id"]
    images.append("mfimage-test-typed:2")


def test_an_unchanged_function_is_found_and_not_built(
    iris, slow, running, base, no_docker, tmp_path
):
    command = ["build", slow, "--builder", "oci", "--base-image", base, "--push", "-t"]
    first = iris.mfimage(*command, f"{running.address}/team/again:1", env=no_docker)
    elsewhere = {**no_docker, "MFIMAGE_CACHE": str(tmp_path)}
    second = iris.mfimage(*command, f"{running.address}/team/again:2", env=elsewhere)
    assert second.stdout == first.stdout
    assert "nothing is built" in second.stderr
    assert not (tmp_path / "layers" / "inputs").exists()
    forced = iris.mfimage(*command, f"{running.address}/team/again:3", "--force", env=no_docker)
    assert forced.stdout == first.stdout
    assert "nothing is built" not in forced.stderr


def test_written_pushed_and_loaded(iris, slow, running, base, no_docker, images, tmp_path):
    options = ["--builder", "oci", "--base-image", base, "-t", "mfimage-test-oci:1"]
    archive = f"docker-archive:{tmp_path / 'image.tar'}"
    built = iris.mfimage("build", slow, *options, "--output", archive, env=no_docker)
    assert built.stdout == f"{archive}\n"
    name = f"{running.address}/team/archive"
    pushed = iris.mfimage("push", archive, f"{name}:1", f"{name}:2", env=no_docker)
    assert pushed.stdout.startswith(f"{name}@sha256:")
    assert len(pushed.stdout.splitlines()) == 1
    loaded = iris.mfimage("build", slow, *options, "--output", "docker")
    assert loaded.stdout == "mfimage-test-oci:1\n"
    images.append("mfimage-test-oci:1")
    with serving("mfimage-test-oci:1") as server:
        assert server.post("/slow", {"a": 1}) == (200, {"a": 1})


def test_both_platforms_in_one_call(iris, slow, running, base_image, no_docker, tmp_path):
    from tests.image.oci.bases import layout

    both = ("linux/amd64", "linux/arm64")
    version = f"PYTHON_VERSION={base_image.partition(':')[2].partition('-')[0]}.1"
    base = layout(tmp_path / "base", env=("PATH=/usr/local/bin:/usr/bin", version), platforms=both)
    tag = f"{running.address}/team/both:1"
    built = iris.mfimage(
        "build", slow, "--builder", "oci", "--base-image", str(base), "-t", tag, "--push",
        "--platform", ",".join(both), "--json", env=no_docker,
    )  # fmt: skip
    found = json.loads(built.stdout)
    subprocess.run(["docker", "pull", tag], check=True, capture_output=True)
    inspect = ["docker", "image", "inspect", "--format", "{{.Architecture}}", tag]
    assert subprocess.check_output(inspect, text=True) == "amd64\n"
    subprocess.run(["docker", "rmi", tag], check=False, capture_output=True)
    assert found["image"].startswith(f"{running.address}/team/both@sha256:")


def test_what_cannot_be_done_is_told_at_once(iris: Project, predict, base, no_docker):
    for options, message in (
        ([], "the image has nowhere to go"),
        (["--builder", "docker"], "no `docker` command on PATH"),
        (["--base-image", base, "--apt", "libgomp1", "--output", "oci:out"], "libgomp1"),
        (["--base-image", base, "--apt", "libgomp1"], "no `docker` command on PATH"),
    ):
        done = iris.mfimage("build", predict, *options, check=False, env=no_docker)
        assert (done.returncode, done.stdout) == (1, "")
        assert message in done.stderr
        assert "hint: " in done.stderr
