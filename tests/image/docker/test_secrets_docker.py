"""An index that wants a password: each way to give one works, and none is left in the image."""

from __future__ import annotations

import hashlib
import ipaddress
import zipfile
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from mfimage.errors import BuildError
from mfimage.image.docker.builder import DockerBuilder
from mfimage.image.docker.command import DockerCommand
from mfimage.image.docker.engine import Engine
from mfimage.image.find.info import ImageInfo
from mfimage.image.secrets.build import Secret, parse_secret, read_secrets
from tests.image.sample import Sample, make_sample
from tests.support.docker import ensure_base_image, host_ca_bundle
from tests.support.private_index import PASSWORD, USER, private_index

pytestmark = [pytest.mark.docker, pytest.mark.index]

WHEEL = "mfprivate-1.0-py3-none-any.whl"


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    ensure_base_image("3.11")
    with Engine.connect() as connected:
        yield connected


@pytest.fixture(scope="module")
def gateway(engine) -> str:
    client = docker.from_env()
    try:
        config = client.networks.get("bridge").attrs["IPAM"]["Config"][0]
    finally:
        client.close()
    # Old engines do not tell the gateway: it is the network's first host.
    return config.get("Gateway") or str(next(ipaddress.ip_network(config["Subnet"]).hosts()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("index")
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        info = "mfprivate-1.0.dist-info"
        wheel.writestr("mfprivate.py", "VALUE = 42\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: mfprivate\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return folder


@pytest.fixture(scope="module")
def index(folder, gateway) -> Iterator[str]:
    """Serve the folder; return ``host:port`` as containers reach it."""
    with private_index(folder, "0.0.0.0") as port:
        yield f"{gateway}:{port}"


@pytest.fixture
def sample(tmp_path, index, folder) -> Sample:
    digest = hashlib.sha256((folder / WHEEL).read_bytes()).hexdigest()
    sample = make_sample(tmp_path / "blobs")
    sample.lock = (
        'lock-version = "1.0"\ncreated-by = "test"\n[[packages]]\nname = "mfprivate"\n'
        f'version = "1.0"\nwheels = [{{ url = "http://{index}/{WHEEL}", '
        f'hashes = {{ sha256 = "{digest}" }} }}]\n'
    ).encode()
    return sample


def build(engine: Engine, sample: Sample, secrets: list[Secret], **options) -> ImageInfo:
    if bundle := host_ca_bundle():
        secrets = [*secrets, parse_secret(f"id=ca,src={bundle}")]
    plan = sample.plan(secrets=tuple(secrets), **options)
    builder = DockerBuilder(
        engine, DockerCommand.find(), tags=(), secrets=read_secrets(secrets), no_cache=True,
        on_event=lambda _: None,
    )  # fmt: skip
    image = builder.build(plan, sample.blobs.path).id
    try:
        info = engine.inspect(image)
        assert engine.run_capture(image, ["python", "-c", "import mfprivate"]) == ""
        found = engine.run_capture(image, ["sh", "-c", SEARCH], user="0")
    finally:
        engine.remove(image, force=True)
    assert found == ""
    for text in (repr(info.history), repr(info.env), repr(info.labels)):
        assert PASSWORD not in text
    return info


SEARCH = f"grep -rsl {PASSWORD} / --exclude-dir=proc --exclude-dir=sys; ls /run/secrets 2>&-; :"


def file_secret(tmp_path: Path, name: str, text: str) -> Secret:
    path = tmp_path / name
    path.write_text(text)
    return parse_secret(f"id={name},src={path}")


def test_without_a_password(engine, sample):
    with pytest.raises(BuildError, match="401"):
        build(engine, sample, [])


def test_netrc(engine, sample, index, tmp_path):
    host = index.partition(":")[0]
    text = f"machine {host}\nlogin {USER}\npassword {PASSWORD}\n"
    build(engine, sample, [file_secret(tmp_path, "netrc", text)])


def test_pip_conf(engine, sample, index, tmp_path):
    url = f"http://{USER}:{PASSWORD}@{index}/simple"
    text = f"[global]\nextra-index-url =\n    {url}\n    http://{index}/other\n"
    build(engine, sample, [file_secret(tmp_path, "pip.conf", text)])


def test_variables_of_uv(engine, sample, index, monkeypatch):
    monkeypatch.setenv("UV_INDEX_COMPANY_USERNAME", USER)
    monkeypatch.setenv("UV_INDEX_COMPANY_PASSWORD", PASSWORD)
    names = ("UV_INDEX_COMPANY_USERNAME", "UV_INDEX_COMPANY_PASSWORD")
    build(
        engine,
        sample,
        [parse_secret(f"id={name}") for name in names],
        extra_index_urls=(f"company=http://{index}/simple",),
    )
