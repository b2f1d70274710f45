"""Base images: read from the engine, a registry, a folder or a file, and searched for Python."""

from __future__ import annotations

import contextlib
import datetime
import json
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, BinaryIO

from mfimage.errors import EngineError, OptionError, RegistryError
from mfimage.image.find.info import ImageInfo
from mfimage.image.oci.cache import LAYER, LayerCache, work_folder
from mfimage.image.oci.compression import GZIP, NONE, decompressed
from mfimage.image.oci.images import StoredImage, StoredLayer, encode, layer_descriptor, pick
from mfimage.image.oci.layout import open_location
from mfimage.image.registry.client import RegistryClient, open_registry, repository_of
from mfimage.image.registry.descriptors import Descriptor
from mfimage.image.registry.location import DOCKER_ARCHIVE, Location
from mfimage.image.registry.reference import DEFAULT_TAG, Reference
from mfimage.package.spec import BlobRef, sha256_digest
from mfimage.package.storage.blobs import BlobCache, Held
from mfimage.package.storage.cache import SCRATCH, cache_folder, remember
from mfimage.runtime.layout import VENV

if TYPE_CHECKING:
    from mfimage.image.docker.local import ImageEngine, ImageFiles


@contextlib.contextmanager
def read_image(source: Reference | Location, platform: str) -> Iterator[StoredImage]:
    """Yield the image for a platform; its layers can be opened inside the block."""
    layers = LayerCache(GZIP)
    images = Images(layers)
    try:
        yield images.read(source, platform)
    finally:
        images.close()
        layers.close()


