"""A build's context: the plan's files, laid out as the Dockerfile expects them.

::

    Dockerfile
    build/uv.txt                     what pip installs uv from
    build/lock/pylock.toml, wheels/  what uv installs
    layers/artifact-<digest>/        files as they stand in the image, one folder a layer
    layers/runtime/                  mfimage's own
    layers/code/                     the function's

The same plan gives the same layers: fixed times to the second, modes 0644 and 0755.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from mfimage.errors import BuildError, OptionError
from mfimage.image.context_file import ContextFile
from mfimage.image.dockerfile import MARKER, render
from mfimage.image.layer_files import BlobPath, blob_file, layer_files, verified
from mfimage.image.plan import EPOCH, ImagePlan
from mfimage.image.uv_tool import uv_requirement

DOCKERFILE = "Dockerfile"
_FOLDERS = ("build", "layers")


def context_files(plan: ImagePlan, blob_path: BlobPath) -> list[ContextFile]:
    """List the context's files, sorted by path; artifacts are named, not read.

    Parameters
    ----------
    plan : ImagePlan
        What to build.
    blob_path : callable
        Returns where a blob is.

    Raises
    ------
    PackageError
        If the code's archive is damaged, or would write outside its folder.
    """
    files = [
        ContextFile(path=DOCKERFILE, content=render(plan).encode()),
        ContextFile(path="build/uv.txt", content=uv_requirement()),
        ContextFile(path="build/lock/pylock.toml", content=plan.dependencies.lock),
    ]
    for name, blob in plan.dependencies.wheels.items():
        files.append(blob_file(f"build/lock/wheels/{name}", blob, blob_path))
    for layer, contents in layer_files(plan, blob_path).items():
        files += [_moved(file, f"layers/{layer}/{file.path}") for file in contents]
    return sorted(files, key=lambda file: file.path.split("/"))


def _moved(file: ContextFile, path: str) -> ContextFile:
    return ContextFile(path=path, content=file.content, mode=file.mode, digest=file.digest)


def write_context(plan: ImagePlan, folder: Path, blob_path: BlobPath) -> None:
    """Write the context into a folder.

    ``docker build`` of it gives the same image, but for what its SBOM says of the base.
    Artifacts are copied, not linked: their times would have to be changed for equal layers, and
    whoever edits the folder must not reach into the package.

    Parameters
    ----------
    plan : ImagePlan
        What to build.
    folder : Path
        New, empty, or one that this function wrote before.
    blob_path : callable
        Returns where a blob is.

    Raises
    ------
    OptionError
        If the folder holds something else.
    BuildError
        If it cannot be written.
    PackageError
        If a blob is damaged; then the folder is as it was.
    """
    files = context_files(plan, blob_path)
    _refuse_foreign(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".mfimage-", dir=folder) as temporary:
            fresh = Path(temporary)
            _write_files(files, fresh)
            for name in (*_FOLDERS, DOCKERFILE):
                _replace(fresh / name, folder / name)
    except OSError as error:
        where = error.filename or folder
        raise BuildError(
            f"the build context cannot be written: {where}: {error.strerror}",
            hint="choose another folder, or free space",
        ) from None


def _refuse_foreign(folder: Path) -> None:
    try:
        names = sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise OptionError(f"output: {folder}: {error.strerror}") from None
    if names and not _is_ours(folder / DOCKERFILE):
        raise OptionError(
            f"output: {folder} holds other files, as {names[0]}",
            hint="name a new or empty folder, or one rendered before",
        )


def _is_ours(dockerfile: Path) -> bool:
    try:
        with dockerfile.open("rb") as file:
            return file.read(len(MARKER)) == MARKER.encode()
    except OSError:
        return False


def _write_files(files: list[ContextFile], root: Path) -> None:
    folders = {root}
    for file in files:
        path = root / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        folders |= {folder for folder in path.parents if folder.is_relative_to(root)}
        with path.open("wb") as out:
            out.writelines(verified(file))
        path.chmod(file.mode)
        os.utime(path, ns=(EPOCH * 10**9, file.mtime_ns()))
    for folder in sorted(folders - {root}, reverse=True):
        folder.chmod(0o755)
        os.utime(folder, (EPOCH, EPOCH))


def _replace(fresh: Path, path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    fresh.rename(path)
