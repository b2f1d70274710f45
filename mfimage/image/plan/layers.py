"""The files of each layer, the same for every builder.

The same plan gives the same bytes: names sorted, modes 0644 and 0755.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

import mfimage
from mfimage.files import verified_chunks
from mfimage.image.plan.files import ContextFile
from mfimage.image.plan.plan import ArtifactLayer, ImagePlan
from mfimage.image.sbom.document import make_sbom
from mfimage.package.archive import members
from mfimage.package.spec import BlobRef
from mfimage.package.store import damaged
from mfimage.runtime import layout

BlobPath = Callable[[BlobRef], Path]
"""Returns the file on this machine that holds a blob."""
# A build asks several times for the same plan's, and making the SBOM takes time.
_made: deque[tuple[ImagePlan, list[ContextFile]]] = deque(maxlen=4)


def layer_files(plan: ImagePlan, blob_path: BlobPath) -> dict[str, list[ContextFile]]:
    """List the files of each layer above the dependencies, lowest first."""
    # Paths are those in the image, without the ``/`` before them.
    return {
        **{artifact_folder(each): artifact_files(each, blob_path) for each in plan.artifacts},
        "runtime": runtime_files(plan),
        "code": code_files(plan, blob_path),
    }


def artifact_files(layer: ArtifactLayer, blob_path: BlobPath) -> list[ContextFile]:
    """List an artifact layer's files."""
    return [
        blob_file(_in_function(layout.BLOBS, blob.hex), blob, blob_path) for blob in layer.blobs
    ]


def inside(*parts: str) -> str:
    """Return a path in an image without the ``/`` before it."""
    return str(PurePosixPath(*parts)).lstrip("/")


def _in_function(*parts: str) -> str:
    return inside(layout.FUNCTION, *parts)


def blob_file(path: str, blob: BlobRef, blob_path: BlobPath) -> ContextFile:
    """Return a file with a blob's content, which is verified when it is read."""
    return ContextFile(path=path, content=blob_path(blob), digest=blob.hex)


def runtime_files(plan: ImagePlan) -> list[ContextFile]:
    """List mfimage's own files."""
    files = own_files(plan.runtime)
    for name, module in sorted(plan.programs.items()):
        # Without site-packages it starts in half the time; probes call it every few seconds.
        text = (
            f"#!{layout.VENV}/bin/python -IS\nimport sys\nsys.path.append({layout.RUNTIME!r})\n"
            f"from {module} import main\nsys.exit(main(sys.argv[1:]))\n"
        )
        path_in_image = inside(layout.PROGRAMS, name)
        files.append(ContextFile(path=path_in_image, content=text.encode(), mode=0o755))
    return files


def own_files(patterns: Iterable[str]) -> list[ContextFile]:
    """List the files of this mfimage that match patterns, as they are in an image."""
    # The extension is beside the package, installed or not.
    root = Path(mfimage.__file__).parent.parent
    found = {path for pattern in patterns for path in root.glob(pattern) if path.is_file()}
    files = []
    for path in sorted(found):
        name = inside(layout.RUNTIME, path.relative_to(root).as_posix())
        files.append(ContextFile(path=name, content=path.read_bytes()))
    return files


def code_files(plan: ImagePlan, blob_path: BlobPath) -> list[ContextFile]:
    """List the code and its description, the lock that is installed, and the SBOM."""
    for known, made in _made:
        if known is plan:
            return list(made)
    subject = plan.subject
    described = {**subject.files, layout.LOCK: plan.dependencies.lock}
    files = [ContextFile(path=_in_function(k), content=data) for k, data in described.items()]
    for folder, code in subject.code.items():
        data = b"".join(verified(blob_file("", code, blob_path)))
        for name, content, mode in members(data, where=f"the code of {subject.name}"):
            path = _in_function(folder, name)
            files.append(ContextFile(path=path, content=content, mode=mode))
    sbom = make_sbom(plan, files, runtime_files(plan))
    files.append(ContextFile(path=_in_function(layout.SBOM), content=sbom))
    _made.append((plan, files))
    return list(files)


def sbom_file(files: Iterable[ContextFile]) -> bytes:
    """Return the SBOM among an image's code files."""
    path = _in_function(layout.SBOM)
    return next(b"".join(file.chunks()) for file in files if file.path == path)


def artifact_folder(layer: ArtifactLayer) -> str:
    """Return the name of an artifact layer's folder in the context."""
    # No two layers share a blob, so the first one is enough.
    return f"artifact-{layer.blobs[0].hex[:16]}"


def verified(file: ContextFile) -> Iterator[bytes]:
    """Return a file's content, which raises before the end if it does not match its digest."""
    if file.digest is None:
        return file.chunks()
    where = str(file.content) if isinstance(file.content, Path) else file.path
    return verified_chunks(file.chunks(), file.digest, lambda: damaged(where))