class Images:
    """Images of registries, folders, files and the engine.

    Downloads are cached; layers that are stored uncompressed are cached compressed, in ``layers``.
    """

    def __init__(self, layers: LayerCache) -> None:
        self._layers = layers
        self._blobs = BlobCache()
        self._held: list[Held] = []
        self._clients: dict[str, RegistryClient] = {}

    def client(self, reference: Reference) -> RegistryClient:
        """Return the client of a reference's registry."""
        if reference.host not in self._clients:
            self._clients[reference.host] = open_registry(reference)
        return self._clients[reference.host]

    def read(self, source: Reference | Location, platform: str) -> StoredImage:
        """Read the image for a platform from a registry, a folder or a file."""
        if isinstance(source, Location):
            return open_location(source, platform, self._layers)
        client, repository, where = self.client(source), repository_of(source), str(source)
        wanted = source.digest or source.tag or DEFAULT_TAG
        digest, raw_manifest = self._manifest(client, repository, wanted, where)
        manifest = json.loads(raw_manifest)
        while "manifests" in manifest:
            entry = pick(manifest, platform, where)
            digest, raw_manifest = self._manifest(client, repository, entry["digest"], where)
            manifest = json.loads(raw_manifest)
        described = manifest["config"]
        ref = BlobRef(digest=described["digest"], size=described["size"])
        raw_config = self._path(client, repository, ref).read_bytes()
        config = json.loads(raw_config)
        pairs = zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True)
        return StoredImage(
            digest=digest,
            config=config,
            raw_config=raw_config,
            raw_manifest=raw_manifest,
            layers=tuple(
                self._layer(client, repository, entry, diff_id, where) for entry, diff_id in pairs
            ),
        )

    def read_engine(self, engine: ImageEngine, info: ImageInfo) -> StoredImage:
        """Read an image from the engine."""
        # For an image that stays in the engine (no compression), its description is enough.
        # Otherwise its layers are streamed the first time, then cached by its ID.
        whole = partial(self._read_layers, engine, info)
        if SCRATCH.get() and (cached := self._from_cache(info)):
            return cached
        if self._layers.compression == NONE or SCRATCH.get():
            config = described(*engine.describe(info.id))
            if config is not None:
                return _without_layers(config, whole)
        return whole()

    def _read_layers(self, engine: ImageEngine, info: ImageInfo) -> StoredImage:
        if (found := self._from_cache(info)) is not None:
            return found
        with work_folder() as folder:
            path = folder / "image.tar"
            with path.open("wb") as file:
                for chunk in engine.save(info.id):
                    file.write(chunk)
            platform = f"{info.os}/{info.architecture}"
            source = Location(kind=DOCKER_ARCHIVE, path=path)
            image = open_location(source, platform, self._layers)
        remember(_config_path(info), image.raw_config)
        return image

    def _from_cache(self, info: ImageInfo) -> StoredImage | None:
        try:
            raw_config = _config_path(info).read_bytes()
            config = json.loads(raw_config)
            layers = [self._layers.find_tar(diff_id) for diff_id in config["rootfs"]["diff_ids"]]
        except (OSError, ValueError, LookupError):
            return None
        held = tuple(layer for layer in layers if layer)
        if len(held) < len(layers):
            return None
        return StoredImage(
            digest=None, config=config, raw_config=raw_config, raw_manifest=b"", layers=held
        )

    def _manifest(
        self, client: RegistryClient, repository: str, wanted: str, where: str
    ) -> tuple[str, bytes]:
        found = client.manifest(repository, wanted)
        if found is None:
            raise RegistryError(
                f"{client.host} has no image {where}",
                hint="check the name; a base in a folder or file is named as oci:DIR, "
                "oci-archive:FILE or docker-archive:FILE",
            )
        manifest = json.loads(found[1])
        if "manifests" not in manifest and "layers" not in manifest:
            raise RegistryError(f"{where} is not an image, but {found[0].media_type}")
        return found[0].digest, found[1]

    def _layer(
        self,
        client: RegistryClient,
        repository: str,
        entry: Mapping[str, Any],
        diff_id: str,
        where: str,
    ) -> StoredLayer:
        descriptor = layer_descriptor(entry, where)
        ref = BlobRef(digest=descriptor.digest, size=descriptor.size)
        return StoredLayer(
            descriptor=descriptor,
            diff_id=diff_id,
            open=partial(self.open_blob, client, repository, ref),
            source=(client.host, repository),
        )

    def open_blob(self, client: RegistryClient, repository: str, ref: BlobRef) -> BinaryIO:
        """Open a registry's blob, downloaded unless it is cached."""
        return self._path(client, repository, ref).open("rb")

    def _path(self, client: RegistryClient, repository: str, ref: BlobRef) -> Path:
        def fetch(ref: BlobRef, file: BinaryIO) -> None:
            file.seek(0)
            file.truncate()
            for chunk in client.blob(repository, ref.digest, ref.size):
                file.write(chunk)

        held = self._blobs.hold(ref, fetch)
        self._held.append(held)
        return held.path

    def close(self) -> None:
        """Close connections and release blobs."""
        for client in self._clients.values():
            client.close()
        for held in self._held:
            held.release()
        self._held.clear()


def _config_path(info: ImageInfo) -> Path:
    return cache_folder() / "bases" / f"{info.id.removeprefix('sha256:')}.config"


# Where a base has its Python, and which version: found without running it.

# BuildKit's, for a base without one.
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_OFFICIAL = "/usr/local/bin"
_NAMES = ("python3", "python")
_PYTHON = re.compile(r"python(3\.\d+)")
_INTERPRETER = re.compile(r"(?:.*/)?python(?:3(?:\.\d+)?)?")
_HEADER = re.compile(r".*/include/python3\.\d+/patchlevel\.h")
_DEFINED = re.compile(rb'#define\s+PY_VERSION\s+"(3\.[\d.]+)')
_DPKG = "var/lib/dpkg/status"
_PACKAGE = re.compile(
    rb"^Package: python(3\.\d+)-minimal\n(?:.+\n)*?Version: (?:\d+:)?(3\.\d+\.\d+)", re.MULTILINE
)
_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"


