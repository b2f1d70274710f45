"""The layers of a plan: what decides and fills each, and where it is found.

A layer comes from this machine's cache, from a cache in a registry (``--cache-from``), or is made.
A cache in a registry is an artifact whose layers are the image's own, each with the key of its
inputs. So a machine that pushes to that registry need not download the layers that it finds.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mfimage.errors import OptionError, RegistryError
from mfimage.files import EPOCH
from mfimage.image.oci.base import BasePython, Images
from mfimage.image.oci.cache import LayerCache, work_folder
from mfimage.image.oci.compression import installed_version
from mfimage.image.oci.images import StoredLayer, encode, layer_descriptor
from mfimage.image.oci.libraries import note_expected
from mfimage.image.oci.tar import Folder, Member, layer_tar
from mfimage.image.plan.files import ContextFile
from mfimage.image.plan.layers import BlobPath, artifact_files, code_files, runtime_files
from mfimage.image.plan.plan import ArtifactLayer, ImagePlan
from mfimage.image.registry.client import RegistryClient, repository_of
from mfimage.image.registry.descriptors import MANIFEST
from mfimage.image.registry.reference import DEFAULT_TAG, Reference
from mfimage.package.spec import BlobRef, sha256_digest
from mfimage.runtime.layout import FUNCTION, RUNTIME, VENV

ARTIFACT_TYPE = "application/vnd.mfimage.layers.v1"
_EMPTY = b"{}"
_EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
_INPUTS, _DIFF_ID = "io.mfimage.inputs", "io.mfimage.diff-id"
EPOCH_VARIABLE = "SOURCE_DATE_EPOCH"
_LATEST = 8**11 - 1  # what fits into a tar's header
# What a base has there would be imported, or run: the lowest layer of ours hides it.
_OURS = (VENV, FUNCTION, RUNTIME)
_HIDDEN = [ContextFile(path=f"{each[1:]}/.wh..wh..opq", content=b"") for each in _OURS]


@dataclass(frozen=True, kw_only=True)
class PlannedLayer:
    """A layer to be found or made, with name and reason as in `BuiltLayer`."""

    name: str
    reason: str
    inputs: tuple[str, ...]  # all that decides its content
    chunks: Callable[[], Iterable[bytes]]  # yields its tar
    size: int = 0  # bytes of its files, where known before it is made
    making: str = "packing"  # what happens first


def image_epoch() -> int:
    """Return the time of everything in an image: ``SOURCE_DATE_EPOCH``, else 1980-01-01."""
    text = os.environ.get(EPOCH_VARIABLE, "")
    if not text:
        return EPOCH
    if not (text.isascii() and text.isdigit() and int(text) <= _LATEST):
        raise OptionError(
            f"{EPOCH_VARIABLE}: {text!r} is not a time that an archive can store",
            hint="seconds since 1970, as `git log -1 --format=%ct` prints them",
        )
    return int(text)


def planned_layers(
    plan: ImagePlan,
    blob_path: BlobPath,
    python: BasePython,
    *,
    epoch: int,
    compiled: bool,
    secrets: Mapping[str, bytes],
) -> list[PlannedLayer]:
    """List the layers above the base, lowest first; nothing large is read."""

    def tar(members: Iterable[Member]) -> Iterator[bytes]:
        return layer_tar(members, epoch=epoch)

    def dependencies() -> Iterator[bytes]:
        from mfimage.image.oci.dependencies import laid_out

        with laid_out(
            plan, blob_path, python=python.path, compiled=compiled, secrets=secrets
        ) as members:
            note_expected(inputs, members)
            yield from tar([*members, *_HIDDEN])

    runtime = runtime_files(plan)

    def runtime_tar() -> Iterator[bytes]:
        from mfimage.image.oci.dependencies import compiled_files

        with work_folder() as folder:
            more = compiled_files(runtime, plan.python, folder) if compiled else []
            yield from tar([*runtime, *more])

    lock = plan.dependencies.digest
    stamp = f"time {epoch}"
    inputs = (
        "dependencies", stamp, lock, plan.platform, plan.python, python.path,
        python.version, f"uv {_uv_version()}", f"compiled {compiled}", *_OURS,
    )  # fmt: skip
    layers = [
        PlannedLayer(
            name="dependencies",
            reason=f"lock {lock}",
            inputs=inputs,
            chunks=dependencies,
            making="installing",
        ),
        *(_artifact(layer, blob_path, stamp, tar) for layer in plan.artifacts),
    ]  # fmt: skip
    # Compiled files depend on the minor version, as the magic number and the code do.
    kind = f"compiled {plan.python}" if compiled else "not compiled"
    layers.append(
        PlannedLayer(
            name="runtime",
            reason=f"mfimage {plan.version}",
            inputs=("runtime", stamp, kind, *map(_identity, runtime)),
            chunks=runtime_tar,
        )
    )
    # The working directory exists even without files.
    code: list[Member] = [
        *code_files(plan, blob_path),
        Folder(path=plan.workdir.lstrip("/"), mode=plan.workdir_mode),
    ]
    layers.append(
        PlannedLayer(
            name="code",
            reason=f"{plan.subject.kind} {plan.subject.digest}",
            inputs=("code", stamp, *map(_identity, code)),
            chunks=lambda: tar(code),
        )
    )
    return layers


def _uv_version() -> str:
    """Return the version of uv, which decides what is installed."""
    if found := installed_version("uv"):
        return found
    from mfimage.capture.lock.uv import run_uv

    return run_uv(["--version"], Path.cwd(), os.environ).strip()


def _artifact(
    layer: ArtifactLayer,
    blob_path: BlobPath,
    stamp: str,
    tar: Callable[[Iterable[Member]], Iterator[bytes]],
) -> PlannedLayer:
    digests = tuple(blob.digest for blob in layer.blobs)
    return PlannedLayer(
        name=f"artifact:{','.join(layer.names)}",
        reason=f"artifact {', '.join(digests)}",
        inputs=("artifact", stamp, *digests),
        chunks=lambda: tar(artifact_files(layer, blob_path)),
        size=sum(blob.size for blob in layer.blobs),
    )


def _identity(file: Member) -> str:
    if not isinstance(file, ContextFile):
        return file.path
    content = file.content if isinstance(file.content, bytes) else file.content.read_bytes()
    return f"{file.path} {file.mode:o} {sha256_digest(content)}"


class SharedCache:
    """Layers in this machine's cache, and in caches in registries (``sources``, in this order).

    ``say`` is called with a line if a registry cannot be used.
    """

    def __init__(
        self, local: LayerCache, images: Images, *, sources: Sequence[Reference],
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._local = local
        self._images = images
        self._sources = sources
        self._say = say
        self._imported: Mapping[str, tuple[RegistryClient, StoredLayer]] | None = None
        self._used: dict[str, StoredLayer] = {}

    def layer(self, planned: PlannedLayer) -> StoredLayer:
        """Return a layer from this machine's cache or a registry's; else make it."""
        key = self._local.key(planned.inputs)
        layer = self._local.find(planned.inputs)
        if layer is None and not self._local.fresh:
            client, layer = self._others().get(key, (None, None))
            if client and layer and layer.source:
                held = client.has_blob(layer.source[1], layer.digest, layer.size)
                layer = layer if held else None
        layer = layer or self._local.layer(planned.inputs, planned.chunks)
        self._used[key] = layer
        return layer

    def _others(self) -> Mapping[str, tuple[RegistryClient, StoredLayer]]:
        if self._imported is None:
            found: dict[str, tuple[RegistryClient, StoredLayer]] = {}
            for source in self._sources:
                found = {**self._read(source), **found}
            self._imported = found
        return self._imported

    def _read(self, source: Reference) -> dict[str, tuple[RegistryClient, StoredLayer]]:
        client, repository = self._images.client(source), repository_of(source)
        try:
            response = client.manifest(repository, source.digest or source.tag or DEFAULT_TAG)
        except RegistryError as error:
            self._say(f"cache-from: {error.message}")
            return {}
        if response is None:
            return {}  # nothing was exported yet
        manifest = json.loads(response[1])
        if manifest.get("artifactType") != ARTIFACT_TYPE:
            raise RegistryError(
                f"cache-from: {source} is not a cache of the oci builder",
                hint="name what --cache-to wrote with --builder oci; images are caches of the "
                "docker builder only",
            )
        found = {}
        for entry in manifest["layers"]:
            descriptor = layer_descriptor(entry, str(source))
            ref = BlobRef(digest=descriptor.digest, size=descriptor.size)
            layer = StoredLayer(
                descriptor=descriptor, diff_id=entry["annotations"][_DIFF_ID],
                open=partial(self._images.open_blob, client, repository, ref),
                source=(client.host, repository), cached=True, shared=True,
            )  # fmt: skip
            found[entry["annotations"][_INPUTS]] = client, layer
        return found

    def export(self, target: Reference, pushed: Sequence[Reference]) -> None:
        """Push the layers that were used; they are mounted from where the image was pushed."""
        try:
            self._export(target, pushed)
        except RegistryError as error:
            self._say(f"cache-to: {error.message}")

    def _export(self, target: Reference, pushed: Sequence[Reference]) -> None:
        client, repository = self._images.client(target), repository_of(target)
        near = {repository_of(each) for each in pushed if each.host == target.host}
        for layer in self._used.values():
            host, origin = layer.source or ("", "")
            sources = {*near, *([origin] if host == client.host else [])}
            client.push_blob(
                repository, layer.digest, layer.size, layer.open,
                sources=tuple(sorted(sources - {repository})),
            )  # fmt: skip
        client.push_blob(repository, sha256_digest(_EMPTY), len(_EMPTY), lambda: io.BytesIO(_EMPTY))
        name = target.tag or DEFAULT_TAG
        client.push_manifest(repository, name, MANIFEST, encode(self._manifest()))

    def _manifest(self) -> dict[str, object]:
        empty = {
            "mediaType": _EMPTY_TYPE, "digest": sha256_digest(_EMPTY), "size": len(_EMPTY)
        }  # fmt: skip
        layers = [
            {**layer.descriptor.to_dict(), "annotations": {_INPUTS: key, _DIFF_ID: layer.diff_id}}
            for key, layer in sorted(self._used.items())
        ]
        return {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": ARTIFACT_TYPE,
            "config": empty,
            "layers": layers,
        }
