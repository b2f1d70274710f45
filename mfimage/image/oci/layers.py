"""The layers of a plan: what decides each one's content, and what it holds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from mfimage.errors import OptionError
from mfimage.files import EPOCH
from mfimage.image.oci.base_python import BasePython
from mfimage.image.oci.dependencies import installer_version, laid_out
from mfimage.image.oci.tar import Folder, Member, layer_tar
from mfimage.image.plan.files import ContextFile
from mfimage.image.plan.layers import BlobPath, artifact_files, code_files, runtime_files
from mfimage.image.plan.plan import ArtifactLayer, ImagePlan
from mfimage.package.spec import sha256_digest

EPOCH_VARIABLE = "SOURCE_DATE_EPOCH"
_LATEST = 8**11 - 1  # what a tar's header can hold


@dataclass(frozen=True, kw_only=True)
class PlannedLayer:
    """A layer that is not made yet.

    Attributes
    ----------
    name, reason : str
        As of `BuiltLayer`.
    inputs : tuple of str
        What decides its content: equal ones give an equal layer.
    chunks : callable
        Makes its tar.
    """

    name: str
    reason: str
    inputs: tuple[str, ...]
    chunks: Callable[[], Iterable[bytes]]


def image_epoch() -> int:
    """Return the time of everything in an image: ``SOURCE_DATE_EPOCH``, else 1980-01-01.

    Raises
    ------
    OptionError
        When the variable holds no time.
    """
    text = os.environ.get(EPOCH_VARIABLE, "")
    if not text:
        return EPOCH
    if not (text.isascii() and text.isdigit() and int(text) <= _LATEST):
        raise OptionError(
            f"{EPOCH_VARIABLE}: {text!r} is no time that an archive can hold",
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
    """List the layers above the base, lowest first; nothing large is read.

    Parameters
    ----------
    plan : ImagePlan
        What to build.
    blob_path : callable
        Returns where a blob is; called when a layer is made.
    python : BasePython
        The base's.
    epoch : int
        The time of all files.
    compiled : bool
        Whether Python files are compiled.
    secrets : mapping of str to bytes
        Credentials for the installer.
    """

    def tar(members: Iterable[Member]) -> Iterator[bytes]:
        return layer_tar(members, epoch=epoch)

    def dependencies() -> Iterator[bytes]:
        with laid_out(
            plan, blob_path, python=python.path, compiled=compiled, secrets=secrets
        ) as members:
            yield from tar(members)

    lock = plan.dependencies.digest
    stamp = f"time {epoch}"
    layers = [
        PlannedLayer(
            name="dependencies",
            reason=f"lock {lock}",
            inputs=(
                "dependencies", stamp, lock, plan.platform, plan.python, python.path,
                python.version, f"uv {installer_version()}", f"compiled {compiled}",
            ),
            chunks=dependencies,
        ),
        *(_artifact(layer, blob_path, stamp, tar) for layer in plan.artifacts),
    ]  # fmt: skip
    runtime = runtime_files(plan)
    layers.append(
        PlannedLayer(
            name="runtime",
            reason=f"mfimage {plan.version}",
            inputs=("runtime", stamp, *map(_identity, runtime)),
            chunks=lambda: tar(runtime),
        )
    )
    # The working directory is there even if no file is.
    code: list[Member] = [*code_files(plan, blob_path), Folder(path=plan.workdir.lstrip("/"))]
    layers.append(
        PlannedLayer(
            name="code",
            reason=f"function {plan.digest}",
            inputs=("code", stamp, *map(_identity, code)),
            chunks=lambda: tar(code),
        )
    )
    return layers


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
    )


def _identity(file: Member) -> str:
    if not isinstance(file, ContextFile):
        return file.path
    content = file.content if isinstance(file.content, bytes) else file.content.read_bytes()
    return f"{file.path} {file.mode:o} {sha256_digest(content)}"
