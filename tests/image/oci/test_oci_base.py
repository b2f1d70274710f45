"""Base images: which one of an index, where its Python is, and what is refused."""

from __future__ import annotations

import json

import pytest

from mfimage.errors import BuildError, OptionError
from mfimage.image.oci.base import BasePython, find_python, read_image
from mfimage.image.registry.location import Location
from tests.image.oci.bases import FILES, layout
from tests.image.oci.building import build, oci_builder, plan_on
from tests.image.sample import make_sample

PATH = ("PATH=/usr/local/bin:/usr/bin:/bin",)
STATUS = b"""Package: python3.12-minimal
Status: install ok installed
Version: 3.12.3-1ubuntu0.5

Package: python3.11-minimal
Status: install ok installed
Version: 3.11.2-6+deb12u6
"""


def python_of(location: Location) -> BasePython:
    with read_image(location, "linux/amd64") as image:
        return find_python(image, str(location))


def test_official_images_say_it_and_no_layer_is_read(tmp_path):
    base = layout(tmp_path / "base")
    for blob in (base.path / "blobs" / "sha256").iterdir():
        if blob.read_bytes()[:2] == b"\x1f\x8b":
            blob.unlink()
    assert python_of(base) == BasePython(path="/usr/local/bin/python3", version="3.11.7")


@pytest.mark.parametrize(
    ("layers", "env", "found"),
    [
        # Debian's, by a link from elsewhere; dpkg knows the patch.
        (
            [
                {"usr/bin/python3.11": b"", "var/lib/dpkg/status": STATUS},
                {"usr/local/bin/python3": "/usr/bin/python3.11"},
            ],
            PATH,
            ("/usr/local/bin/python3", "3.11.2"),
        ),
        # Merged /usr: /bin is another name of it.
        (
            [{"bin": "usr/bin", "usr/bin/python3.12": b"", "usr/bin/python3": "python3.12"}],
            ("PATH=/bin",),
            ("/bin/python3", "3.12"),
        ),
        # Conda's, before the system's; the header knows the patch.
        (
            [
                {"usr/bin/python3.11": b"", "usr/bin/python3": "python3.11"},
                {
                    "opt/conda/bin/python3.10": b"",
                    "opt/conda/bin/python3": "python3.10",
                    "opt/conda/include/python3.10/patchlevel.h": b'#define PY_VERSION "3.10.14"\n',
                },
            ],
            ("PATH=/opt/conda/bin:/usr/bin",),
            ("/opt/conda/bin/python3", "3.10.14"),
        ),
        # A layer above took the first one away.
        (
            [
                {"usr/local/bin/python3.9": b"", "usr/local/bin/python3": "python3.9"},
                {"usr/local/bin/.wh.python3": b"", "usr/local/bin/.wh.python3.9": b""},
                {"usr/bin/python3.11": b"", "usr/bin/python3": "python3.11"},
            ],
            PATH,
            ("/usr/bin/python3", "3.11"),
        ),
    ],
)
def test_others_are_looked_through(tmp_path, layers, env, found):
    base = layout(tmp_path / "base", *layers, env=env)
    assert python_of(base) == BasePython(path=found[0], version=found[1])


def test_they_are_looked_through_once(tmp_path):
    base = layout(tmp_path / "base", FILES, env=PATH)
    first = python_of(base)
    for blob in (base.path / "blobs" / "sha256").iterdir():
        if blob.read_bytes()[:2] == b"\x1f\x8b":
            blob.unlink()
    assert python_of(base) == first


def test_no_python_is_no_base(tmp_path):
    base = layout(tmp_path / "base", {"bin/sh": b""}, env=PATH)
    with pytest.raises(OptionError, match="has no Python in /usr/local/bin"):
        python_of(base)


def test_another_python_is_refused(tmp_path):
    base = layout(tmp_path / "base", env=("PATH=/usr/local/bin", "PYTHON_VERSION=3.13.1"))
    with pytest.raises(OptionError, match=r"has Python 3\.13"):
        build(make_sample(tmp_path / "blobs"), base)


def test_the_image_for_the_platform_is_taken(tmp_path):
    base = layout(tmp_path / "base", platforms=("linux/amd64", "linux/arm64"))
    with read_image(base, "linux/arm64") as image:
        assert image.platform == "linux/arm64"
    with (
        pytest.raises(BuildError, match="no image for linux/riscv64") as raised,
        read_image(base, "linux/riscv64"),
    ):
        pass
    assert raised.value.hint == "it has: linux/amd64, linux/arm64"


def test_a_function_image_is_no_base(tmp_path):
    base, out = layout(tmp_path / "base"), Location(kind="oci", path=tmp_path / "out")
    sample = make_sample(tmp_path / "blobs")
    build(sample, base, out)
    with pytest.raises(OptionError, match="contains a function already"):
        build(sample, out)


def test_a_damaged_base_is_not_built_on(tmp_path):
    base = layout(tmp_path / "base")
    entry = json.loads((base.path / "index.json").read_text())["manifests"][0]
    manifest = base.path / "blobs" / "sha256" / entry["digest"][7:]
    manifest.write_bytes(manifest.read_bytes() + b" ")
    with pytest.raises(BuildError, match="is damaged"):
        build(make_sample(tmp_path / "blobs"), base)


def test_what_is_no_image_is_told(tmp_path):
    (tmp_path / "file").write_bytes(b"no tar")
    for kind, path in (("oci", tmp_path), ("oci", tmp_path / "no"), ("oci-archive", "file")):
        location = Location(kind=kind, path=tmp_path / path)
        with pytest.raises(BuildError, match=kind):
            build(make_sample(tmp_path / "blobs"), location)


def test_system_packages_are_refused_with_what_to_do(tmp_path):
    sample, base = make_sample(tmp_path / "blobs"), layout(tmp_path / "base")
    with oci_builder() as builder:
        plan = plan_on(builder, sample, base, apt=("libgomp1",))
        with pytest.raises(OptionError, match="libgomp1") as raised:
            builder.build(plan, sample.blobs.path)
    assert "--builder docker" in raised.value.hint
