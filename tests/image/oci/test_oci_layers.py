"""Layers: equal inputs give equal bytes, and nothing of the machine is in them."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import random
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mfimage.errors import BuildError, OptionError, PackageError
from mfimage.image.oci.cache import LayerCache
from mfimage.image.oci.compression import Compressing, decompressed
from mfimage.image.oci.tar import Folder, Link, layer_tar
from mfimage.image.plan.files import ContextFile
from mfimage.image.registry.location import Location
from tests.image.oci.bases import layout
from tests.image.oci.building import Written, build, oci_builder, plan_on
from tests.image.sample import make_sample

MEMBERS = [
    ContextFile(path="opt/b/" + "long" * 40 + ".txt", content=b"b" * 700),
    Folder(path="opt/empty"),
    Link(path="opt/b/link", target="../a"),
    ContextFile(path="opt/a", content=b"#!/bin/sh\n", mode=0o755),
]


def packed(chunks, kind: str = "gzip") -> tuple[bytes, tuple[str, str, int]]:
    out = io.BytesIO()
    sink = Compressing(out, kind)
    for chunk in chunks:
        sink.write(chunk)
    return out.getvalue(), sink.finish()


def test_a_tar_does_not_depend_on_order_or_machine():
    data = b"".join(layer_tar(MEMBERS, epoch=7))
    assert data == b"".join(layer_tar(MEMBERS[::-1], epoch=7))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        found = {m.name: (m.mode, m.mtime, m.uid, m.gid, m.uname, m.linkname) for m in tar}
    assert list(found) == [
        "opt", "opt/a", "opt/b", "opt/b/link", MEMBERS[0].path, "opt/empty",
    ]  # fmt: skip
    assert found["opt"] == (0o755, 7, 0, 0, "", "")
    assert found["opt/a"] == (0o755, 7, 0, 0, "", "")
    assert found["opt/b/link"] == (0o777, 7, 0, 0, "", "../a")
    assert found[MEMBERS[0].path][0] == 0o644


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_compressed_bytes_do_not_depend_on_the_pieces(kind):
    content = random.randbytes(300_000) * 9
    _, found = packed([content], kind)
    pieces = [content[i : i + 1000] for i in range(0, len(content), 1000)]
    out = io.BytesIO()
    sink = Compressing(out, kind)
    for piece in pieces:
        sink.write(piece)
    assert sink.finish() == found
    plain, packed_digest, size = found
    assert plain == f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert packed_digest == f"sha256:{hashlib.sha256(out.getvalue()).hexdigest()}"
    assert size == len(out.getvalue())
    with decompressed(io.BytesIO(out.getvalue())) as file:
        assert file.read() == content


def test_gzip_tells_neither_time_nor_name():
    out = io.BytesIO()
    sink = Compressing(out, "gzip")
    sink.write(b"content")
    sink.finish()
    data = out.getvalue()
    assert gzip.decompress(data) == b"content"
    flags, time = data[3], data[4:8]
    assert (flags, time) == (0, b"\0\0\0\0")


def test_a_layer_is_made_once_by_many_threads():
    made = []

    def chunks():
        made.append(1)
        yield b"x" * 100_000

    def layer(_: int) -> tuple[str, bool]:
        cache = LayerCache("gzip")
        found = cache.layer(["a"], chunks)
        cache.close()
        return found.digest, found.cached

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(layer, range(16)))
    assert len(made) == 1
    assert len({digest for digest, _ in results}) == 1
    assert [cached for _, cached in results].count(False) == 1


def test_other_inputs_or_compression_are_other_layers():
    keys = {
        LayerCache(kind).key(inputs) for kind in ("gzip", "zstd") for inputs in (["a"], ["a", "b"])
    }
    assert len(keys) == 4


def test_a_damaged_layer_is_not_used_and_made_again(cache):
    layers = LayerCache("gzip")
    digest = layers.layer(["a"], lambda: [b"content"]).digest
    path = cache / "layers" / "sha256" / digest[7:]
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"!")
    with pytest.raises(BuildError, match="damaged in the cache, and removed"):
        LayerCache("gzip").layer(["a"], lambda: [b"content"]).open()
    again = LayerCache("gzip").layer(["a"], lambda: [b"content"])
    assert (again.digest, again.cached) == (digest, False)
    assert path.read_bytes() == content


def test_what_fails_leaves_nothing(cache):
    def chunks():
        yield b"begun"
        raise PackageError("damaged")

    with pytest.raises(PackageError):
        LayerCache("gzip").layer(["a"], chunks)
    assert [path for path in (cache / "layers").rglob("*") if path.is_file()] == []


def test_what_a_killed_build_left_goes_after_a_day(cache):
    folder = cache / "layers" / "sha256"
    folder.mkdir(parents=True)
    for name, age in (("old", 2 * 24 * 3600), ("fresh", 60)):
        path = folder / f".new-{name}"
        path.write_bytes(b"begun")
        os.utime(path, (time.time() - age,) * 2)
    LayerCache("gzip").layer(["a"], lambda: [b"content"])
    assert sorted(path.name for path in folder.glob(".new-*")) == [".new-fresh"]


def test_the_cache_is_bounded(cache, monkeypatch):
    monkeypatch.setenv("MFIMAGE_CACHE_SIZE", "250kB")
    for number in range(8):
        layers = LayerCache("gzip")
        layers.layer([str(number)], lambda: [os.urandom(100_000)])
        layers.close()
    held = [path.stat().st_size for path in (cache / "layers" / "sha256").iterdir()]
    assert 100_000 < sum(held) <= 256_000


def test_the_time_of_files_is_what_the_variable_says(tmp_path, monkeypatch):
    sample, base = make_sample(tmp_path / "blobs"), layout(tmp_path / "base")
    plain = build(sample, base, Location(kind="oci", path=tmp_path / "plain"))
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    dated = build(sample, base, Location(kind="oci", path=tmp_path / "dated"))
    assert dated.digest != plain.digest
    written = Written(tmp_path / "dated")
    assert {member.mtime for member in written.members(-1).values()} == {1_700_000_000}
    assert written.config["created"] == "2023-11-14T22:13:20Z"
    assert Written(tmp_path / "plain").config["created"] == "1980-01-01T00:00:00Z"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(OptionError, match="SOURCE_DATE_EPOCH: 'yesterday' is not a time"):
        build(sample, base)


@pytest.mark.parametrize("compiled", [True, False])
def test_own_files_are_compiled_when_asked_for(tmp_path, compiled):
    sample, base = make_sample(tmp_path / "blobs"), layout(tmp_path / "base")
    with oci_builder(compiled=compiled) as builder:
        image = builder.build(plan_on(builder, sample, base), sample.blobs.path)
        builder.write([image], Location(kind="oci", path=tmp_path / "out"), [])
    names = set(Written(tmp_path / "out").members(-2))
    sources = {name for name in names if name.endswith(".py")}
    assert "opt/mfimage/mfimage/runtime/__main__.py" in sources
    expected = len(sources) if compiled else 0
    assert len([name for name in names if name.endswith(".pyc")]) == expected


def test_a_damaged_artifact_stops_the_build(tmp_path):
    sample, base = make_sample(tmp_path / "blobs"), layout(tmp_path / "base")
    with oci_builder() as builder:
        plan = plan_on(builder, sample, base)
        path = sample.blobs.path(plan.artifacts[0].blobs[0])
        path.write_bytes(path.read_bytes()[:-1] + b"!")
        with pytest.raises(PackageError, match=path.name):
            builder.build(plan, sample.blobs.path)


@pytest.mark.slow
def test_an_artifact_streams(tmp_path):
    """In bounded memory, from the package to the archive."""
    folder = tmp_path / "blobs"
    make_sample(folder)
    hasher, path = hashlib.sha256(), folder / "large"
    with path.open("wb") as file:
        block = os.urandom(1 << 20)
        for _ in range(200):
            file.write(block)
            hasher.update(block)
    path.rename(folder / hasher.hexdigest())
    layout(tmp_path / "base")
    code = f"""
