"""Folders of the cache that are whole or absent, made once, whoever asks first."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from mfimage.errors import StorageError


def make_once(
    folder: Path, fill: Callable[[Path], None], is_whole: Callable[[Path], bool] = Path.is_dir
) -> Path:
    """Return a folder; when it is not there, one process fills it and all others wait.

    It is filled beside its place and moved there in the end, so a kill leaves nothing that looks
    whole. What a kill does leave goes when somebody next fills the folder.

    Parameters
    ----------
    folder : Path
        Where it is to be.
    fill : callable
        Gets an empty folder.
    is_whole : callable
        Tells whether what is there can be used; if not, it is made anew.

    Raises
    ------
    StorageError
        When the cache cannot be written.
    """
    if is_whole(folder):
        return folder
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(folder.with_name(f".{folder.name}.lock")):
            if not is_whole(folder):
                _fill(folder, fill)
    except OSError as error:
        raise StorageError(
            f"cannot write {error.filename or folder}: {error.strerror or error}",
            hint="free some space, or choose a writable cache folder with MFIMAGE_CACHE",
        ) from error
    return folder


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    # The kernel takes the lock from a process that ends, however it ends.
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fill(folder: Path, fill: Callable[[Path], None]) -> None:
    prefix = f".{folder.name}.partial-"
    for old in [*folder.parent.glob(f"{prefix}*"), folder]:
        shutil.rmtree(old, ignore_errors=True)
    fresh = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    try:
        fill(fresh)
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
