"""Bases from the engine, and images into it: one that keeps archives stands in for Docker."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mfimage.errors import EngineError, RegistryError
from mfimage.image.find.info import ImageInfo
from mfimage.image.oci.builder import OciBuilder
from mfimage.image.oci.images import encode
from mfimage.image.registry import http
from mfimage.image.registry.location import Location
from mfimage.image.registry.reference import Reference, parse_reference, parse_tag
from mfimage.package.storage.cache import cache_folder
from tests.image.oci.bases import FILES, OFFICIAL, digest, layer, layout
from tests.image.oci.building import Written, oci_builder
from tests.image.sample import Sample, make_sample

pytestmark = pytest.mark.slow

BASE = parse_reference("python:3.11-slim")


class ArchiveEngine:
    """What the builder asks of an engine; like a graph driver, it keeps layers by their order."""

    def __init__(self) -> None:
        self.images: dict[str, ImageInfo] = {}
        self.layers: set[tuple[str, ...]] = set()
        self.archives: dict[str, bytes] = {}
        self.loaded: list[list[str]] = []
        self.described: dict[str, tuple[Any, list[Any]]] = {}
        self.saved = 0
        self.wants_all_layers = False

    def inspect(self, ref: str) -> ImageInfo | None:
        return self.images.get(ref)

    def describe(self, image: str) -> tuple[Any, list[Any]]:
        return self.described[image]

    def labelled(self, label: str) -> Iterator[str]:
        name, _, value = label.partition("=")
        for ref, info in list(self.images.items()):
            if info.labels.get(name) == value:
                yield ref

    def save(self, image: str) -> Iterator[bytes]:
        self.saved += 1
        yield self.archives[image]

    def load(self, archive: Iterable[bytes]) -> None:
        with tarfile.open(fileobj=io.BytesIO(b"".join(archive))) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar}
        (entry,) = json.loads(files["manifest.json"])
        sent = [name for name in entry["Layers"] if name in files]
        self.loaded.append(sent)
        config = json.loads(files[entry["Config"]])
        diff_ids = config["rootfs"]["diff_ids"]
        for number, name in enumerate(entry["Layers"], 1):
            known = tuple(diff_ids[:number]) in self.layers and not self.wants_all_layers
            if not known and name not in files:
                raise EngineError(f"open {name}: no such file or directory")
            self.layers.add(tuple(diff_ids[:number]))
        info = ImageInfo(
            id=f"sha256:{entry['Config'].removesuffix('.json')}",
            layers=tuple(diff_ids), labels=config["config"].get("Labels") or {},
            architecture=config["architecture"],
        )  # fmt: skip
        for name in (*(entry["RepoTags"] or ()), info.id):
            self.images[name] = info

    def add_base(self, name: Reference, *, architecture: str = "amd64", digest: str = "") -> str:
        """Add an image that was built with Docker, or pulled if it has a digest."""
        tar = layer(FILES)
        config = {
            "os": "linux", "architecture": architecture, "config": {"Env": list(OFFICIAL)},
            "rootfs": {"type": "layers", "diff_ids": [digest_of(tar)]},
            "docker_version": "20.10", "container_config": {"Tty": False},
            "history": [
                {"created": "0001-01-01T00:00:00Z", "created_by": "ADD", "comment": "a"},
                {
                    "created": "2024-01-01T01:00:01.123456789+01:00", "created_by": "ENV",
                    "empty_layer": True,
                },
            ],
        }  # fmt: skip
        raw = json.dumps(config).encode()
        info = ImageInfo(
            id=digest_of(raw), layers=(digest_of(tar),), architecture=architecture,
            repo_digests=(f"{name.name}@{digest}",) if digest else (),
        )  # fmt: skip
        manifest = [{"Config": "c.json", "RepoTags": None, "Layers": ["l/layer.tar"]}]
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as archive:
            files = {"l/layer.tar": tar, "c.json": raw, "manifest.json": encode(manifest)}
            for path, data in files.items():
                member = tarfile.TarInfo(path)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        self.archives[info.id] = out.getvalue()
        # As engines respond: what is not set is listed, and times are in seconds.
        settings = {**config["config"], "Tty": False, "Volumes": None}
        self.described[info.id] = (
            {
                "Id": info.id, "Os": "linux", "Architecture": architecture, "Variant": "",
                "Config": settings, "RootFS": {"Type": "layers", "Layers": [digest_of(tar)]},
            },
            [
                {"Created": 1704067201, "CreatedBy": "ENV", "Comment": "", "Size": 0},
                {"Created": -62135596800, "CreatedBy": "ADD", "Comment": "a", "Size": 10},
            ],
        )  # fmt: skip
        self.images[str(name)] = info
        self.layers.add(info.layers)
        return info.id

    def close(self) -> None:
        """Nothing to close."""


digest_of = digest


@pytest.fixture
def engine(monkeypatch) -> ArchiveEngine:
    found = ArchiveEngine()
    monkeypatch.setattr("mfimage.image.oci.builder.connect", lambda: found)
    return found


@pytest.fixture
def sample(tmp_path) -> Sample:
    return make_sample(tmp_path / "blobs")


def build(
    sample: Sample, *tags: str, base: Reference | Location = BASE, **options
) -> SimpleNamespace:
    said: list[str] = []
    given = {
        "compression": "gzip", "compiled": False, "fresh": False, "secrets": {},
        "on_event": lambda _: None, "say": said.append, **options,
    }  # fmt: skip
    with closing(OciBuilder(**given)) as builder:
        found = builder.base(base, "linux/amd64")
        image = builder.build(sample.plan(base=found), sample.blobs.path)
        place = builder.write([image], None, [parse_tag(tag) for tag in tags])
    return SimpleNamespace(image=image, place=place, said=said, base=found)


def test_the_base_is_the_engines_and_streamed_once(engine, sample):
    identity = engine.add_base(BASE)
    first = build(sample, "team/iris:1")
    assert first.said == [f"base: python:3.11-slim, from the Docker engine, image {identity}"]
    assert (first.base.digest, first.base.id, first.base.python) == (None, identity, "3.11.7")
    labels = engine.images["team/iris:1"].labels
    assert labels["io.mfimage.base.id"] == identity
    assert "org.opencontainers.image.base.digest" not in labels
    again = build(sample, "team/iris:1")
    assert engine.saved == 1
    assert again.image.id == first.image.id


def test_a_pulled_base_is_recorded_by_its_digest(engine, sample):
    pulled = f"sha256:{'a' * 64}"
    engine.add_base(BASE, digest=pulled)
    assert build(sample, "team/iris:1").base.digest == pulled
    labels = engine.images["team/iris:1"].labels
    assert labels["org.opencontainers.image.base.digest"] == pulled
    assert "io.mfimage.base.id" not in labels


@pytest.mark.parametrize(
    ("architecture", "pull"), [("arm64", False), ("amd64", True)], ids=["platform", "pull"]
)
def test_otherwise_the_registry_is_asked(engine, sample, architecture, pull, monkeypatch):
    monkeypatch.setattr(http, "_FIRST_PAUSE", 0.001)
    engine.add_base(parse_reference("localhost:1/python:3"), architecture=architecture)
    with pytest.raises(RegistryError, match="localhost:1"):
        build(sample, base=parse_reference("localhost:1/python:3"), pull=pull)
    assert engine.saved == 0


def test_only_layers_that_the_engine_lacks_are_sent(engine, sample):
    engine.add_base(BASE)
    assert build(sample, "team/iris:1").place == "team/iris:1"
    assert len(engine.loaded[-1]) == len(engine.images["team/iris:1"].layers) - 1
    sample.code["predict.py"] += b"# edited\n"
    edited = build(sample, "team/iris:1")
    assert len(engine.loaded[-1]) == 1, "the code"
    assert engine.images["team/iris:1"].id == edited.image.id
    sample.code["predict.py"] += b"# again\n"
    build(sample, "team/iris:2")
    assert len(engine.loaded[-1]) == 1, "found by the lock that both have"
    sample.artifacts["model"] = b"n" * 3000
    build(sample, "team/iris:2")
    assert len(engine.loaded[-1]) == 4, "the artifacts and what is above them"


def test_an_image_store_that_wants_all_layers_gets_them(engine, sample):
    engine.add_base(BASE)
    engine.wants_all_layers = True
    build(sample, "team/iris:1")
    short, whole = engine.loaded
    assert len(whole) == len(engine.images["team/iris:1"].layers) > len(short)


def test_an_image_on_a_base_in_a_folder_goes_into_an_engine(engine, sample, tmp_path):
    asked = []
    engine.inspect = asked.append
    base = layout(tmp_path / "base")
    assert build(sample, "team/iris:1", base=base).said[0].startswith("base: oci:")
    assert asked == ["team/iris:1"], "a folder is not an image's name"


def test_an_engine_that_cannot_say_what_it_has_is_sent_all(engine, sample, monkeypatch):
    engine.add_base(BASE)
    build(sample, "team/iris:1")

    def broken(label):
        yield "team/absent:1"
        raise EngineError("listing images: timeout")

    monkeypatch.setattr(engine, "labelled", broken)
    sample.artifacts["model"] = b"n" * 3000
    build(sample, "team/other:1")
    assert "team/other:1" in engine.images


def test_an_engine_that_refuses_the_whole_image_says_why(engine, sample, monkeypatch):
    engine.add_base(BASE)

    def refuse(archive):
        raise EngineError("loading the image: no space left on device")

    monkeypatch.setattr(engine, "load", refuse)
    with pytest.raises(EngineError, match="no space left"):
        build(sample, "team/iris:1")


def test_a_cache_without_the_bases_layers_is_filled_again(engine, sample, cache: Path):
    engine.add_base(BASE)
    build(sample, "team/iris:1")
    for path in (cache / "layers" / "sha256").iterdir():
        path.unlink()
    build(sample, "team/iris:1")
    assert engine.saved == 2


def test_for_an_engine_only_its_base_is_not_read(engine, sample):
    engine.add_base(BASE)
    image = build(sample, "team/iris:1", compression="none").image
    assert engine.saved == 0
    assert engine.images["team/iris:1"].id == image.id
    assert image.digest is None, "a registry would have it compressed"
    assert {layer.digest for layer in image.layers} == {None}
    assert all(name.endswith(".tar") for name in engine.loaded[-1])
    packed = build(sample, "team/iris:2")
    assert engine.saved == 1
    assert packed.image.id == image.id, "the base's configuration says the same in both"


def test_a_base_that_is_not_read_is_sent_if_the_image_store_wants_it(engine, sample):
    engine.add_base(BASE)
    engine.wants_all_layers = True
    image = build(sample, "team/iris:1", compression="none").image
    assert engine.saved == 1
    assert engine.images["team/iris:1"].id == image.id


def test_a_base_with_an_empty_layer_is_read(engine, sample):
    identity = engine.add_base(BASE)
    image, history = engine.described[identity]
    engine.described[identity] = image, [{**entry, "Size": 0} for entry in history]
    first = build(sample, "team/iris:1", compression="none").image
    assert engine.saved == 1
    assert first.id == build(sample, "team/iris:1").image.id


def test_an_image_of_an_engines_base_is_tested_as_a_whole(engine, sample, tmp_path):
    engine.add_base(BASE)
    out = Location(kind="oci", path=tmp_path / "out")
    with oci_builder(compression="none") as builder:
        image = builder.build(
            sample.plan(base=builder.base(BASE, "linux/amd64")), sample.blobs.path
        )
        builder.write([image], out, [])
    written = Written(out.path)
    assert written.manifest["config"]["digest"] == image.id
    assert FILES.keys() <= written.members(0).keys()


def test_layers_are_repacked_rather_than_made_again(engine, sample, monkeypatch):
    engine.add_base(BASE)
    expected = build(sample).image
    build(sample, compression="none", fresh=True)
    for path in (cache_folder() / "layers" / "inputs").iterdir():
        if b"tar+gzip" in path.read_bytes():
            path.unlink()
    monkeypatch.setattr("mfimage.image.oci.dependencies.laid_out", lambda *_, **__: pytest.fail())
    assert build(sample).image.digest == expected.digest