import dataclasses, re
from pathlib import Path
from mfimage.image.plan.base import BaseImage
from mfimage.image.registry.location import Location
from mfimage.image.plan.options import BuildOptions
from mfimage.image.plan.plan import make_plan
from mfimage.image.plan.subject import function_subject
from mfimage.package.spec import ArtifactRef
from tests.image.oci.building import oci_builder
from tests.image.sample import make_sample
folder = Path({str(tmp_path)!r})
sample = make_sample(folder / "blobs")
spec = sample.spec()
ref = ArtifactRef(digest="sha256:{hasher.hexdigest()}", size=200 << 20,
                  encoding="gzip+pickle-v4", type="builtins.bytes")
spec = dataclasses.replace(spec, artifacts={{"large": ref}})
with oci_builder() as builder:
    base = builder.base(Location(kind="oci", path=folder / "base"), "linux/amd64")
    plan = make_plan(function_subject(spec), lock=sample.lock, base=base, options=BuildOptions())
    image = builder.build(plan, sample.blobs.path)
    builder.write([image], Location(kind="oci-archive", path=folder / "out.tar"), [])
# Not getrusage: its peak is that of the process that started this one, too.
peak = re.search("VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]
print(int(peak) // 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 150
    assert (tmp_path / "out.tar").stat().st_size > 200 << 20
