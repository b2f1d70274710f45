"""Content-addressed blobs and function packages at a root: write, read, verify."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from mfimage.errors import MfimageError, PackageError, ReferenceNotFound
from mfimage.files import chunks_of, sha256_hex, verified_chunks
from mfimage.package.spec import (
    BlobRef,
    CallableSpec,
    FunctionRef,
    FunctionSpec,
    PipelineSpec,
    is_pipeline,
    parse_any,
)
from mfimage.package.storage.blobs import DamagedBlob, Fetch, LocalCopies
from mfimage.package.storage.buckets import RemoteStorage, open_storage, refuse_credentials
from mfimage.package.storage.local import Storage

FILE_NAME = "function.json"


def package_name(spec: CallableSpec | FunctionRef) -> str:
    """Return the path of a package's ``function.json`` below a root."""
    return f"functions/{spec.name}/{spec.digest.removeprefix('sha256:')}/{FILE_NAME}"


def blob_name(ref: BlobRef) -> str:
    """Return a blob's path below a root."""
    return f"blobs/sha256/{ref.hex}"


@dataclass(frozen=True, kw_only=True)
class Package:
    """A function package whose ``function.json`` was read and verified."""

    spec: FunctionSpec
    reference: str
    store: PackageStore

    def read(self, ref: BlobRef) -> bytes:
        """Return a blob's bytes, verified."""
        return self.store.read_blob(ref)


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A pipeline whose ``function.json``, and those of its parts, were read and verified."""

    spec: PipelineSpec
    reference: str
    store: PackageStore
    parts: tuple[Package, ...]


class Blobs(Protocol):
    """Where blobs are: in the root of a package, or in those of several."""

    def read_blob(self, ref: BlobRef) -> bytes:
        """Return a blob, verified."""

    def stream_blob(self, ref: BlobRef) -> Iterable[bytes]:
        """Yield a blob, verified at its end."""


class PackageStore:
    """Function packages under one root: a folder or URL, see ``open_storage``."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.storage: Storage = open_storage(root)
        self._local: LocalCopies | None = None
        if isinstance(self.storage, RemoteStorage):
            self._local = LocalCopies(_fetching(self.storage))

    def put_bytes(self, data: bytes) -> BlobRef:
        """Store ``data`` as a blob, unless it is there already."""
        return self._put(io.BytesIO(data))

    def put_file(self, path: Path) -> BlobRef:
        """Store a file's content as a blob, unless it is there already."""
        with path.open("rb") as file:
            return self._put(file)

    def _put(self, source: BinaryIO) -> BlobRef:
        ref = digest_of(source)
        # A damaged blob of that name is written again: binding repairs a package.
        if not self.holds(ref):
            source.seek(0)
            self.storage.write(blob_name(ref), source)
        if self._local:
            self._local.add(ref, source)
        return ref

    def holds(self, ref: BlobRef) -> bool:
        """Return whether a blob is there: in a folder, verified; in a bucket, by its size."""
        # An object of a bucket is whole or absent, and verified when it is read.
        if self._local:
            return self.storage.size(blob_name(ref)) == ref.size
        try:
            with self.storage.open(blob_name(ref)) as file:
                found = digest_of(file)
        except FileNotFoundError:
            return False
        return found.digest == ref.digest

    def read_blob(self, ref: BlobRef) -> bytes:
        """Return a blob's bytes; ``PackageError`` when it is missing or damaged."""
        with self._explained(ref):
            if self._local:
                return self._local.read(ref)
            data = self.storage.read(blob_name(ref))
            if hashlib.sha256(data).hexdigest() != ref.hex:
                raise DamagedBlob
            return data

    def peek_blob(self, ref: BlobRef) -> bytes | None:
        """Return a blob's bytes if that needs no download, else None; never an error."""
        if self._local:
            return self._local.peek(ref)
        try:
            return self.read_blob(ref)
        except MfimageError:
            return None

    def stream_blob(self, ref: BlobRef) -> Iterator[bytes]:
        """Yield a blob in chunks of at most 1 MiB, the last after the whole was verified."""
        with self.open_blob(ref) as file:
            url = self._url(ref)
            yield from verified_chunks(chunks_of(file), ref.hex, lambda: damaged(url))

    def open_blob(self, ref: BlobRef) -> BinaryIO:
        """Open a blob for reading; what is read is not verified."""
        if self._local:
            return self.blob_file(ref).open("rb")
        with self._explained(ref):
            return self.storage.open(blob_name(ref))

    def blob_file(self, ref: BlobRef) -> Path:
        """Return a file on this machine that holds a blob, verified."""
        # It is the root's own, or a copy that stays as long as this ``PackageStore``; many
        # processes download it once.
        if self._local:
            with self._explained(ref):
                return self._local.file(ref)
        for _ in self.stream_blob(ref):
            pass
        return Path(self._url(ref))

    def unverified_file(self, ref: BlobRef) -> Path:
        """Return a file on this machine for a reader that verifies the digest itself."""
        if self._local:
            return self.blob_file(ref)
        path = Path(self._url(ref))
        with self._explained(ref):
            if not path.is_file():
                raise _NoBlob
        return path

    def _url(self, ref: BlobRef) -> str:
        return self.storage.url(blob_name(ref))

    @contextlib.contextmanager
    def _explained(self, ref: BlobRef) -> Iterator[None]:
        try:
            yield
        except (_NoBlob, FileNotFoundError):
            hint = "bind the function again"
            raise PackageError(f"{self._url(ref)}: missing", hint=hint) from None
        except DamagedBlob:
            raise damaged(self._url(ref)) from None

    def write(self, spec: FunctionSpec | PipelineSpec) -> str:
        """Write ``function.json`` and return its reference; blobs and parts must be there."""
        # Last: an interrupted bind leaves no package that looks whole.
        name = package_name(spec)
        try:
            is_whole = parse_any(self.storage.read(name), where=name).digest == spec.digest
        except (FileNotFoundError, PackageError):
            is_whole = False
        if not is_whole:
            self.storage.write(name, io.BytesIO(spec.to_json()))
        return self.storage.url(name)


