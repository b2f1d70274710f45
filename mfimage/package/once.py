"""What is in the cache is whole or absent, made once, whoever asks first."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from mfimage.errors import StorageError

logger = logging.getLogger(__name__)
# Seconds after which somebody who waits is told what for.
_SILENCE = 20


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
        with locked(folder.with_name(f".{folder.name}.lock")):
            if not is_whole(folder):
                _fill(folder, fill)
    except OSError as error:
        raise not_written(folder, error) from error
    return folder


def not_written(path: Path, error: OSError) -> StorageError:
    """Return the error for a cache that cannot be written."""
    return StorageError(
        f"cannot write {error.filename or path}: {error.strerror or error}",
        hint="free some space, or choose a writable cache folder with MFIMAGE_CACHE",
    )


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file; others wait. Who holds it may remove it.

    The kernel takes the lock from a process that ends, however it ends.
    """
    while True:
        with path.open("w") as file:
            _wait_for(file, path)
            try:
                if is_at(path, file.fileno()):
                    yield
                    return
            finally:
                # Said outright: a process that was forked meanwhile has the file open, too.
                fcntl.flock(file, fcntl.LOCK_UN)


def _wait_for(file: TextIO, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with told(f"waiting for another process, which has {path}"):
            fcntl.flock(file, fcntl.LOCK_EX)


@contextlib.contextmanager
def told(doing: str) -> Iterator[None]:
    """Say now and then what somebody waits for."""
    done = threading.Event()
    began = time.monotonic()

    def tell() -> None:
        while not done.wait(_SILENCE):
            logger.warning("still %s after %.0f s", doing, time.monotonic() - began)

    threading.Thread(target=tell, name="mfimage-told", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def is_at(path: Path, descriptor: int) -> bool:
    """Tell whether an open file is still the one at ``path``."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


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
