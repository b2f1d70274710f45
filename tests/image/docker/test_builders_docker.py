"""Both builders make the same of a plan."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import docker
import pytest

from mfimage.errors import BuildError
from mfimage.image.oci.builder import OciBuilder
from mfimage.image.registry.reference import parse_reference, parse_tag
from mfimage.image.secrets.build import read_secrets
from tests.image.builds import Builds, OciBuilds, builder, fresh
from tests.image.sample import Sample

pytestmark = [pytest.mark.docker, pytest.mark.index]
BASE_LAYERS = 1
# Where `uv venv` puts what no container needs; and what depends on the kind of base.
_OF_UV_VENV = ("activate", "deactivate", "pydoc.bat")
_OF_THE_BASE = ("org.opencontainers.image.base.name", "org.opencontainers.image.base.digest")


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Sample:
    return fresh(tmp_path_factory.mktemp("blobs"))


@pytest.fixture(scope="module")
def images(sample) -> Iterator[tuple[str, str]]:
    """The image of either builder."""
    with builder() as by_docker, builder(OciBuilds) as by_oci:
        options: dict[str, Any] = {"env": {"A": "$x \"y'"}, "labels": {"l": "m"}}
        both: tuple[Builds, Builds] = (by_docker, by_oci)
        first, second = (build(sample, **options).id for build in both)
        yield first, second


def settings(image: str) -> dict[str, Any]:
    client = docker.from_env()
    try:
        found = client.images.get(image).attrs["Config"]
    finally:
        client.close()
    # The last is BuildKit's, and of Windows.
    for name in ("Image", "Hostname", "Domainname", "ArgsEscaped"):
        found.pop(name, None)
    for name in _OF_THE_BASE:
        found["Labels"].pop(name, None)
    # Engines fill in what is not said.
    return {name: value for name, value in found.items() if value not in (None, False, "")}


def test_the_configurations_are_equal(images):
    by_docker, by_oci = map(settings, images)
    assert by_oci == by_docker
    assert by_oci["Healthcheck"] == {"Test": ["NONE"]}


def files(image: str) -> dict[str, tuple[int, int, bytes | str]]:
    """Return what the layers above the base hold: mode, owner, and content or where links lead."""
    client = docker.from_env()
    try:
        saved = io.BytesIO(b"".join(client.images.get(image).save()))
    finally:
        client.close()
    found = {}
    with tarfile.open(fileobj=saved) as tar:
        (manifest,) = json.load(tar.extractfile("manifest.json"))
        for name in manifest["Layers"][BASE_LAYERS:]:
            with tarfile.open(fileobj=tar.extractfile(name)) as layer:
                for member in layer:
                    content = layer.extractfile(member).read() if member.isfile() else b""
                    owner = member.uid * 1000 + member.gid
                    mode = member.mode & 0o7777
                    found[member.name] = (mode, owner, content or member.linkname)
    return found


def test_the_files_are_equal(images):
    by_docker, by_oci = map(files, images)
    more = {name for name in by_docker.keys() - by_oci.keys() if ".pyc" not in name}
    assert {name for name in more if not name.rpartition("/")[2].startswith(_OF_UV_VENV)} <= {
        "opt/venv/lib/python3.11/site-packages/_virtualenv.pth",
        "opt/venv/lib/python3.11/site-packages/_virtualenv.py",
        "opt/venv/lib/python3.11/site-packages/__pycache__",
    }
    hidden = {name for name in by_oci if name.endswith("/.wh..wh..opq")}
    assert by_oci.keys() - by_docker.keys() == hidden
    # The lines of a RECORD are in order; the SBOM names the base, the other file its builder's uv.
    differ = {
        name
        for name in by_oci.keys() - hidden
        if by_oci[name] != by_docker[name] and not name.endswith((".pyc", "/RECORD"))
    }
    assert differ <= {"opt/venv/pyvenv.cfg", "opt/function/sbom.cdx.json"}


def test_records_hold_the_same_lines(images):
    by_docker, by_oci = map(files, images)
    records = [name for name in by_oci if name.endswith("/RECORD")]
    assert records
    for name in records:
        lines = [sorted(each[name][2].decode().splitlines()) for each in (by_docker, by_oci)]
        assert lines[0] == lines[1]


@pytest.fixture(scope="module")
def used_base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Builds, str]]:
    """A base with an environment and a function of its own where mfimage has its."""
    site = "/opt/venv/lib/python3.11/site-packages"
    with builder() as build:
        build.lines(
            tmp_path_factory.mktemp("base"),
            "FROM python:3.11-slim",
            "ENV PORT=80",
            f"RUN mkdir -p {site} /opt/function/code /opt/mfimage",
            f'RUN echo \'import os; os.environ["STALE"] = "1"\' > {site}/stale.pth',
            "RUN touch /opt/function/code/stale.py /opt/mfimage/stale.py",
        )
        yield build, build.tag


def test_what_a_base_has_at_our_paths_does_not_run(
    used_base: tuple[Builds, str], sample: Sample
) -> None:
    build, name = used_base
    tag = parse_tag("mfimage-test-used-base:1")
    secrets = read_secrets(build.secrets)
    with closing(
        OciBuilder(
            compression="gzip", compiled=True, fresh=False, secrets=secrets,
            on_event=lambda _: None,
        )
    ) as oci:  # fmt: skip
        plan = sample.plan(
            base=oci.base(parse_reference(name), "linux/amd64"), secrets=build.secrets
        )
        oci.write([oci.build(plan, sample.blobs.path)], None, [tag])
    build.images.append(str(tag))
    program = "import glob, os; print(os.environ.get('STALE'), glob.glob('/opt/**/stale*'))"
    text = build.engine.run_capture(str(tag), ["python", "-c", program])
    assert text.strip() == "None []"
    assert build.engine.inspect(str(tag)).env["PORT"] == "8000"


def test_the_docker_builder_refuses_a_base_with_files_at_our_paths(
    used_base: tuple[Builds, str], sample: Sample
) -> None:
    """A Dockerfile cannot hide them."""
    build, name = used_base
    with pytest.raises(BuildError, match="it has /opt/venv, which is mfimage's own"):
        build(sample, base=name)
