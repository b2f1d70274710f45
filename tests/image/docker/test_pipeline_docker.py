"""What a pipeline sees of images in a real registry, by both builders, and what stops a build."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mfimage.errors import BuildError, ReferenceNotFound, RegistryError
from mfimage.image.docker.builder import DockerBuilder
from mfimage.image.docker.command import DockerCommand
from mfimage.image.docker.engine import Engine
from mfimage.image.registry import http
from mfimage.image.registry.client import RegistryClient, open_registry
from mfimage.image.registry.location import Location
from mfimage.image.registry.reference import parse_reference, parse_tag
from mfimage.image.sbom.attach import attach_sboms
from mfimage.image.sbom.document import MEDIA_TYPE
from mfimage.image.secrets.build import Secret, read_secrets
from mfimage.image.secrets.scan import scan_image
from mfimage.inspect import compare, inspect
from mfimage.push import push as push_image
from tests.image.builds import frozen_runtime, small_lock
from tests.image.sample import Sample, make_sample
from tests.image.tiny import build_layout, open_oci, plan_on, write_base
from tests.support.docker import Registry, ensure_base_image, host_ca_bundle, registry
from tests.support.quirks import quirky

pytestmark = pytest.mark.docker
# What a file of the distribution has in it plays the part of a secret that leaked.
LEAKED = b"github.com/ijl"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with registry("plain", directory=tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def base(tmp_path: Path) -> Location:
    return write_base(tmp_path / "base")


@pytest.fixture
def sample(tmp_path: Path) -> Iterator[Sample]:
    with frozen_runtime():
        yield make_sample(tmp_path / "blobs")


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """No engine."""
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")


def push(base: Location, sample: Sample, name: str, said: list[str] | None = None) -> str:
    """Build without an engine and push; return the image's digest."""
    with closing(open_oci()) as builder:
        image = builder.build(plan_on(builder, base, sample), sample.blobs.path)
        (pinned,) = builder.push([image], [parse_reference(name)])
    attach_sboms([image], [pinned], sample.blobs.path, (said if said is not None else []).append)
    return pinned.partition("@")[2]


def attached(name: str, digest: str) -> list[bytes]:
    reference = parse_reference(name)
    with closing(open_registry(reference)) as client:
        found = client.referrers(reference.repository, digest, MEDIA_TYPE)
        manifests = [client.manifest(reference.repository, each.digest) for each in found]
        documents = [json.loads(data) for _, data in filter(None, manifests)]
        assert {each["subject"]["digest"] for each in documents} <= {digest}
        layers = [each["layers"][0]["digest"] for each in documents]
        return [b"".join(client.blob(reference.repository, layer)) for layer in layers]


def test_the_sbom_is_attached_once(base: Location, sample: Sample, plain: Registry) -> None:
    name = f"{plain.address}/team/sbom:1"
    digest = push(base, sample, name)
    assert push(base, sample, name) == digest
    (document,) = attached(name, digest)
    parts = {each["name"] for each in json.loads(document)["components"]}
    assert {"model", "predict.py", "python", "mfimage"} <= parts


