"""Pushing to a real registry: nothing is sent twice, and a tag never leads to half an image."""

from __future__ import annotations

import json
import random
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from mfimage.errors import RegistryError
from mfimage.image.builder import BuiltImage
from mfimage.image.oci.builder import OciBuilder
from mfimage.image.registry import http
from mfimage.image.registry.location import Location
from mfimage.image.registry.reference import parse_reference, parse_tag
from mfimage.push import push as push_image
from tests.image.oci.bases import FILES, layout
from tests.image.oci.building import build, oci_builder, plan_on
from tests.image.sample import Sample, make_sample
from tests.support.docker import Registry, registry
from tests.support.faulty import Fault, Faulty, faulty

# Its packages are installed with the engine's.
pytestmark = pytest.mark.docker
BOTH = ("linux/amd64", "linux/arm64")


@pytest.fixture(scope="module")
def running(tmp_path_factory) -> Iterator[Registry]:
    with registry("plain", directory=tmp_path_factory.mktemp("registry")) as found:
        yield found


@pytest.fixture
def proxy(running, monkeypatch) -> Iterator[Faulty]:
    """The registry behind a proxy that keeps count, and spoils what it is told to."""
    monkeypatch.setattr(http, "_FIRST_PAUSE", 0.01)
    with faulty(running.url) as found:
        yield found


@pytest.fixture
def address(proxy) -> str:
    return proxy.url.partition("://")[2]


@pytest.fixture
def team() -> str:
    return f"team{random.randrange(10**9)}"


@pytest.fixture
def sample(tmp_path) -> Sample:
    sample = make_sample(tmp_path / "blobs")
    sample.artifacts["model"] = random.randbytes(5000)
    return sample


@pytest.fixture
def base(tmp_path, address, team) -> str:
    """A base in the registry, for both platforms."""
    files = {**FILES, "etc/unique": random.randbytes(3000)}
    source = layout(tmp_path / "base", files, platforms=BOTH)
    push_image(str(source), [parse_tag(f"{address}/{team}/base:1")])
    return f"{address}/{team}/base:1"


def built(builder: OciBuilder, sample: Sample, base: str, platforms=BOTH[:1]) -> list[BuiltImage]:
    source = parse_reference(base)
    plans = [plan_on(builder, sample, source, at=at) for at in platforms]
    return [builder.build(plan, sample.blobs.path) for plan in plans]


def push(sample: Sample, base: str, *tags: str, platforms=BOTH[:1]) -> tuple[str, ...]:
    with oci_builder() as builder:
        return builder.push(
            built(builder, sample, base, platforms), [parse_tag(tag) for tag in tags]
        )


def ask(running: Registry, path: str):
    accept = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json"
    request = urllib.request.Request(f"{running.url}/v2/{path}", headers={"accept": accept})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def sent(proxy: Faulty) -> list[str]:
    """Return the uploads that carried bytes."""
    return [path for method, path in proxy.requests if method == "PATCH"]


def test_what_is_pushed_is_whole(sample, base, address, team, running):
    (pinned,) = push(sample, base, f"{address}/{team}/fn:1")
    name, _, digest = pinned.partition("@")
    assert name == f"{address}/{team}/fn"
    manifest = ask(running, f"{team}/fn/manifests/1")
    assert manifest == ask(running, f"{team}/fn/manifests/{digest}")
    config = ask(running, f"{team}/fn/blobs/{manifest['config']['digest']}")
    assert len(config["rootfs"]["diff_ids"]) == len(manifest["layers"]) == 6
    for layer in manifest["layers"]:
        url = f"{running.url}/v2/{team}/fn/blobs/{layer['digest']}"
        with urllib.request.urlopen(url) as answer:
            assert len(answer.read()) == layer["size"]


def test_the_base_is_neither_read_nor_sent(sample, base, address, team, proxy, running):
    layer = ask(running, f"{team}/base/manifests/1")["manifests"][0]["digest"]
    digest = ask(running, f"{team}/base/manifests/{layer}")["layers"][0]["digest"]
    proxy.requests.clear()
    push(sample, base, f"{address}/{team}/fn:1")
    about = [(method, path) for method, path in proxy.requests if digest[7:] in path]
    assert ("GET", f"/v2/{team}/base/blobs/{digest}") not in about
    mounts = [path for method, path in about if method == "POST"]
    assert len(mounts) == 1 and "mount=" in mounts[0]


def test_nothing_is_sent_twice(sample, base, address, team, proxy):
    first = push(sample, base, f"{address}/{team}/fn:1")
    proxy.requests.clear()
    assert push(sample, base, f"{address}/{team}/fn:2") == first
    assert sent(proxy) == []
    sample.code["predict.py"] += b"# edited\n"
    push(sample, base, f"{address}/{team}/fn:3")
    assert len(sent(proxy)) == 3, "the code layer, the configuration and the SBOM"


