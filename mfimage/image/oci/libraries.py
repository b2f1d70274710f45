"""Shared libraries that wheels expect of a base: which it lacks, and what brings them."""

from __future__ import annotations

import json
import mmap
import re
import struct
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from mfimage.errors import EngineError
from mfimage.image.oci.compression import decompressed
from mfimage.image.oci.images import StoredImage
from mfimage.image.oci.tar import Member
from mfimage.image.plan.files import ContextFile
from mfimage.image.plan.plan import ImagePlan
from mfimage.package.spec import sha256_digest
from mfimage.package.storage.cache import cache_folder, remember

if TYPE_CHECKING:
    from mfimage.image.docker.local import ImageFiles

FilesOf = Callable[[], AbstractContextManager["ImageFiles"]]
# Every base with glibc and Python has the first; drivers are mounted where the image runs.
_KNOWN = re.compile(
    r"lib(c|m|dl|rt|util|pthread|resolv|z|nsl|crypt|anl|gcc_s|stdc\+\+)\.so\.\d+|ld-linux.*"
    r"|lib(cuda|nvidia-.*|nvcuvid|python3.*)\.so.*"
)
# What works without: plugins for hardware, and for one of several thread pools.
_OPTIONAL = re.compile(r"/nvidia/|/numba/np/ufunc/(tbb|omp)pool\.|/plugins/")
_LIBRARY = re.compile(r".+\.so(\.\d+)*")
_ARCHITECTURES = {"linux/amd64": "x86_64-linux-gnu", "linux/arm64": "aarch64-linux-gnu"}
# Debian's packages that are not named as their library is.
_PACKAGES = {
    "libxml2.so.2": "libxml2",
    "libjpeg.so.62": "libjpeg62-turbo",
    **dict.fromkeys(
        (f"lib{name}-2.0.so.0" for name in ("glib", "gio", "gobject", "gmodule", "gthread")),
        "libglib2.0-0",
    ),
}


def package_of(library: str) -> str:
    """Return the Debian package that has a library: ``libgomp1`` has ``libgomp.so.1``."""
    name, _, version = library.lower().replace("_", "-").partition(".so")
    version = version.removeprefix(".")
    between = "-" if version and name[-1].isdigit() else ""
    return _PACKAGES.get(library, f"{name}{between}{version}")


def note_expected(inputs: Sequence[str], members: Iterable[Member]) -> None:
    """Remember what the files of a dependencies layer expect of the base."""
    found = expected_of(members)
    remember(_place("layer", inputs), json.dumps(found).encode())


def expected_of(members: Iterable[Member]) -> dict[str, str]:
    """Return libraries that are needed and not among the files -> the module that needs each."""
    files = [each for each in members if isinstance(each, ContextFile)]
    names = {each.path.rpartition("/")[2] for each in files}
    found: dict[str, str] = {}
    for each in files:
        if (
            isinstance(each.content, Path)
            and _LIBRARY.fullmatch(each.path.rpartition("/")[2])
            and not _OPTIONAL.search(each.path)
        ):
            for library in needed(each.content):
                if library not in names and not _KNOWN.fullmatch(library):
                    place = each.path.rpartition("/site-packages/")[2]
                    found.setdefault(library, re.split(r"[./]", place)[0])
    return dict(sorted(found.items()))


def lacking(
    plan: ImagePlan, inputs: Sequence[str], image: StoredImage, python: str, files: FilesOf | None
) -> dict[str, str]:
    """Return what a dependencies layer expects and a base lacks -> the module that needs it."""
    try:
        expected: dict[str, str] = json.loads(_place("layer", inputs).read_bytes())
    except (OSError, ValueError):
        return {}  # the layer was made elsewhere
    if not expected:
        return {}
    known = _place("base", [*(layer.diff_id for layer in image.layers), *expected])
    try:
        has = set(json.loads(known.read_bytes()))
    except (OSError, ValueError):
        folders = _folders(plan.platform, python, plan.base.env)
        has = _has(expected, image, folders, files)
        remember(known, json.dumps(sorted(has)).encode())
    return {library: module for library, module in expected.items() if library not in has}


def _place(kind: str, key: Sequence[str]) -> Path:
    digest = sha256_digest(json.dumps([kind, *key]).encode()).removeprefix("sha256:")
    return cache_folder() / "libraries" / f"{digest}.json"


def _folders(platform: str, python: str, environment: Mapping[str, str]) -> list[str]:
    triple = _ARCHITECTURES[platform]
    common = ("/usr/lib", "/lib", "/usr/lib64", "/lib64", "/usr/local/lib")
    own = str(PurePosixPath(python).parent.parent / "lib")
    named = filter(None, environment.get("LD_LIBRARY_PATH", "").split(":"))
    return list(dict.fromkeys([f"/usr/lib/{triple}", f"/lib/{triple}", *common, own, *named]))


def _has(
    wanted: Iterable[str],
    image: StoredImage,
    folders: Sequence[str],
    files: FilesOf | None,
) -> set[str]:
    if files is not None:
        with suppress(EngineError), files() as opened:
            return {
                name
                for name in wanted
                if any(opened.resolve(f"{folder}/{name}") for folder in folders)
            }
    found: set[str] = set()
    for layer in image.layers:
        with (
            layer.open() as file,
            decompressed(file) as raw,
            tarfile.open(fileobj=raw, mode="r|") as tar,
        ):
            for member in tar:
                name = PurePosixPath(member.name).name
                found.discard(name.removeprefix(".wh."))
                if not member.isdir():
                    found.add(name)
    return found & set(wanted)


# The dynamic section of an ELF file.

_LOAD, _DYNAMIC = 1, 2
_END, _NEEDED, _STRINGS = 0, 1, 5


def needed(file: Path) -> list[str]:
    """Return the names of the libraries that an ELF file is linked with."""
    with file.open("rb") as opened:
        if opened.read(6) != b"\x7fELF\x02\x01":  # 64 bits, little-endian
            return []
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return list(_needed(data))
            except (struct.error, ValueError, StopIteration, RuntimeError):
                return []  # damaged, or stripped of what the loader reads


def _needed(data: mmap.mmap) -> Iterator[str]:
    (start,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    headers = [
        struct.unpack_from("<IIQQQQ", data, start + number * size) for number in range(count)
    ]
    entries = []
    for kind, _, offset, _, _, length in headers:
        if kind == _DYNAMIC:
            entries = list(struct.iter_unpack("<qQ", data[offset : offset + length // 16 * 16]))
    strings = next((value for tag, value in entries if tag == _STRINGS), None)
    if strings is None:
        return
    offset = next(
        offset + strings - address
        for kind, _, offset, address, _, length in headers
        if kind == _LOAD and address <= strings < address + length
    )
    for tag, value in entries:
        if tag == _END:
            return
        if tag == _NEEDED:
            begin = offset + value
            yield data[begin : data.find(b"\0", begin)].decode()