@dataclass(frozen=True, kw_only=True)
class BasePython:
    """A base's Python."""

    path: str  # as ``/usr/local/bin/python3``
    version: str  # as ``3.11.7``, or ``3.11`` if the patch version was not found


def described(
    image: Mapping[str, Any], history: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """Return an image's configuration from an engine's description; None if that is not enough."""
    # An engine does not tell an empty layer from an entry without one.
    layers = image["RootFS"]["Layers"]
    if len(layers) != sum(1 for entry in history if entry["Size"]):
        return None
    entries = []
    for entry in reversed(history):
        created = datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=entry["Created"])
        entries.append(
            {
                "created": f"{created.isoformat()}Z",
                "created_by": entry.get("CreatedBy"),
                "comment": entry.get("Comment"),
                "empty_layer": not entry["Size"],
                "size": entry["Size"],
            }
        )
    names = {
        "architecture": "Architecture", "os": "Os", "os.version": "OsVersion",
        "variant": "Variant", "author": "Author", "config": "Config",
    }  # fmt: skip
    return {
        **{name: image.get(theirs) for name, theirs in names.items()},
        "history": entries,
        "rootfs": {"type": "layers", "diff_ids": layers},
    }


def _without_layers(config: Mapping[str, Any], whole: Callable[[], StoredImage]) -> StoredImage:
    sizes = (entry["size"] for entry in config["history"] if not entry["empty_layer"])

    def opened(number: int) -> BinaryIO:
        return whole().layers[number].open()

    layers = tuple(
        StoredLayer(
            descriptor=Descriptor(media_type=LAYER, digest=diff_id, size=size),
            diff_id=diff_id,
            open=partial(opened, number),
        )
        for number, (diff_id, size) in enumerate(
            zip(config["rootfs"]["diff_ids"], sizes, strict=True)
        )
    )
    return StoredImage(
        digest=None, config=config, raw_config=encode(config), raw_manifest=b"", layers=layers,
        whole=whole,
    )  # fmt: skip


def environment_of(image: StoredImage) -> dict[str, str]:
    """Return a base's variables, in order; ``PATH`` is always among them."""
    pairs = (image.config.get("config") or {}).get("Env") or ()
    found = dict(pair.partition("=")[::2] for pair in pairs)
    return {**found, "PATH": found.get("PATH") or DEFAULT_PATH}


def find_python(
    image: StoredImage,
    where: str,
    files: Callable[[], AbstractContextManager[ImageFiles]] | None = None,
) -> BasePython:
    """Find the Python on a base's ``PATH``."""
    # Official images name its version in a variable. Of others the ``files`` are asked where an
    # engine has them, or the layers are searched; once.
    environment = environment_of(image)
    folders = [folder for folder in environment["PATH"].split(":") if folder.startswith("/")]
    if f"{VENV}/bin" in folders:
        raise OptionError(
            f"base-image: {where} contains a function already, and an image holds one",
            hint="build on the base of that image",
        )
    version = environment.get("PYTHON_VERSION", "")
    if folders[:1] == [_OFFICIAL] and re.fullmatch(r"3\.\d+\.\d+", version):
        return BasePython(path=f"{_OFFICIAL}/python3", version=version)
    key = json.dumps([[layer.diff_id for layer in image.layers], folders])
    known = cache_folder() / "bases" / f"{sha256_digest(key.encode())[7:]}.json"
    try:
        return BasePython(**json.loads(known.read_bytes()))
    except (OSError, ValueError, TypeError):
        found = None
    if files is not None:
        with contextlib.suppress(EngineError), files() as opened:
            found = _ask(opened, folders)
    found = found or _Search(folders).run(image)
    if found is None:
        raise OptionError(
            f"base-image: {where} has no Python in {':'.join(folders)}",
            hint="choose a base with the function's Python, as python:3.11-slim",
        )
    remember(known, json.dumps(vars(found)).encode())
    return found


