"""Unpacking code archives and packages. Digests are verified before, escapes are refused."""

from __future__ import annotations

import contextlib
import io
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from mfimage.errors import PackageError, StorageError
from mfimage.package.spec import BlobRef, FunctionSpec
from mfimage.package.store import Blobs, PackageStore


def members(data: bytes, *, where: str) -> Iterator[tuple[str, bytes, int]]:
    """Yield name, content and mode of every file in a ``tar.gz`` of code."""
    # ``PackageError`` for a member that is not a file inside the folder: absolute paths, ``..``,
    # links, devices.
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
            for member in tar:
                _refuse_escape(member, where)
                file = tar.extractfile(member)
                if file is not None:
                    name = str(PurePosixPath(member.name))
                    yield name, file.read(), 0o755 if member.mode & 0o100 else 0o644
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise PackageError(f"{where}: not a readable archive: {error}") from None


def _refuse_escape(member: tarfile.TarInfo, where: str) -> None:
    parts = PurePosixPath(member.name).parts
    if not parts or parts[0].startswith("/") or ".." in parts or set(member.name) & {"\\", "\0"}:
        raise PackageError(f"{where}: member {member.name!r} would land outside the folder")
    if not (member.isfile() or member.isdir()):
        kind = "a link" if member.islnk() or member.issym() else "a special file"
        raise PackageError(f"{where}: member {member.name!r} is {kind}; only files are allowed")


def extract(data: bytes, folder: Path, *, where: str, without: tuple[str, ...] = ()) -> None:
    """Unpack a code archive into ``folder``, new or empty; all of it or nothing."""
    # Files whose names start with one of ``without`` are left out.
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, content, mode in members(data, where=where):
            if name.startswith(without):
                continue
            path = folder / name
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                path.chmod(mode)
            except (FileExistsError, NotADirectoryError, IsADirectoryError):
                raise PackageError(f"{where}: {name!r} is both a file and a folder") from None
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise StorageError(f"cannot unpack {where}: {error.strerror}") from None
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextlib.contextmanager
def extracted(data: bytes, *, where: str, without: tuple[str, ...] = ()) -> Iterator[Path]:
    """Yield a private folder with what ``extract`` unpacks."""
    with tempfile.TemporaryDirectory(prefix="mfimage-") as text:
        folder = Path(text).resolve() / "code"
        extract(data, folder, where=where, without=without)
        yield folder


def unpack(spec: FunctionSpec, store: PackageStore, folder: Path) -> None:
    """Lay a package out, verified, as in an image: ``function.json``, ``code/``, ``blobs/``."""
    lay_out(
        folder, store, name=spec.name, files={"function.json": spec.to_json()},
        code={"code": spec.code}, artifacts=spec.artifacts.values(),
    )  # fmt: skip


def lay_out(
    folder: Path,
    blobs: Blobs,
    *,
    name: str,
    files: Mapping[str, bytes],
    code: Mapping[str, BlobRef],
    artifacts: Iterable[BlobRef],
) -> None:
    """Write files, unpack code archives and copy artifacts, verified, to an empty folder.

    ``files`` and ``code`` are by their paths in it; ``name`` is what they are of, for errors.
    """
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    for path, ref in code.items():
        extract(blobs.read_blob(ref), folder / path, where=f"the code of {name}")
    kept = folder / "blobs" / "sha256"
    kept.mkdir(parents=True)
    for ref in artifacts:
        with (kept / ref.hex).open("wb") as file:
            file.writelines(blobs.stream_blob(ref))
