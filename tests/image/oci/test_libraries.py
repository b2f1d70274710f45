"""Libraries that wheels expect of a base are named, with what brings them."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from mfimage.image.oci.libraries import expected_of, needed, package_of
from mfimage.image.plan.files import ContextFile
from tests.image.oci.bases import FILES, layout
from tests.image.oci.building import oci_builder, plan_on
from tests.image.oci.test_oci_dependencies import locked, wheel
from tests.image.sample import make_sample

SITE = "opt/venv/lib/python3.11/site-packages"


def elf(*libraries: str) -> bytes:
    """Make an ELF file that has a dynamic section and nothing else."""
    strings = b"\0" + b"".join(each.encode() + b"\0" for each in libraries)
    places = [1 + sum(len(each) + 1 for each in libraries[:i]) for i in range(len(libraries))]
    start = 64 + 2 * 56
    entries = [(1, place) for place in places]
    size = 16 * (len(entries) + 2)
    address = 0x10000  # not the offset, as in most files
    entries += [(5, address + start + size), (0, 0)]
    dynamic = b"".join(struct.pack("<qQ", *entry) for entry in entries)
    total = start + size + len(strings)
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, address, address, total, total, 4096)
    section = struct.pack("<IIQQQQQQ", 2, 6, start, address + start, 0, size, size, 8)
    return header + load + section + dynamic + strings


def test_an_elf_file_names_its_libraries(tmp_path: Path) -> None:
    file = tmp_path / "x.so"
    file.write_bytes(elf("libgomp.so.1", "libc.so.6"))
    assert needed(file) == ["libgomp.so.1", "libc.so.6"]


@pytest.mark.parametrize("cut", [0, 3, 20, 70, 180, 200])
def test_a_damaged_file_names_none(cut: int, tmp_path: Path) -> None:
    file = tmp_path / "x.so"
    file.write_bytes(elf("libgomp.so.1")[:cut])
    assert needed(file) == []


def test_what_wheels_bring_and_every_base_has_is_not_expected(tmp_path: Path) -> None:
    def member(path: str, *libraries: str) -> ContextFile:
        file = tmp_path / path.replace("/", "-")
        file.write_bytes(elf(*libraries))
        return ContextFile(path=f"{SITE}/{path}", content=file)

    members = [
        member("cv2/cv2.abi3.so", "libGL.so.1", "libown-1a.so.2", "libstdc++.so.6"),
        member("cv2.libs/libown-1a.so.2", "libc.so.6", "ld-linux-x86-64.so.2"),
        member("lightgbm/lib/lib_lightgbm.so", "libgomp.so.1", "libcuda.so.1"),
        member("numba/np/ufunc/tbbpool.cpython-311-x86_64-linux-gnu.so", "libtbb.so.12"),
        member("nvidia/cufile/lib/libcufile_rdma.so.1", "libmlx5.so.1"),
        member("fast.abi3.so", "libsndfile.so.1"),
    ]
    assert expected_of(members) == {
        "libGL.so.1": "cv2", "libgomp.so.1": "lightgbm", "libsndfile.so.1": "fast",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("library", "package"),
    [
        ("libgomp.so.1", "libgomp1"),
        ("libGL.so.1", "libgl1"),
        ("libsndfile.so.1", "libsndfile1"),
        ("libSM.so.6", "libsm6"),
        ("libgthread-2.0.so.0", "libglib2.0-0"),
        ("libpango-1.0.so.0", "libpango-1.0-0"),
        ("libgdk_pixbuf-2.0.so.0", "libgdk-pixbuf-2.0-0"),
        ("libpq.so.5", "libpq5"),
        ("libnss3.so", "libnss3"),
    ],
)
def test_debian_names_packages_as_their_libraries(library: str, package: str) -> None:
    assert package_of(library) == package


@pytest.mark.parametrize(
    ("layers", "missing"),
    [
        ([FILES], True),
        ([FILES, {"usr/lib/libgomp.so.1": "libgomp.so.1.0.0"}], False),
        ([FILES, {"usr/lib/libgomp.so.1": b""}, {"usr/lib/.wh.libgomp.so.1": b""}], True),
    ],
)
def test_a_build_names_what_the_base_lacks(
    layers: list[dict[str, bytes | str]], missing: bool, tmp_path: Path
) -> None:
    """Each build does, not only the one that makes the layer."""
    sample, file = make_sample(tmp_path / "blobs"), "mfown-1.0-py3-none-any.whl"
    data = wheel({"mfown/__init__.py": "", "mfown/fast.abi3.so": elf("libgomp.so.1")})
    sample.wheels, sample.lock = {file: data}, locked(f'path = "wheels/{file}"', data)
    base = layout(tmp_path / "base", *layers)
    for _ in range(2):
        said: list[str] = []
        with oci_builder(say=said.append) as builder:
            builder.build(plan_on(builder, sample, base), sample.blobs.path)
        warnings = [line for line in said if line.startswith("warning")]
        expected = [
            f"warning: mfown needs libgomp.so.1, which {base} does not have: give --apt libgomp1"
        ]
        assert warnings == (expected if missing else [])
