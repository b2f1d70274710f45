"""The same function, lock, base and options give the same digest, wherever they are built."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mfimage.image.plan.lock import _asked, _kept, _write
from mfimage.image.plan.options import BuildOptions
from mfimage.image.plan.subject import function_source
from mfimage.package.store import PackageStore, open_package
from tests.image.oci.bases import layout
from tests.image.oci.building import Written
from tests.image.oci.test_oci_dependencies import locked, wheel
from tests.support.packages import make_package

pytestmark = pytest.mark.slow

WHEEL = "mfown-1.0-py3-none-any.whl"
# As different as two machines can be.
PLACES: list[dict[str, Any]] = [
    {"LC_ALL": "C", "TZ": "UTC", "PYTHONHASHSEED": "0", "umask": 0o022},
    {"LC_ALL": "C.UTF-8", "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "1", "umask": 0o077},
    {"LC_ALL": "POSIX", "TZ": "America/Lima", "PYTHONHASHSEED": "2", "umask": 0o002},
    {"LC_ALL": "C", "UV_LINK_MODE": "copy", "PYTHONHASHSEED": "3", "umask": 0},
]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A root with a package whose environment is a wheel that travels, and its target's lock."""
    folder = tmp_path_factory.mktemp("root")
    data = wheel()
    lock = locked(f'path = "wheels/{WHEEL}"', data)
    reference = make_package(folder, artifacts={"factor": 3, "large": b"x" * 3_000_000})
    store, spec = PackageStore(folder), open_package(reference).spec
    wheels = {WHEEL: store.put_bytes(data)}
    environment = replace(spec.environment, wheels=wheels, lock=store.put_bytes(lock))
    reference = store.write(replace(spec, environment=environment))
    package = function_source(open_package(reference))
    asked = _asked(package, BuildOptions(), "linux/amd64")
    _write(package, _kept(package, asked), asked, lock, print)
    (folder / "reference").write_text(str(Path(reference).relative_to(folder)))
    layout(folder / "base")
    return folder


def start(root: Path, place: Mapping[str, Any], folder: Path, *flags: str) -> subprocess.Popen:
    """Begin to build in a place of its own; the layout goes to ``folder``/out."""
    folder.mkdir(parents=True, exist_ok=True)
    variables = {name: value for name, value in place.items() if name != "umask"}
    own = {"MFIMAGE_CACHE": "cache", "HOME": "home", "TMPDIR": "tmp", "UV_CACHE_DIR": "uv"}
    for name in own.values():
        (folder / name).mkdir(exist_ok=True)
    environment = {
        **os.environ, **variables, **{name: str(folder / at) for name, at in own.items()}
    }  # fmt: skip
    return subprocess.Popen(
        [
            str(Path(sys.executable).with_name("mfimage")), "build",
            str(root / (root / "reference").read_text()), "--builder", "oci",
            "--base-image", f"oci:{root / 'base'}", "--output", f"oci:{folder / 'out'}", *flags,
        ],
        cwd=folder, env=environment, umask=place["umask"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def digest(process: subprocess.Popen, folder: Path) -> str:
    _, error = process.communicate()
    assert process.returncode == 0, error.decode()
    return Written(folder / "out").index["manifests"][0]["digest"]


@pytest.mark.parametrize("flags", [(), ("--compile",), ("--compression", "zstd")])
def test_in_other_places_at_the_same_time(root, tmp_path, flags):
    elsewhere = tmp_path / "copy of the root"
    shutil.copytree(root, elsewhere)
    folders = [tmp_path / f"place {number}" for number in range(len(PLACES))]
    started = [
        start(elsewhere if number % 2 else root, place, folder, *flags)
        for number, (place, folder) in enumerate(zip(PLACES, folders, strict=True))
    ]
    digests = [digest(*each) for each in zip(started, folders, strict=True)]
    assert len(set(digests)) == 1


def test_with_the_cache_warm_cold_and_shared(root, tmp_path):
    place, folder = PLACES[0], tmp_path / "place"
    cold = digest(start(root, place, folder), folder)
    assert digest(start(root, place, folder), folder) == cold
    assert digest(start(root, place, folder, "--no-cache"), folder) == cold
    shutil.rmtree(folder / "cache")
    others = [tmp_path / f"other{number}" for number in range(3)]
    shared = {**place, "MFIMAGE_CACHE": str(folder / "cache")}
    started = []
    for other in others:
        (folder / "cache").mkdir(exist_ok=True)
        other.mkdir()
        (other / "cache").symlink_to(folder / "cache")
        started.append(start(root, shared, other))
    assert {digest(*each) for each in zip(started, others, strict=True)} == {cold}


def test_every_layer_is_what_its_digest_says(root, tmp_path):
    digest(start(root, PLACES[0], tmp_path), tmp_path)
    out = Written(tmp_path / "out")
    for path in (out.folder / "blobs" / "sha256").iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    assert json.dumps(out.manifest, sort_keys=True, separators=(",", ":")).encode() == (
        out.blob(out.index["manifests"][0]["digest"]).read_bytes()
    )
