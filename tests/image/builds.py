"""Building samples with the engine, and looking into what came out."""

from __future__ import annotations

import atexit
import functools
import io
import json
import os
import subprocess
import tarfile
import tempfile
import types
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import docker
import pytest
from uv import find_uv_bin

import mfimage
from mfimage.image.docker.builder import DockerBuilder
from mfimage.image.docker.command import DockerCommand
from mfimage.image.docker.engine import Engine
from mfimage.image.find.info import ImageInfo
from mfimage.image.oci.base import read_image
from mfimage.image.oci.builder import OciBuilder
from mfimage.image.oci.config import recompose
from mfimage.image.oci.outputs import write_images
from mfimage.image.registry.location import Location
from mfimage.image.registry.reference import parse_tag
from mfimage.image.secrets.build import parse_secret, read_secrets
from mfimage.runtime.layout import RUNTIME_FILES
from tests.image.sample import Sample, make_sample
from tests.support.docker import ensure_base_image, host_ca_bundle


class Builds:
    """Builds samples, and removes the images at the end."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.command = DockerCommand.find()
        self.images: list[str] = []
        # Engines remember a context by the image's name, so no other build meddles with these.
        self.tag = f"mfimage-test-{uuid.uuid4().hex}:1"
        bundle = host_ca_bundle()
        self.secrets = (parse_secret(f"id=ca,src={bundle}"),) if bundle else ()

    def __call__(self, sample: Sample, *, no_cache: bool = False, **options) -> ImageInfo:
        plan = sample.plan(secrets=self.secrets, **options)
        docker = DockerBuilder(
            self.engine, self.command, tags=[parse_tag(self.tag)],
            secrets=read_secrets(self.secrets), no_cache=no_cache, on_event=lambda _: None,
        )  # fmt: skip
        return self._keep(docker.build(plan, sample.blobs.path).id)

    def folder(self, context: Path, **options) -> ImageInfo:
        """Build a folder's Dockerfile."""
        options.setdefault("tags", [self.tag])
        names = self.command.build(context, secrets=read_secrets(self.secrets), **options)
        return self._keep(next(name for name in names if self.engine.inspect(name)))

    def lines(self, folder: Path, *lines: str, **options) -> ImageInfo:
        """Build a Dockerfile of these lines."""
        folder.mkdir(exist_ok=True)
        (folder / "Dockerfile").write_text("\n".join((*lines, "")))
        return self.folder(folder, **options)

    def _keep(self, image: str) -> ImageInfo:
        self.images.append(image)
        info = self.engine.inspect(image)
        assert info is not None
        return info


class OciBuilds(Builds):
    """The same by the builder that needs no engine; the engine runs what comes out."""

    def __call__(self, sample: Sample, *, no_cache: bool = False, **options) -> ImageInfo:
        oci = OciBuilder(
            compression="gzip", compiled=True, fresh=no_cache,
            secrets=read_secrets(self.secrets), on_event=lambda _: None,
        )  # fmt: skip
        with closing(oci):
            base = oci.base(base_layout(), "linux/amd64")
            plan = sample.plan(secrets=self.secrets, base=base, **options)
            built = oci.build(plan, sample.blobs.path)
            oci.write([built], None, [parse_tag(self.tag)])
        return self._keep(built.id)


@functools.cache
def base_layout() -> Location:
    """Return the engine's base image as an OCI layout; it goes with the process."""
    ensure_base_image("3.11")
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    archive, layout = Path(folder.name, "base.tar"), Path(folder.name, "layout")
    save = ["docker", "save", "--output", str(archive), "python:3.11-slim"]
    subprocess.run(save, check=True, capture_output=True)
    source = Location(kind="docker-archive", path=archive)
    with read_image(source, "linux/amd64") as image:
        target = Location(kind="oci", path=layout)
        write_images([recompose(image)], target, [])
    archive.unlink()
    return target


@contextmanager
def builder(kind: type[Builds] = Builds) -> Iterator[Builds]:
    """Connect to the engine; remove what was built at the end."""
    ensure_base_image("3.11")
    with Engine.connect() as engine, frozen_runtime():
        builds = kind(engine)
        try:
            yield builds
        finally:
            for image in reversed(builds.images):
                engine.remove(image, force=True)


@contextmanager
def frozen_runtime() -> Iterator[None]:
    """Let nobody edit mfimage's files between two builds."""
    root = Path(mfimage.__file__).parent.parent
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        for path in (path for pattern in RUNTIME_FILES for path in root.glob(pattern)):
            target = Path(folder) / path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
        frozen = types.SimpleNamespace(__file__=f"{folder}/mfimage/__init__.py")
        patch.setattr("mfimage.image.plan.layers.mfimage", frozen)
        yield


@functools.cache
def small_lock() -> bytes:
    """Lock one distribution with a compiled module."""
    command = [find_uv_bin(), "pip", "compile", "--quiet", "--format=pylock.toml", "-"]
    command += ["--python-version=3.11", "--python-platform=x86_64-manylinux_2_28"]
    done = subprocess.run(command, input=b"orjson", capture_output=True, check=True)
    return done.stdout


def unique(size: int) -> bytes:
    """Make content that no engine has cached."""
    return os.urandom(size)


def fresh(folder: Path) -> Sample:
    """Make a sample that no engine has built before."""
    sample = make_sample(folder)
    sample.lock = small_lock()
    sample.artifacts = {"model": unique(3000), "feature_names": unique(30)}
    return sample


def run(image: str, *command: str, **options) -> str:
    """Run a command in an image; return what it prints."""
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