def test_several_tags_in_several_repositories(sample, base, address, team, proxy, running):
    tags = [f"{address}/{team}/a:1", f"{address}/{team}/a:2", f"{address}/{team}/b:1"]
    pinned = push(sample, base, *tags)
    assert [each.partition("@")[0] for each in pinned] == [tag.rpartition(":")[0] for tag in tags]
    assert len({each.partition("@")[2] for each in pinned}) == 1
    assert len(sent(proxy)) == len(set(sent(proxy)))
    uploads = [path for path in sent(proxy) if f"/{team}/b/" in path]
    assert len(uploads) <= 1, "layers come from the other repository"
    for repository, tag in (("a", "1"), ("a", "2"), ("b", "1")):
        assert ask(running, f"{team}/{repository}/manifests/{tag}")["layers"]


def test_an_unchanged_function_builds_nothing(sample, base, address, team, proxy, monkeypatch):
    tag = parse_tag(f"{address}/{team}/fn:1")
    first = push(sample, base, str(tag))
    monkeypatch.setenv("MFIMAGE_CACHE", str(sample.blobs.folder / "cold"))
    # What it is made of is needed no more.
    sample.artifacts = dict(sample.artifacts)
    with oci_builder() as builder:
        plan = plan_on(builder, sample, parse_reference(base))
        for layer in plan.artifacts:
            for blob in layer.blobs:
                sample.blobs.path(blob).unlink()
        (found,) = builder.find([plan], [tag], sample.blobs.path)
        assert found.cached
        assert [layer.name for layer in found.layers][-1] == "code"
        proxy.requests.clear()
        assert builder.push([found], [tag, parse_tag(f"{address}/{team}/fn:2")]) == first * 2
    assert sent(proxy) == []


@pytest.mark.parametrize("change", ["code", "env", "base", "time", "compression"])
def test_a_change_is_not_taken_for_the_same(sample, base, address, team, change, monkeypatch):
    tag = parse_tag(f"{address}/{team}/fn:1")
    push(sample, base, str(tag))
    options, of_builder = {}, {}
    if change == "code":
        sample.code["predict.py"] += b"# edited\n"
    elif change == "env":
        options["env"] = {"A": "1"}
    elif change == "time":
        monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    elif change == "compression":
        of_builder["compression"] = "zstd"
    else:
        other = layout(sample.blobs.folder / "base", {**FILES, "etc/other": b""})
        push_image(str(other), [parse_tag(base)])
    with oci_builder(**of_builder) as builder:
        plan = plan_on(builder, sample, parse_reference(base), **options)
        assert builder.find([plan], [tag], sample.blobs.path) is None


def test_several_platforms_make_an_index(sample, base, address, team, running):
    (pinned,) = push(sample, base, f"{address}/{team}/fn:1", platforms=BOTH)
    index = ask(running, f"{team}/fn/manifests/1")
    assert [entry["platform"]["architecture"] for entry in index["manifests"]] == [
        "amd64",
        "arm64",
    ]
    for entry in index["manifests"]:
        assert ask(running, f"{team}/fn/manifests/{entry['digest']}")["layers"]
    with oci_builder() as builder:
        source = parse_reference(base)
        plans = [plan_on(builder, sample, source, at=at) for at in BOTH]
        tag = parse_tag(f"{address}/{team}/fn:1")
        found = builder.find(plans, [tag], sample.blobs.path)
        assert [image.platform for image in found] == list(BOTH)
        assert builder.push(found, [tag]) == (pinned,)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(kind="503", method="PATCH"),
        Fault(kind="503", method="PATCH", after=3),
        Fault(kind="503", method="PUT", path="/blobs/", after=4),
        Fault(kind="503", method="PUT", path="/manifests/"),
        Fault(kind="503", method="PUT", path="/manifests/", after=1),
        Fault(kind="503", method="PUT", path="/manifests/", after=2),
    ],
)
def test_an_interrupted_push_leaves_no_tag(sample, base, address, team, proxy, running, fault):
    """Whichever upload fails for good; and the next push goes on from there."""
    tag = f"{address}/{team}/fn:1"
    proxy.faults = [fault]
    with pytest.raises(RegistryError):
        push(sample, base, tag, platforms=BOTH)
    proxy.faults = []
    with pytest.raises(urllib.error.HTTPError, match="404"):
        ask(running, f"{team}/fn/manifests/1")
    done = len(sent(proxy))
    assert push(sample, base, tag, platforms=BOTH)
    assert len(sent(proxy)) - done <= 9 + 3, "the layers, the configurations and the SBOMs"


def test_a_push_goes_on_where_the_connection_broke(sample, base, address, team, proxy):
    proxy.faults = [
        Fault(kind="drop", method="PATCH", times=2),
        Fault(kind="503", method="HEAD", times=2),
        Fault(kind="503", method="PUT", path="/manifests/", times=2),
    ]
    assert push(sample, base, f"{address}/{team}/fn:1")


def test_push_of_an_archive_gives_the_same_digest(sample, base, address, team, tmp_path):
    out = Location(kind="oci-archive", path=tmp_path / "out.tar")
    image = build(sample, parse_reference(base), out)
    (pinned,) = push_image(str(out), [parse_tag(f"{address}/{team}/copy:1")])
    assert pinned == f"{address}/{team}/copy@{image.digest}"
