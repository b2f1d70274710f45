"""Reads images from OCI layouts and Docker archives; files are verified by digest."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from mfimage.errors import BuildError
from mfimage.files import CHUNK, chunks_of
from mfimage.image.oci.cache import LayerCache
from mfimage.image.oci.compression import decompressed
from mfimage.image.oci.images import (
    INDEXES,
    StoredImage,
    StoredLayer,
    layer_descriptor,
    pick,
    platform_of,
)
from mfimage.image.registry.location import DOCKER_ARCHIVE, OCI, Location
from mfimage.package.spec import sha256_digest

REF_NAME = "org.opencontainers.image.ref.name"
IMAGE_NAME = "io.containerd.image.name"

OpenFile = Callable[[str], BinaryIO]
"""Opens a file by name, in a folder or in a tar; raises ``FileNotFoundError``."""


class _Tar:
    def __init__(self, path: Path) -> None:
        self._path = path

    @cached_property
    def _members(self) -> Mapping[str, tarfile.TarInfo]:
        with tarfile.open(self._path, "r:") as tar:
            return {_normal(PurePosixPath(member.name)): member for member in tar}

    def open(self, name: str) -> BinaryIO:
        """Open a member, following links: ``docker save`` writes them for equal layers."""
        member = self._members.get(name)
        for _ in range(5):
            if member is None or not member.issym():
                break
            name = _normal(PurePosixPath(name).parent / member.linkname)
            member = self._members.get(name)
        if member is None or not member.isfile():
            raise FileNotFoundError(errno.ENOENT, "not in the archive", name)
        return cast(BinaryIO, io.BufferedReader(_Section(self._path, member), CHUNK))


class _Section(io.RawIOBase):
    def __init__(self, path: Path, member: tarfile.TarInfo) -> None:
        super().__init__()
        self._file = path.open("rb")
        self._file.seek(member.offset_data)
        self._start, self._size = member.offset_data, member.size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self.tell(), io.SEEK_END: self._size}[whence]
        return self._file.seek(self._start + max(origin + offset, 0)) - self._start

    def tell(self) -> int:
        return self._file.tell() - self._start

    def readinto(self, buffer: Any, /) -> int:
        left = max(self._size - self.tell(), 0)
        return self._file.readinto(memoryview(buffer)[:left])

    def close(self) -> None:
        self._file.close()
        super().close()


def _normal(path: PurePosixPath) -> str:
    parts: list[str] = []
    for part in path.parts:
        if part == ".." and parts:
            parts.pop()
        elif part != ".":
            parts.append(part)
    return "/".join(parts)


def open_location(location: Location, platform: str, layers: LayerCache) -> StoredImage:
    """Read the image for a platform; ``layers`` caches uncompressed layers, compressed."""
    open_file = _opener(location)
    try:
        if location.kind == DOCKER_ARCHIVE:
            return _DockerArchive(open_file, str(location), layers).read(platform)
        return _Layout(open_file, location).read(platform)
    except OSError as error:
        missing = error.filename or error
        raise BuildError(
            f"{location}: cannot be read: {error.strerror or 'no'} {missing}"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, tarfile.TarError) as error:
        raise BuildError(
            f"{location}: not an image of that kind ({type(error).__name__}: {error})",
            hint="archives are uncompressed tars",
        ) from None


def platforms_of(location: Location) -> tuple[str, ...]:
    """Return the platforms of the images in a folder or file."""
    open_file = _opener(location)
    try:
        if location.kind == DOCKER_ARCHIVE:
            entries = json.loads(_read(open_file, "manifest.json"))
            return tuple(platform_of(json.loads(_read(open_file, e["Config"]))) for e in entries)
        return tuple(_Layout(open_file, location).platforms())
    except (OSError, ValueError, KeyError, TypeError, tarfile.TarError) as error:
        raise BuildError(f"{location}: not an image of that kind ({error})") from None


def names_of(entry: Mapping[str, Any]) -> list[str]:
    """Return the names of an image in a layout: its whole name first, its tag last."""
    annotations = entry.get("annotations") or {}
    return [annotations[key] for key in (IMAGE_NAME, REF_NAME) if annotations.get(key)]


def _opener(location: Location) -> OpenFile:
    if location.kind == OCI:
        return lambda name: (location.path / name).open("rb")
    return _Tar(location.path).open


def _read(open_file: OpenFile, name: str) -> bytes:
    with open_file(name) as file:
        return file.read()


class _Layout:
    def __init__(self, open_file: OpenFile, location: Location) -> None:
        self._open = open_file
        self._location = location
        self._where = str(location)

    def read(self, platform: str) -> StoredImage:
        entry: Mapping[str, Any] = pick(self._index(), platform, self._where)
        while entry["mediaType"] in INDEXES:
            entry = pick(json.loads(self._blob(entry["digest"])), platform, self._where)
        raw_manifest = self._blob(entry["digest"])
        manifest = json.loads(raw_manifest)
        raw_config = self._blob(manifest["config"]["digest"])
        config = json.loads(raw_config)
        layers = [
            self._layer(entry, diff_id)
            for entry, diff_id in zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True)
        ]
        return StoredImage(
            digest=entry["digest"],
            config=config,
            raw_config=raw_config,
            raw_manifest=raw_manifest,
            layers=tuple(layers),
        )

    def platforms(self) -> Iterator[str]:
        waiting = list(self._index()["manifests"])
        while waiting:
            entry = waiting.pop(0)
            if entry["mediaType"] in INDEXES:
                waiting += json.loads(self._blob(entry["digest"]))["manifests"]
                continue
            manifest = json.loads(self._blob(entry["digest"]))
            yield platform_of(json.loads(self._blob(manifest["config"]["digest"])))

    def _index(self) -> Mapping[str, Any]:
        """Return the index with the images of one name: the tag's, or the only one's."""
        index: dict[str, Any] = json.loads(_read(self._open, "index.json"))
        tag, images = self._location.tag, index["manifests"]
        if tag is not None:
            images = [each for each in images if tag in names_of(each)]
        names = sorted(names_of(each)[0] for each in index["manifests"] if names_of(each))
        if tag is not None and not images:
            hint = f"it has: {', '.join(names)}" if names else "it has images without names"
            raise BuildError(f"{self._where}: no image has that tag", hint=hint)
        if len({each["digest"] for each in images if names_of(each)}) > 1:
            raise BuildError(
                f"{self._where} has several images: {', '.join(names)}",
                hint=f"choose one: {self._location.kind}:{self._location.path}:{names[0]}",
            )
        return {**index, "manifests": images}

    def _blob(self, digest: str) -> bytes:
        data = _read(self._open, _blob_path(digest))
        if sha256_digest(data) != digest:
            raise BuildError(f"{self._where}: {digest} is damaged")
        return data

    def _layer(self, entry: Mapping[str, Any], diff_id: str) -> StoredLayer:
        descriptor = layer_descriptor(entry, self._where)
        opening = partial(self._open, _blob_path(descriptor.digest))
        return StoredLayer(descriptor=descriptor, diff_id=diff_id, open=opening)


def _blob_path(digest: str) -> str:
    kind, _, name = digest.partition(":")
    if kind != "sha256" or not name.isalnum():
        raise BuildError(f"{digest!r} is not a sha256 digest")
    return f"blobs/sha256/{name}"


class _DockerArchive:
    def __init__(self, open_file: OpenFile, where: str, layers: LayerCache) -> None:
        self._open = open_file
        self._where = where
        self._layers = layers

    def read(self, platform: str) -> StoredImage:
        for entry in json.loads(_read(self._open, "manifest.json")):
            raw_config = _read(self._open, entry["Config"])
            config = json.loads(raw_config)
            if platform_of(config) != platform:
                continue
            pairs = zip(entry["Layers"], config["rootfs"]["diff_ids"], strict=True)
            return StoredImage(
                digest=None,
                config=config,
                raw_config=raw_config,
                raw_manifest=b"",
                layers=tuple(self._layer(name, diff_id) for name, diff_id in pairs),
            )
        raise BuildError(f"{self._where} has no image for {platform}")

    def _layer(self, name: str, diff_id: str) -> StoredLayer:
        return self._layers.tar(diff_id, lambda: self._chunks(name, diff_id))

    def _chunks(self, name: str, diff_id: str) -> Iterator[bytes]:
        hasher = hashlib.sha256()
        with self._open(name) as file, decompressed(file) as tar:
            for chunk in chunks_of(tar):
                hasher.update(chunk)
                yield chunk
        if f"sha256:{hasher.hexdigest()}" != diff_id:
            raise BuildError(f"{self._where}: its layer {diff_id} is damaged")