def _ask(files: ImageFiles, folders: Sequence[str]) -> BasePython | None:
    """Find the Python as `_Search` does; None if its patch version is not found."""
    for path in _candidates(folders):
        real = files.resolve(path)
        if real and (found := _PYTHON.fullmatch(PurePosixPath(real).name)):
            minor = found[1]
            header = files.read(_header(real, minor))
            if header and (defined := _DEFINED.search(header)):
                return BasePython(path=path, version=defined[1].decode())
            version = _versions(files.read(f"/{_DPKG}") or b"").get(minor)
            return BasePython(path=path, version=version) if version else None
    return None


def _candidates(folders: Sequence[str]) -> Iterator[str]:
    for folder in folders:
        yield from (f"{folder.rstrip('/')}/{name}" for name in _NAMES)


def _header(python: str, minor: str) -> str:
    return str(PurePosixPath(python).parent.parent / f"include/python{minor}/patchlevel.h")


@dataclass
class _Search:
    """Searches layers, lowest first, for interpreters and their versions."""

    folders: Sequence[str]
    links: dict[str, str] = field(default_factory=dict)  # targets; "" of a regular file
    headers: dict[str, str] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)

    def run(self, image: StoredImage) -> BasePython | None:
        for layer in image.layers:
            with (
                layer.open() as file,
                decompressed(file) as raw,
                tarfile.open(fileobj=raw, mode="r|") as tar,
            ):
                for member in tar:
                    self._see(member, tar)
        for path in _candidates(self.folders):
            real = self._resolve(path)
            if real and (found := _PYTHON.fullmatch(PurePosixPath(real).name)):
                minor = found[1]
                version = (
                    self.headers.get(_header(real, minor)) or self.packages.get(minor) or minor
                )
                return BasePython(path=path, version=version)
        return None

    def _see(self, member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
        path = PurePosixPath("/", member.name)
        name = str(path)
        if path.name.startswith(_WHITEOUT):
            self._forget(path)
        elif member.isdir() or (member.issym() and not _INTERPRETER.fullmatch(name)):
            # A folder may be a link to another: /bin to /usr/bin.
            if member.issym():
                self.links[name] = member.linkname
        elif _INTERPRETER.fullmatch(name) and (member.issym() or member.isfile() or member.islnk()):
            self.links[name] = member.linkname if member.issym() else ""
        elif _HEADER.fullmatch(name):
            if defined := _DEFINED.search(_content(tar, member)):
                self.headers[name] = defined[1].decode()
        elif name == f"/{_DPKG}":
            self.packages = _versions(_content(tar, member))

    def _forget(self, path: PurePosixPath) -> None:
        whole = path.parent if path.name == _OPAQUE else None
        gone = str(path.parent / path.name.removeprefix(_WHITEOUT))
        for name in list(self.links):
            if name == gone or name.startswith(f"{whole or gone}/"):
                del self.links[name]

    def _resolve(self, path: str) -> str | None:
        for _ in range(20):
            target = self.links.get(path)
            if target == "":
                return path
            if target is not None:
                path = _joined(str(PurePosixPath(path).parent), target)
                continue
            parent = PurePosixPath(path).parent
            linked = self.links.get(str(parent))
            if not linked:
                return None
            path = str(PurePosixPath(_joined(str(parent.parent), linked), PurePosixPath(path).name))
        return None


def _joined(folder: str, target: str) -> str:
    parts: list[str] = []
    for part in PurePosixPath(folder, target).parts[1:]:
        if part == "..":
            parts = parts[:-1]
        else:
            parts.append(part)
    return "/" + "/".join(parts)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file: IO[bytes] | None = tar.extractfile(member)
    return file.read() if file else b""


def _versions(status: bytes) -> dict[str, str]:
    return {minor.decode(): version.decode() for minor, version in _PACKAGE.findall(status)}