def open_package(reference: str | os.PathLike[str]) -> Package:
    """Read the function package that a path or URL of a ``function.json``, or its folder, names.

    Raises ``ReferenceNotFound`` or ``PackageError``, also for a pipeline.
    """
    found = open_any(reference)
    if isinstance(found, Pipeline):
        hint = "name one of its parts: `mfimage inspect` shows their references"
        raise PackageError(f"{found.reference}: {is_pipeline(found.spec)}", hint=hint)
    return found


def open_any(reference: str | os.PathLike[str]) -> Package | Pipeline:
    """Read the package of a function or of a pipeline, with its parts."""
    root, name = split_reference(os.fspath(reference))
    store = PackageStore(root)
    spec = _read_spec(store, name)
    url = store.storage.url(name)
    if isinstance(spec, FunctionSpec):
        return Package(spec=spec, reference=url, store=store)
    read = {part.digest: _read_part(store, part, url) for part in spec.parts}
    parts = tuple(read[part.digest] for part in spec.parts)
    return Pipeline(spec=spec, reference=url, store=store, parts=parts)


def _read_part(store: PackageStore, part: FunctionRef, where: str) -> Package:
    name = package_name(part)
    try:
        spec = _read_spec(store, name)
    except ReferenceNotFound as error:
        hint = "copy it with `mfimage copy`, which copies the parts of a pipeline as well"
        raise PackageError(f"{where}: part {part.name}: {error.message}", hint=hint) from None
    if isinstance(spec, PipelineSpec):
        raise PackageError(f"{where}: part {part.name}: {is_pipeline(spec)}")
    return Package(spec=spec, reference=store.storage.url(name), store=store)


def _read_spec(store: PackageStore, name: str) -> FunctionSpec | PipelineSpec:
    url = store.storage.url(name)
    try:
        data = store.storage.read(name)
    except FileNotFoundError:
        hint = "check the path, or bind the function again with `mfimage bind`"
        raise ReferenceNotFound(f"no function package at {url}", hint=hint) from None
    spec = parse_any(data, where=url)
    if package_name(spec) != name:
        hint = "it was changed after it was written; bind the function again"
        raise PackageError(f"{url}: its content is not what its name says", hint=hint)
    return spec


def split_reference(reference: str) -> tuple[str, str]:
    """Return a reference's root, and the path of its ``function.json`` below it."""
    refuse_credentials(reference)
    whole = reference if "://" in reference else os.path.abspath(reference)  # noqa: PTH100  (links stay)
    text = whole.rstrip("/").removesuffix(f"/{FILE_NAME}")
    for parts in (4, 5):  # a name has one part, or two
        root, *rest = f"{text}/{FILE_NAME}".rsplit("/", parts)
        if len(rest) == parts and rest[0] == "functions" and not root.endswith(":/"):
            return root or "/", "/".join(rest)
    ending = "functions/<name>/<digest>/function.json"
    hint = f"a reference ends in {ending}; `mfimage bind` prints it"
    raise ReferenceNotFound(f"{reference!r} is not a reference", hint=hint)


def digest_of(file: BinaryIO) -> BlobRef:
    """Return the digest and size of a file's content from here on."""
    start = file.tell()
    digest = f"sha256:{sha256_hex(chunks_of(file))}"
    return BlobRef(digest=digest, size=file.tell() - start)


def damaged(where: str) -> PackageError:
    """Return the error for bytes that do not have the digest in their name."""
    return PackageError(
        f"{where}: its content does not have the digest that its name says",
        hint="it was damaged or changed; bind the function again",
    )


class _NoBlob(Exception):
    """The root has no such blob."""


def _fetching(storage: RemoteStorage) -> Fetch:
    def fetch(ref: BlobRef, file: BinaryIO) -> None:
        try:
            storage.fetch(blob_name(ref), file)
        except FileNotFoundError:
            raise _NoBlob from None

    return fetch
