"""Real builds, by both builders: what is in an image, and under which restrictions it runs."""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Iterator

import pytest

from mfimage.errors import BuildError
from tests.image.builds import Builds, OciBuilds, builder, fresh, layer_names, run
from tests.image.sample import Sample

DEPENDENCIES = 1  # the layer above the base

pytestmark = [pytest.mark.docker, pytest.mark.index]


@pytest.fixture(scope="module", params=[Builds, OciBuilds], ids=["docker", "oci"])
def build(request) -> Iterator[Builds]:
    with builder(request.param) as builds:
        yield builds


@pytest.fixture(scope="module")
def docker_build() -> Iterator[Builds]:
    """What only the docker builder does."""
    with builder() as builds:
        yield builds


@pytest.fixture
def sample(tmp_path) -> Sample:
    return fresh(tmp_path / "blobs")


@pytest.fixture(scope="module")
def image(build, tmp_path_factory) -> str:
    return build(fresh(tmp_path_factory.mktemp("blobs"))).id


def test_the_configuration(build, sample):
    info = build(sample)
    assert info.user == "1000:0"
    assert info.working_dir == "/opt/function/code"
    assert info.entrypoint == ("/opt/venv/bin/python", "-m", "mfimage.runtime")
    assert info.command == ("serve",)
    assert info.env["PATH"].startswith("/opt/venv/bin:/usr/local/bin:")
    assert info.labels["io.mfimage.task"] == sample.spec().task


WORKS = """
import getpass, os, pathlib, tempfile
import orjson, mfimage.errors, mfimage.package.spec
assert orjson.__file__.startswith("/opt/venv/"), orjson.__file__
pathlib.Path.home().joinpath(".cache").mkdir(exist_ok=True)
tempfile.TemporaryFile().close()
assert pathlib.Path("predict.py").is_file()
assert not os.access("/opt/function", os.W_OK) and not os.access("/opt/venv/lib", os.W_OK)
print(os.getuid(), os.getgid(), getpass.getuser())
"""


@pytest.mark.parametrize(
    ("options", "who"),
    [
        ({}, "1000 0 mfimage"),
        ({"user": "12345"}, "12345 0 mfimage"),
        ({"user": "12345:678", "cap_drop": ["ALL"]}, "12345 678 mfimage"),
        ({"read_only": True, "tmpfs": {"/tmp": ""}}, "1000 0 mfimage"),
        ({"read_only": True, "tmpfs": {"/tmp": ""}, "user": "12345"}, "12345 0 mfimage"),
    ],
)
def test_it_runs_restricted(image, options, who):
    assert run(image, "python", "-c", WORKS, network_mode="none", **options).strip() == who


def test_nothing_of_the_build_is_left(image):
    held = {
        name: member
        for name, member in layer_names(image, DEPENDENCIES).items()
        if not name.endswith("/.wh..wh..opq")  # hides what a base has there
    }
    assert "venv" in (tops := {name.split("/")[1] for name in held if "/" in name})
    assert tops <= {"venv", "function", "mfimage"}
    names = {name.rpartition("/")[2] for name in held}
    assert not {"uv", "pip", "direct_url.json", "uv_cache.json", "INSTALLER", ".lock"} & names
    assert {member.mtime for member in held.values()} == {315_532_800}
    assert (
        run(image, "sh", "-c", "command -v uv; ls -A /var/cache/mfimage /out 2>/dev/null; :") == ""
    )


def test_distributions_are_compiled(image):
    names = layer_names(image, DEPENDENCIES)
    assert any(name.endswith("orjson/__pycache__/__init__.cpython-311.pyc") for name in names)


def test_a_base_with_a_user_of_its_own(docker_build, sample, tmp_path):
    build = docker_build
    build.lines(
        tmp_path / "base",
        "FROM python:3.11-slim", "USER 4711", "HEALTHCHECK CMD false", 'ENTRYPOINT ["false"]',
        tags=["mfimage-test-base:1"],
    )  # fmt: skip
    info = build(sample, base="mfimage-test-base:1", apt=("libgomp1",))
    assert info.user == "1000:0"
    assert run(info.id, "python", "-c", "import orjson, os; print(os.getuid())").strip() == "1000"


def test_system_packages_leave_no_caches(docker_build, sample):
    info = docker_build(sample, apt=("libmagic1",))
    held = layer_names(info.id, 1)
    assert any("libmagic.so" in name for name in held)
    for folder in ("var/cache/apt/", "var/lib/apt/lists/", "var/log/", "run/"):
        assert not [name for name in held if name.startswith(folder)]


def test_a_wheel_that_travels(build, sample, tmp_path):
    name = "mfown-1.0-py3-none-any.whl"
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as wheel:
        wheel.writestr("mfown.py", "VALUE = 42\n")
        folder = "mfown-1.0.dist-info"
        wheel.writestr(f"{folder}/METADATA", "Metadata-Version: 2.1\nName: mfown\nVersion: 1.0\n")
        wheel.writestr(f"{folder}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{folder}/RECORD", "")
    sample.wheels = {name: data.getvalue()}
    digest = hashlib.sha256(data.getvalue()).hexdigest()
    sample.lock = (
        'lock-version = "1.0"\ncreated-by = "test"\n[[packages]]\nname = "mfown"\n'
        f'version = "1.0"\nwheels = [{{ name = "{name}", path = "wheels/{name}", '
        f'hashes = {{ sha256 = "{digest}" }} }}]\n'
    ).encode()
    image = build(sample).id
    assert run(image, "python", "-c", "import mfown; print(mfown.VALUE)").strip() == "42"
    held = {path.rpartition("/")[2] for path in layer_names(image, DEPENDENCIES)}
    assert not {name, "direct_url.json", "uv_cache.json"} & held


def test_what_does_not_have_the_locked_hash_is_not_installed(build, sample):
    sample.lock = re.sub(rb'sha256 = "[0-9a-f]{64}"', b'sha256 = "%s"' % (b"0" * 64), sample.lock)
    with pytest.raises(BuildError, match="Hash mismatch"):
        build(sample)


def test_what_has_no_hash_is_not_installed(build, sample):
    sample.lock = re.sub(rb"hashes = {[^}]*}", b"hashes = {}", sample.lock)
    with pytest.raises(BuildError, match="must have a hash"):
        build(sample)