def test_a_registry_without_artifacts_is_no_failure(
    base: Location, sample: Sample, plain: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    put = RegistryClient.push_manifest

    def refuse(self, repository, reference, media_type, data) -> str:
        if b'"subject"' in data:
            raise RegistryError("it takes no artifacts")
        return put(self, repository, reference, media_type, data)

    monkeypatch.setattr(RegistryClient, "push_manifest", refuse)
    push(base, sample, f"{plain.address}/team/refused:1", said)
    assert said == ["the SBOM is in the image, but not attached to it: it takes no artifacts"]


def test_an_image_is_read_from_the_registry_without_pulling(
    base: Location, sample: Sample, plain: Registry, nobody: None, cache: Path
) -> None:
    sample.artifacts["model"] = bytes(range(256)) * 4000
    name = f"{plain.address}/team/seen:1"
    digest = push(base, sample, name)
    blobs = {path.name for path in (cache / "blobs" / "sha256").glob("*")}
    found = inspect(name)
    assert (found["from"], found["digest"], found["platform"]) == (
        "registry",
        digest,
        "linux/amd64",
    )
    assert found["lineage"]["flow"] == "MyTrainFlow"
    assert found["task"] == "MyTrainFlow/123/train/456"
    assert found["schema.output"]["type"] == "object"
    assert found["artifacts"] == {n: ref.digest for n, ref in sample.spec().artifacts.items()}
    assert found["sbom"]["code files"] == 1
    layers = {layer["digest"].removeprefix("sha256:") for layer in found["layers"]}
    fetched = {path.name for path in (cache / "blobs" / "sha256").glob("*")} - blobs
    assert layers.isdisjoint(fetched), "no layer is fetched"
    with pytest.raises(ReferenceNotFound, match=r"not in the registry"):
        inspect(f"{plain.address}/team/seen:other")


def test_without_a_referrer_the_layer_of_the_code_tells(
    base: Location, sample: Sample, plain: Registry, nobody: None
) -> None:
    name = f"{plain.address}/team/bare:1"
    with closing(open_oci()) as builder:
        image = builder.build(plan_on(builder, base, sample), sample.blobs.path)
        builder.push([image], [parse_reference(name)])
    assert inspect(name)["sbom"]["code files"] == 1


def test_registry_and_folder_are_compared(
    base: Location, sample: Sample, plain: Registry, nobody: None, tmp_path: Path
) -> None:
    name = f"{plain.address}/team/compared:1"
    push(base, sample, name)
    layout, _ = build_layout(base, sample, tmp_path / "same")
    assert not compare(name, layout)
    sample.artifacts["model"] = b"a new one"
    layout, _ = build_layout(base, sample, tmp_path / "other")
    changed = compare(name, layout)
    assert [change.name for change in changed.of("artifacts")] == ["model"]


def test_code_with_a_secret_stops_the_build(base: Location, sample: Sample, tmp_path: Path) -> None:
    sample.code = {"predict.py": b"TOKEN = 'sup3r-s3cret-value'\n"}
    with pytest.raises(BuildError) as caught:
        build_layout(base, sample, tmp_path / "out", secrets={"UV_TOKEN": b"sup3r-s3cret-value"})
    assert "layer code: opt/function/code/predict.py: the secret UV_TOKEN" in str(caught.value)
    assert "sup3r" not in str(caught.value)
    assert not (tmp_path / "out").exists(), "nothing was written"


@pytest.mark.index
@pytest.mark.parametrize("kind", ["docker", "oci"])
def test_a_distribution_with_a_secret_stops_the_build(
    kind: str, base: Location, sample: Sample
) -> None:
    """Also the second time, when the layer is cached; and not where no such secret was given."""
    sample.lock = small_lock()
    bundle = _ca(host_ca_bundle())
    given = read_secrets(bundle)
    if kind == "oci":
        builder = open_oci(given)
        plan = plan_on(builder, base, sample)
    else:
        ensure_base_image("3.11")
        engine = Engine.connect()
        builder = open_docker(engine, bundle)
        plan = sample.plan(secrets=bundle)
    with closing(builder):
        image = builder.build(plan, sample.blobs.path)
        scan_image(builder, image, sample.blobs.path, given)
        for _ in range(2):
            with pytest.raises(BuildError) as caught:
                leaked = {**given, "UV_INDEX_X_PASSWORD": LEAKED}
                scan_image(builder, image, sample.blobs.path, leaked)
            assert "layer dependencies: " in str(caught.value)
            assert "METADATA: the secret UV_INDEX_X_PASSWORD" in str(caught.value)
            assert LEAKED.decode() not in str(caught.value)
        harmless = {**given, "UV_INDEX_X_PASSWORD": b"nowhere-to-be-found"}
        scan_image(builder, image, sample.blobs.path, harmless)
        if kind == "docker":
            engine.remove(image.id, force=True)


@pytest.mark.index
def test_system_packages_are_searched_in_their_settings(sample: Sample) -> None:
    """The layer itself cannot be read from an engine; asking for it ended the build."""
    sample.lock = small_lock()
    ensure_base_image("3.11")
    bundle = _ca(host_ca_bundle())
    with closing(open_docker(engine := Engine.connect(), bundle)) as builder:
        plan = sample.plan(secrets=bundle, apt=("libmagic1",))
        image = builder.build(plan, sample.blobs.path)
        scan_image(builder, image, sample.blobs.path, {"UV_INDEX_X_PASSWORD": b"not-in-there"})
        with pytest.raises(BuildError, match="layer system: etc/magic: the secret UV_INDEX_X"):
            leaked = {"UV_INDEX_X_PASSWORD": b"Magic local data"}
            scan_image(builder, image, sample.blobs.path, leaked)
        engine.remove(image.id, force=True)


def open_docker(engine: Engine, secrets: tuple[Secret, ...], **options) -> DockerBuilder:
    options = {"tags": (), **options}
    return DockerBuilder(
        engine, DockerCommand.find(), secrets=read_secrets(secrets), no_cache=False,
        on_event=lambda _: None, **options,
    )  # fmt: skip


def _ca(bundle: Path | None) -> tuple[Secret, ...]:
    return (Secret(id="ca", source=bundle),) if bundle else ()


def test_a_fresh_machine_uses_what_another_one_made(
    base: Location,
    sample: Sample,
    plain: Registry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is made, nothing fetched: the registry has the layers already."""
    cache = parse_tag(f"{plain.address}/team/cache:main")
    tag = parse_reference(f"{plain.address}/team/cached:1")
    sample.artifacts["model"] = bytes(range(256)) * 3000

    def build(place: str, **options) -> tuple[str, list[bool]]:
        monkeypatch.setenv("MFIMAGE_CACHE", str(tmp_path / place))
        with closing(open_oci(**options)) as builder:
            image = builder.build(plan_on(builder, base, sample), sample.blobs.path)
            scan_image(builder, image, sample.blobs.path, options.get("secrets") or {})
            (pinned,) = builder.push([image], [tag])
            builder.export([image], [tag])
        made = [layer.cached for layer in image.layers if layer.name != "base"]
        return pinned, made

    first, made = build("one", cache_to=cache, cache_from=[cache])
    assert not any(made), "there is no cache yet"
    second, made = build("two", cache_from=[cache], secrets={"UV_TOKEN": b"not-in-any-of-them"})
    assert (first, all(made)) == (second, True)
    blobs = tmp_path / "two" / "layers" / "sha256"
    assert not blobs.exists() or not list(blobs.iterdir())
    sample.code = {"predict.py": b"edited = 1\n"}
    third, made = build("three", cache_from=[cache], cache_to=cache)
    assert third != first
    assert made == [True, True, True, True, False]
    assert build("four", cache_from=[cache]) == (third, [True] * 5)


@pytest.mark.parametrize("quirk", ["read-only", "lost-blobs", "page"])
def test_a_cache_that_fails_costs_a_line_at_most(
    base: Location, sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quirk: str
) -> None:
    """The build ended with an error of the cache's registry."""
    monkeypatch.setattr(http, "_FIRST_PAUSE", 0.001)
    said: list[str] = []
    with quirky() as one, quirky(quirk) as other:
        cache, tag = parse_tag(f"{other.address}/team/cache:1"), parse_tag(f"{one.address}/fn:1")
        digests = set()
        for place in ("first", "second"):
            monkeypatch.setenv("MFIMAGE_CACHE", str(tmp_path / place))
            options = {"cache_from": [cache], "cache_to": cache, "say": said.append}
            with closing(open_oci(**options)) as builder:
                image = builder.build(plan_on(builder, base, sample), sample.blobs.path)
                digests.update(builder.push([image], [tag]))
                builder.export([image], [tag])
            if quirk == "lost-blobs":
                other.blobs.clear()
            if quirk == "page":
                other.manifests["team/cache", "1"] = ("text/html", b"<title>Sign in</title>")
    assert len(digests) == 1
    lines = [line.partition(":")[0] for line in said if line.startswith("cache")]
    assert lines == {"read-only": ["cache-to"] * 2, "page": ["cache-from"]}.get(quirk, [])


def test_an_image_is_not_a_cache_of_layers(
    base: Location,
    sample: Sample,
    plain: Registry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = f"{plain.address}/team/image:1"
    push(base, sample, name)
    monkeypatch.setenv("MFIMAGE_CACHE", str(tmp_path / "fresh"))
    with (
        closing(open_oci(cache_from=[parse_tag(name)])) as builder,
        pytest.raises(RegistryError, match="is not a cache of the oci builder"),
    ):
        builder.build(plan_on(builder, base, sample), sample.blobs.path)


def test_the_engine_writes_its_cache_into_the_image(sample: Sample, plain: Registry) -> None:
    ensure_base_image("3.11")
    cache = parse_tag(f"{plain.address}/team/inline:main")
    bundle = _ca(host_ca_bundle())
    docker = open_docker(Engine.connect(), bundle, cache_from=[cache], cache_to=cache)
    with closing(docker) as builder:
        sample.lock = small_lock()
        image = builder.build(sample.plan(secrets=bundle), sample.blobs.path)
        builder.export([image], [])
    with closing(open_registry(cache)) as client:
        found = client.manifest("team/inline", "main")
        assert found is not None
        config = json.loads(found[1])["config"]["digest"]
        assert b"moby.buildkit.cache.v0" in b"".join(client.blob("team/inline", config))
    with Engine.connect() as engine:
        assert engine.inspect(str(cache)) is None, "the name is gone again"
        engine.remove(image.id, force=True)


@pytest.mark.parametrize("kind", ["oci", "docker"])
def test_what_is_pushed_later_has_its_sbom(
    kind: str, base: Location, sample: Sample, plain: Registry, tmp_path: Path
) -> None:
    name = f"{plain.address}/team/later-{kind}:1"
    if kind == "oci":
        what, _ = build_layout(base, sample, tmp_path / "layout")
    else:
        ensure_base_image("3.11")
        sample.lock = small_lock()
        what = f"mfimage-test-later-{tmp_path.name.lower().strip('_')}:1"
        bundle = _ca(host_ca_bundle())
        with closing(open_docker(Engine.connect(), bundle, tags=[parse_tag(what)])) as builder:
            builder.build(sample.plan(secrets=bundle), sample.blobs.path)
    (pinned,) = push_image(what, [parse_tag(name)])
    (document,) = attached(name, pinned.partition("@")[2])
    assert "predict.py" in {each["name"] for each in json.loads(document)["components"]}
    if kind == "docker":
        with Engine.connect() as engine:
            engine.remove(name)
            engine.remove(what)
