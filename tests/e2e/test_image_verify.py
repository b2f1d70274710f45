"""``mfimage verify``, and ``build --test``, on images that no engine has."""

from __future__ import annotations

import json
import subprocess

import pytest

pytestmark = [pytest.mark.docker, pytest.mark.e2e, pytest.mark.index]
TRIPLE = """
from metaflow import json_function

@json_function
def triple(data: dict[str, float]) -> dict[str, float]:
    return {name: 3 * value for name, value in data.items()}
"""


@pytest.fixture(scope="module")
def base(base_image, tmp_path_factory) -> list[str]:
    """The flag that names the base image, in a file."""
    path = tmp_path_factory.mktemp("base") / "base.tar"
    subprocess.run(["docker", "save", base_image, "-o", path], check=True)
    return ["--base-image", f"docker-archive:{path}"]


@pytest.fixture(scope="module")
def reference(iris) -> str:
    (iris.folder / "triple.py").write_text(TRIPLE)
    return iris.bind("triple.py:triple", "--example", '{"a": 0.1}')


@pytest.fixture(scope="module")
def built(iris, base, reference, tmp_path_factory) -> str:
    place = f"oci:{tmp_path_factory.mktemp('built')}/layout"
    iris.mfimage("build", reference, *base, "--builder", "oci", "--output", place)
    return place


def test_a_build_gives_the_same_again(iris, base, reference, built):
    done = iris.mfimage("verify", built, "--reference", reference, *base, "--json")
    found = json.loads(done.stdout)
    assert found["same"] and found["id"] == found["rebuilt"]
    assert [layer["name"] for layer in found["layers"]][-3:] == ["dependencies", "runtime", "code"]


def test_the_layer_and_its_files_are_named(iris, base, reference, tmp_path):
    place = f"oci:{tmp_path}/layout"
    options = ["--builder", "oci", "--no-compile", "--label", "team=a", "--output", place]
    iris.mfimage("build", reference, *base, *options)
    done = iris.mfimage("verify", place, "--reference", reference, *base, "--json", check=False)
    assert done.returncode == 1
    found = json.loads(done.stdout)
    others = [layer for layer in found["layers"] if not layer["same"]]
    assert [layer["name"] for layer in others] == ["dependencies", "runtime"]
    for layer in others:
        assert {tuple(change["how"]) for change in layer["changes"]} == {("added",)}
        assert all("__pycache__" in change["path"] for change in layer["changes"])
    assert found["settings"] == ["Labels"]
    same = ["--no-compile", "--label", "team=a"]
    iris.mfimage("verify", place, "--reference", reference, *base, *same)


def test_another_function_is_refused(iris, base, built):
    other = iris.bind("slow.py:slow")
    done = iris.mfimage("verify", built, "--reference", other, *base, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "holds the function sha256:" in done.stderr


def test_a_base_without_a_name_has_to_be_named(iris, reference, built):
    done = iris.mfimage("verify", built, "--reference", reference, check=False)
    assert done.returncode == 1
    assert "--base-image" in done.stderr


def test_what_fails_its_test_is_written_nowhere(iris, base, reference, tmp_path):
    place = tmp_path / "layout"
    options = ["--builder", "oci", "--output", f"oci:{place}", "--test", *base]
    # A server that listens where nobody can call it.
    deaf = iris.mfimage("build", reference, *options, "--env", "PORT=x", check=False)
    assert (deaf.returncode, deaf.stdout) == (1, "")
    assert "error: the image does not pass its test: ready" in deaf.stderr
    assert not place.exists()
    good = iris.mfimage("build", reference, *options, "--json")
    (tested,) = json.loads(good.stdout)["tests"]
    assert tested["status"] == "passed"
    assert place.exists()
