"""Real builds: what a change costs, and under which restrictions the image runs."""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import tarfile
import uuid
import zipfile
from collections.abc import Iterator

import docker
import pytest
from uv import find_uv_bin

from mfimage.errors import BuildError
from mfimage.image.build_secrets import parse_secret, read_secrets
from mfimage.image.context import context_files, context_tar, write_context
from mfimage.image.engine import Engine
from mfimage.image.engine_files import ContextFile
from mfimage.image.image_info import ImageInfo
from tests.image.sample import Sample, make_sample
from tests.support.docker import ensure_base_image, host_ca_bundle

pytestmark = [pytest.mark.docker, pytest.mark.index]

# In order: base, dependencies, model, feature_names, runtime, code, working directory.
DEPENDENCIES, MODEL, NAMES, RUNTIME, CODE = range(1, 6)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    ensure_base_image("3.11")
    with Engine.connect() as connected:
        yield connected


@pytest.fixture(scope="module")
def lock() -> bytes:
    command = [find_uv_bin(), "pip", "compile", "--quiet", "--format=pylock.toml", "-"]
    command += ["--python-version=3.11", "--python-platform=x86_64-manylinux_2_28"]
    done = subprocess.run(command, input=b"orjson", capture_output=True, check=True)
    return done.stdout


class Builds:
    """Builds samples, and removes the images at the end."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.images: list[str] = []
        # Old engines give folders the time at which they first saw them. They remember what they
        # saw by the image's name, so builds without one would meddle with each other.
        self.tag = f"mfimage-test-{uuid.uuid4().hex}:1"
        bundle = host_ca_bundle()
        self.secrets = (parse_secret(f"id=ca,src={bundle}"),) if bundle else ()

    def __call__(
        self, sample: Sample, *, as_tar: bool = False, no_cache: bool = False, **options
    ) -> ImageInfo:
        plan = sample.plan(secrets=self.secrets, **options)
        files = context_files(plan, sample.blobs.path)
        return self.build(
            context_tar(plan, sample.blobs.path) if as_tar else files, no_cache=no_cache
        )

    def build(self, context, *, no_cache: bool = False) -> ImageInfo:
        image = self.engine.build(
            context=context,
            tags=[self.tag],
            secrets=read_secrets(self.secrets),
            no_cache=no_cache,
        )
        self.images.append(image)
        info = self.engine.inspect(image)
        assert info is not None
        return info


@pytest.fixture(scope="module")
def build(engine) -> Iterator[Builds]:
    builds = Builds(engine)
    yield builds
    for image in reversed(builds.images):
        engine.remove(image, force=True)


@pytest.fixture
def sample(tmp_path, lock) -> Sample:
    sample = make_sample(tmp_path / "blobs")
    sample.lock = lock
    return sample


@pytest.fixture(scope="module")
def image(build, lock, tmp_path_factory) -> str:
    sample = make_sample(tmp_path_factory.mktemp("blobs"))
    sample.lock = lock
    return build(sample).id


def changed(before: ImageInfo, after: ImageInfo) -> list[int]:
    pairs = zip(before.layers, after.layers, strict=True)
    return [number for number, (a, b) in enumerate(pairs) if a != b]


def run(image: str, *command: str, **options) -> str:
    client = docker.from_env()
    try:
        output = client.containers.run(
            image, list(command), entrypoint="", remove=True, stderr=True, **options
        )
        return output.decode()
    finally:
        client.close()


def layer_names(image: str, number: int) -> dict[str, tarfile.TarInfo]:
    """List what a layer of an image holds."""
    client = docker.from_env()
    try:
        saved = io.BytesIO(b"".join(client.images.get(image).save()))
    finally:
        client.close()
    with tarfile.open(fileobj=saved) as tar:
        manifest = json.load(tar.extractfile("manifest.json"))
        layer = tar.extractfile(manifest[0]["Layers"][number])
        with tarfile.open(fileobj=layer) as inner:
            return {member.name: member for member in inner}


def test_a_new_model_changes_its_own_layer_and_what_names_it(build, sample):
    before = build(sample)
    sample.artifacts["model"] = b"n" * 3000
    # function.json, which names the artifacts by digest, is in the code layer.
    assert changed(before, build(sample)) == [MODEL, CODE]


def test_a_code_edit_changes_the_code_layer(build, sample):
    before = build(sample)
    sample.code["predict.py"] += b"# edited\n"
    assert changed(before, build(sample)) == [CODE]


def test_a_small_artifact_leaves_the_large_one(build, sample):
    before = build(sample)
    sample.artifacts["feature_names"] = b"other"
    assert changed(before, build(sample)) == [NAMES, CODE]


def test_variables_and_labels_change_no_layer(build, sample):
    before = build(sample)
    after = build(sample, env={"A": "1"}, labels={"b": "2"})
    assert changed(before, after) == []
    assert after.env["A"] == "1"
    assert after.labels["b"] == "2"


def test_building_anew_gives_the_same_layers(build, sample):
    before = build(sample, as_tar=True, no_cache=True)
    assert changed(before, build(sample, as_tar=True, no_cache=True)) == []


def test_a_rendered_folder_gives_the_same_image(build, sample, tmp_path):
    out = tmp_path / "out"
    write_context(sample.plan(secrets=build.secrets), out, sample.blobs.path)
    files = [
        ContextFile(path=path.relative_to(out).as_posix(), content=path)
        for path in sorted(out.rglob("*"))
        if path.is_file()
    ]
    assert build.build(files).id == build(sample).id


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
import orjson, mfimage.errors, mfimage.package.parse
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
    held = layer_names(image, DEPENDENCIES)
    assert {name.split("/")[1] for name in held if "/" in name} == {"venv"}
    names = {name.rpartition("/")[2] for name in held}
    assert not {"uv", "pip", "direct_url.json", "uv_cache.json", "INSTALLER", ".lock"} & names
    assert {member.mtime for member in held.values()} == {315_532_800}
    assert (
        run(image, "sh", "-c", "command -v uv; ls -A /var/cache/mfimage /out 2>/dev/null; :") == ""
    )


def test_distributions_are_compiled(image):
    names = layer_names(image, DEPENDENCIES)
    assert any(name.endswith("orjson/__pycache__/__init__.cpython-311.pyc") for name in names)


def test_a_base_with_a_user_of_its_own(build, sample, engine):
    steps = 'FROM python:3.11-slim\nUSER 4711\nHEALTHCHECK CMD false\nENTRYPOINT ["false"]\n'
    base = engine.build(
        context=[ContextFile(path="Dockerfile", content=steps.encode())],
        tags=["mfimage-test-base:1"],
    )
    build.images.append(base)
    info = build(sample, base="mfimage-test-base:1", apt=("libgomp1",))
    assert info.user == "1000:0"
    assert run(info.id, "python", "-c", "import orjson, os; print(os.getuid())").strip() == "1000"


def test_system_packages_leave_no_caches(build, sample):
    info = build(sample, apt=("libmagic1",))
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
