"""The user's cache folder: what takes time to make or fetch again, and may be deleted any time.

What is in it is whole or absent, and made once, whichever process asks first.
"""

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
from contextvars import ContextVar
from pathlib import Path

from mfimage.errors import StorageError
from mfimage.files import whole_file
from mfimage.sizes import parse_size

logger = logging.getLogger(__name__)
# Seconds after which a wait is reported.
_SILENCE = 20
# Backups and code capture skip a folder with this in it: https://bford.info/cachedir/
_TAG = "CACHEDIR.TAG"
_SIGNATURE = "Signature: 8a477f597d28d172789f06886806bc55\n"
SIZE_VARIABLE = "MFIMAGE_CACHE_SIZE"
_DEFAULT_SIZE = "10GiB"
# Where to write instead of the cache, which is then only read.
SCRATCH: ContextVar[Path | None] = ContextVar("mfimage_scratch", default=None)


def cache_folder() -> Path:
    """Return the user's cache folder: ``MFIMAGE_CACHE``, else ``mfimage`` in the usual place."""
    chosen = os.environ.get("MFIMAGE_CACHE")
    if chosen:
        return Path(chosen).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mfimage"


def tag(cache: Path) -> None:
    """Mark a cache folder, which is there, as one."""
    path = cache / _TAG
    if not path.exists():
        path.write_text(_SIGNATURE)


def cache_size() -> int:
    """Return how many bytes of blobs may stay: ``MFIMAGE_CACHE_SIZE``, else 10 GiB."""
    text = os.environ.get(SIZE_VARIABLE, "").strip() or _DEFAULT_SIZE
    return parse_size(text, field=SIZE_VARIABLE)


@contextlib.contextmanager
def read_only() -> Iterator[None]:
    """Leave the cache as it is until the block ends; what is fetched meanwhile is forgotten."""
    with tempfile.TemporaryDirectory(prefix="mfimage-") as folder:
        outer = SCRATCH.set(Path(folder))
        try:
            yield
        finally:
            SCRATCH.reset(outer)


def remember(path: Path, data: bytes) -> None:
    """Write a file into the cache; where it cannot be written, it costs time the next time."""
    if SCRATCH.get():
        return
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with whole_file(path) as file:
            file.write(data)


def make_once(
    folder: Path, fill: Callable[[Path], None], is_whole: Callable[[Path], bool] = Path.is_dir
) -> Path:
    """Return a folder; when it is not whole, one process fills it and all others wait."""
    # It is filled beside its place and moved there last, so a kill leaves nothing that looks whole.
    # The next process that fills the folder removes what a kill left.
    if is_whole(folder):
        return folder
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(folder.with_name(f".{folder.name}.lock")):
            if not is_whole(folder):
                prefix = f".{folder.name}.partial-"
                for old in [*folder.parent.glob(f"{prefix}*"), folder]:
                    shutil.rmtree(old, ignore_errors=True)
                fresh = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
                try:
                    fill(fresh)
                    fresh.rename(folder)
                finally:
                    shutil.rmtree(fresh, ignore_errors=True)
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
    """Hold a lock file, which its holder may remove; the kernel releases it when a process ends."""
    while True:
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                with reported(f"waiting for another process, which has {path}"):
                    fcntl.flock(file, fcntl.LOCK_EX)
            try:
                if is_at(path, file.fileno()):
                    yield
                    return
            finally:
                # Explicitly: a process that was forked meanwhile has the file open, too.
                fcntl.flock(file, fcntl.LOCK_UN)


@contextlib.contextmanager
def reported(doing: str) -> Iterator[None]:
    """Log now and then what takes so long."""
    done = threading.Event()
    began = time.monotonic()

    def report() -> None:
        while not done.wait(_SILENCE):
            logger.warning("still %s after %.0f s", doing, time.monotonic() - began)

    thread = threading.Thread(target=report, name="mfimage-report", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def is_at(path: Path, descriptor: int) -> bool:
    """Return whether an open file is still the one at ``path``."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
