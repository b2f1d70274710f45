"""Reading images from folders and archives, each file held against its digest."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol, cast

from mfimage.errors import BuildError
from mfimage.image.oci.cache import Layer, LayerCache
from mfimage.image.oci.compression import decompressed
from mfimage.image.oci.images import (
    INDEXES,
    StoredImage,
    StoredLayer,
    layer_descriptor,
    pick,
    platform_of,
)
from mfimage.image.registry.descriptors import Descriptor
from mfimage.image.registry.location import DOCKER_ARCHIVE, OCI, Location

_CHUNK = 1 << 20
_REF_NAME = "org.opencontainers.image.ref.name"
_NAMES = ("io.containerd.image.name", _REF_NAME)


class Files(Protocol):
    """Files by name: of a folder, or of a tar."""

    def open(self, name: str) -> BinaryIO:
        """Open a file; ``FileNotFoundError``."""


class FolderFiles:
    """The files below a folder."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def open(self, name: str) -> BinaryIO:
        """Open a file."""
        return (self._path / name).open("rb")


class TarFiles:
    """The members of a tar."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @cached_property
    def _members(self) -> Mapping[str, tarfile.TarInfo]:
        with tarfile.open(self._path, "r:") as tar:
            return {_normal(PurePosixPath(member.name)): member for member in tar}

    def open(self, name: str) -> BinaryIO:
        """Open a member; links, which ``docker save`` makes of equal layers, are followed."""
        member = self._members.get(name)
        for _ in range(5):
            if member is None or not member.issym():
                break
            name = _normal(PurePosixPath(name).parent / member.linkname)
            member = self._members.get(name)
        if member is None or not member.isfile():
            raise FileNotFoundError(errno.ENOENT, "not in the archive", name)
        return cast(BinaryIO, io.BufferedReader(_Section(self._path, member), _CHUNK))


class _Section(io.RawIOBase):
    """A member's bytes in a tar."""

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
    """Read the image for a platform.

    Parameters
    ----------
    location : Location
        Where it lies.
    platform : str
        As ``linux/amd64``.
    layers : LayerCache
        Keeps compressed what lies there uncompressed.

    Raises
    ------
    BuildError
        When there is none, or it is damaged.
    """
    is_folder = location.kind == OCI
    files: Files = FolderFiles(location.path) if is_folder else TarFiles(location.path)
    try:
        if location.kind == DOCKER_ARCHIVE:
            return _DockerArchive(files, str(location), layers).read(platform)
        return _Layout(files, str(location)).read(platform)
    except OSError as error:
        missing = error.filename or error
        raise BuildError(
            f"{location}: cannot be read: {error.strerror or 'no'} {missing}"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, tarfile.TarError) as error:
        raise BuildError(
            f"{location}: is no image of that kind ({type(error).__name__}: {error})",
            hint="archives are uncompressed tars",
        ) from None


def platforms_of(location: Location) -> tuple[str, ...]:
    """Return which platforms there are images for."""
    is_folder = location.kind == OCI
    files: Files = FolderFiles(location.path) if is_folder else TarFiles(location.path)
    try:
        if location.kind == DOCKER_ARCHIVE:
            entries = json.loads(_read(files, "manifest.json"))
            return tuple(platform_of(json.loads(_read(files, e["Config"]))) for e in entries)
        return tuple(_Layout(files, str(location)).platforms())
    except (OSError, ValueError, KeyError, TypeError, tarfile.TarError) as error:
        raise BuildError(f"{location}: is no image of that kind ({error})") from None


def _read(files: Files, name: str) -> bytes:
    with files.open(name) as file:
        return file.read()


class _Layout:
    """An OCI image layout."""

    def __init__(self, files: Files, where: str) -> None:
        self._files = files
        self._where = where

    def read(self, platform: str) -> StoredImage:
        entry: Mapping[str, Any] = pick(self._index(), platform, self._where)
        names = [entry.get("annotations", {}).get(key) for key in _NAMES]
        while entry["mediaType"] in INDEXES:
            entry = pick(json.loads(self._blob(entry["digest"])), platform, self._where)
        raw_manifest = self._blob(entry["digest"])
        manifest = json.loads(raw_manifest)
        raw_config = self._blob(manifest["config"]["digest"])
        config = json.loads(raw_config)
        layers = [
            self._layer(plain, diff_id)
            for plain, diff_id in zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True)
        ]
        return StoredImage(
            digest=entry["digest"],
            config=config,
            raw_config=raw_config,
            raw_manifest=raw_manifest,
            layers=tuple(layers),
            names=tuple(name for name in names if name),
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
        index: Mapping[str, Any] = json.loads(_read(self._files, "index.json"))
        return index

    def _blob(self, digest: str) -> bytes:
        data = _read(self._files, _blob_path(digest))
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
            raise BuildError(f"{self._where}: {digest} is damaged")
        return data

    def _layer(self, plain: Mapping[str, Any], diff_id: str) -> StoredLayer:
        descriptor = layer_descriptor(plain, self._where)
        opening = partial(self._files.open, _blob_path(descriptor.digest))
        return StoredLayer(descriptor=descriptor, diff_id=diff_id, open=opening)


def _blob_path(digest: str) -> str:
    kind, _, name = digest.partition(":")
    if kind != "sha256" or not name.isalnum():
        raise BuildError(f"{digest!r} is no sha256 digest")
    return f"blobs/sha256/{name}"


class _DockerArchive:
    """What ``docker save`` writes."""

    def __init__(self, files: Files, where: str, layers: LayerCache) -> None:
        self._files = files
        self._where = where
        self._layers = layers

    def read(self, platform: str) -> StoredImage:
        for entry in json.loads(_read(self._files, "manifest.json")):
            raw_config = _read(self._files, entry["Config"])
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
                names=tuple(entry.get("RepoTags") or ()),
            )
        raise BuildError(f"{self._where} has no image for {platform}")

    def _layer(self, name: str, diff_id: str) -> StoredLayer:
        layer = self._layers.layer([f"tar {diff_id}"], lambda: self._chunks(name, diff_id))
        return stored(layer)

    def _chunks(self, name: str, diff_id: str) -> Iterator[bytes]:
        hasher = hashlib.sha256()
        with self._files.open(name) as file, decompressed(file) as tar:
            while chunk := tar.read(_CHUNK):
                hasher.update(chunk)
                yield chunk
        if f"sha256:{hasher.hexdigest()}" != diff_id:
            raise BuildError(f"{self._where}: its layer {diff_id} is damaged")


def stored(layer: Layer) -> StoredLayer:
    """Return a layer of the cache as part of an image."""
    descriptor = Descriptor(media_type=layer.media_type, digest=layer.digest, size=layer.size)
    return StoredLayer(descriptor=descriptor, diff_id=layer.diff_id, open=layer.open)
