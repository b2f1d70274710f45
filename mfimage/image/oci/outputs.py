"""Writes images to folders, files and the Docker engine; a file is whole or absent."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from mfimage.errors import BuildError, EngineError
from mfimage.files import EPOCH, chunks_of, whole_file
from mfimage.image.oci.config import Composed, compose_index
from mfimage.image.oci.images import StoredLayer, encode
from mfimage.image.oci.layout import IMAGE_NAME, REF_NAME, names_of
from mfimage.image.registry.descriptors import INDEX
from mfimage.image.registry.location import OCI, OCI_ARCHIVE, Location
from mfimage.image.registry.reference import Reference
from mfimage.package.spec import sha256_digest

if TYPE_CHECKING:
    from mfimage.image.docker.local import ImageEngine

# Receives how many bytes of layers were read, and how many there are.
OnRead = Callable[[int, int], None]
_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'


class Reading:
    """Counts what is read of images' layers while they are written."""

    def __init__(self, on_read: OnRead) -> None:
        self._on_read = on_read
        self._total = 0
        self.done = 0

    @property
    def spared(self) -> int:
        """Bytes that were not read: the other side has them."""
        return max(self._total - self.done, 0)

    def of(self, images: Sequence[Composed]) -> list[Composed]:
        """Return the images, of which each layer is counted while it is read."""
        sizes = {layer.digest: layer.size for image in images for layer in image.layers}
        self._total = self.done + sum(sizes.values())
        return [
            dataclasses.replace(image, layers=tuple(map(self._counted, image.layers)))
            for image in images
        ]

    def _counted(self, layer: StoredLayer) -> StoredLayer:
        def opened() -> BinaryIO:
            return cast(BinaryIO, _Counted(layer.open(), self._add))

        return dataclasses.replace(layer, open=opened)

    def _add(self, count: int) -> None:
        self.done += count
        self._on_read(self.done, self._total)


class _Counted(io.RawIOBase):
    def __init__(self, file: BinaryIO, on_read: Callable[[int], None]) -> None:
        self._file, self._add = file, on_read

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(size)
        self._add(len(data))
        return data

    def close(self) -> None:
        self._file.close()
        super().close()


def write_images(images: Sequence[Composed], location: Location, tags: Sequence[Reference]) -> None:
    """Write images, one for each platform, to a folder or file. A layout keeps its other images."""
    if location.kind == OCI:
        with _writing(location):
            _write_layout(images, location.path, tags)
        return
    if location.kind == OCI_ARCHIVE:
        chunks = layout_archive(images, tags)
    else:
        chunks = docker_archive(images, tags)
    with _writing(location):
        _write_file(location.path, chunks)


@contextlib.contextmanager
def _writing(location: Location) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename or location.path
        raise BuildError(f"{location} cannot be written: {where}: {error.strerror}") from None


def _write_file(path: Path, chunks: Iterator[bytes]) -> None:
    with whole_file(path, durable=True) as file:
        file.writelines(chunks)


def _blobs(images: Sequence[Composed]) -> Iterator[tuple[str, int, Callable[[], BinaryIO]]]:
    """Yield the digest, size and opener of each blob once, layers first."""
    done: set[str] = set()
    for image in images:
        for layer in image.layers:
            if layer.digest not in done:
                done.add(layer.digest)
                yield layer.digest, layer.size, layer.open
        for data in (image.config, image.manifest):
            if (digest := sha256_digest(data)) not in done:
                done.add(digest)
                yield digest, len(data), lambda data=data: io.BytesIO(data)  # type: ignore[misc]


def _verified(digest: str, size: int, file: BinaryIO) -> Iterator[bytes]:
    hasher, count = hashlib.sha256(), 0
    for chunk in chunks_of(file):
        hasher.update(chunk)
        count += len(chunk)
        yield chunk
    if f"sha256:{hasher.hexdigest()}" != digest or count != size:
        raise BuildError(f"the layer {digest} is damaged", hint="build again")


def _entries(
    images: Sequence[Composed], tags: Sequence[Reference]
) -> tuple[list[Any], bytes | None]:
    """Return the entries of a layout's index, and the images' own index if there are several."""
    if len(images) == 1:
        system, _, machine = images[0].platform.partition("/")
        entry = {
            **images[0].descriptor.to_dict(),
            "platform": {"os": system, "architecture": machine},
        }
        index = None
    else:
        index = compose_index(images)
        entry = {"mediaType": INDEX, "digest": sha256_digest(index), "size": len(index)}
    named = [
        {**entry, "annotations": {REF_NAME: tag.tag, IMAGE_NAME: tag.canonical}} for tag in tags
    ]
    return named or [entry], index


def _write_layout(images: Sequence[Composed], path: Path, tags: Sequence[Reference]) -> None:
    entries, index = _entries(images, tags)
    kept = _others(path, entries)
    blobs = path / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    for digest, size, open_it in _blobs(images):
        target = blobs / digest.partition(":")[2]
        if not (target.is_file() and target.stat().st_size == size):
            with open_it() as file:
                _write_file(target, _verified(digest, size, file))
    if index is not None:
        _write_file(blobs / sha256_digest(index)[7:], iter((index,)))
    _write_file(path / "oci-layout", iter((_LAYOUT,)))
    # Last: until then readers see the old images.
    _write_file(path / "index.json", iter((_index([*kept, *entries]),)))


def _index(entries: Sequence[Any]) -> bytes:
    return encode({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries})


def _others(path: Path, entries: Sequence[Any]) -> list[Any]:
    try:
        names = {each.name for each in path.iterdir()}
    except FileNotFoundError:
        return []
    if not names:
        return []
    if "oci-layout" not in names:
        raise BuildError(
            f"oci:{path} is not an OCI layout: it contains {min(names)}",
            hint="name a new or empty folder, or an OCI layout",
        )
    if "index.json" not in names:
        return []
    known = json.loads((path / "index.json").read_bytes()).get("manifests", [])
    taken = {tuple(names_of(each)[:1]) for each in entries}
    return [each for each in known if tuple(names_of(each)[:1]) not in taken]


def layout_archive(images: Sequence[Composed], tags: Sequence[Reference]) -> Iterator[bytes]:
    """Stream a tar of an OCI layout."""
    entries, index = _entries(images, tags)
    yield from _file("oci-layout", _LAYOUT)
    for digest, size, open_it in _blobs(images):
        yield from _blob(f"blobs/sha256/{digest[7:]}", digest, size, open_it)
    if index is not None:
        yield from _file(f"blobs/sha256/{sha256_digest(index)[7:]}", index)
    yield from _file("index.json", _index(entries))
    yield b"\0" * (2 * tarfile.BLOCKSIZE)


def docker_archive(
    images: Sequence[Composed], tags: Sequence[Reference], *, skip: int = 0
) -> Iterator[bytes]:
    """Stream a Docker archive of one image, without its lowest ``skip`` layers."""
    if len(images) != 1:
        raise BuildError(
            "a Docker archive or engine takes an image for one platform",
            hint="choose one with --platform, write oci:DIR or oci-archive:FILE, or push",
        )
    (image,) = images
    config = f"{image.id[7:]}.json"
    layers = [_layer_name(layer) for layer in image.layers]
    names = [str(tag) for tag in tags]
    manifest = encode([{"Config": config, "RepoTags": names or None, "Layers": layers}])
    done = set()
    for name, layer in zip(layers[skip:], image.layers[skip:], strict=True):
        if name not in done:
            done.add(name)
            yield from _blob(name, layer.digest, layer.size, layer.open)
    yield from _file(config, image.config)
    yield from _file("manifest.json", manifest)
    yield b"\0" * (2 * tarfile.BLOCKSIZE)


def load_into(
    engine: ImageEngine,
    images: Sequence[Composed],
    tags: Sequence[Reference],
    like: Iterable[str],
    whole: Callable[[], Sequence[Composed]],
) -> None:
    """Load an image into the engine, without the layers that one of the images ``like`` it has."""
    # An engine knows a layer by those below it, so it has those with which both begin. An image
    # store that wants all layers refuses the short archive, and is sent the ``whole``.
    wanted = [layer.diff_id for layer in images[0].layers]
    most = 0
    with contextlib.suppress(EngineError):
        for name in like:
            if (found := engine.inspect(name)) is not None:
                pairs = zip(wanted, found.layers, strict=False)
                same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
                most = max(most, same)
            if most >= len(wanted) - 1:
                break
    if most:
        with contextlib.suppress(EngineError):
            engine.load(docker_archive(images, tags, skip=most))
            return
    engine.load(docker_archive(whole(), tags))


def _layer_name(layer: StoredLayer) -> str:
    suffix = layer.descriptor.media_type.partition("+")[2]
    ending = {"gzip": "tar.gz", "zstd": "tar.zst"}.get(suffix, "tar")
    return f"{layer.digest[7:]}.{ending}"


def _blob(name: str, digest: str, size: int, open_it: Callable[[], BinaryIO]) -> Iterator[bytes]:
    yield _header(name, size)
    with open_it() as file:
        yield from _verified(digest, size, file)
    yield b"\0" * (-size % tarfile.BLOCKSIZE)


def _file(name: str, data: bytes) -> Iterator[bytes]:
    yield _header(name, len(data))
    yield data + b"\0" * (-len(data) % tarfile.BLOCKSIZE)


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mtime = size, EPOCH
    return info.tobuf(tarfile.GNU_FORMAT)
