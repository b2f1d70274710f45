"""copy: a function package from one root to another.

Missing blobs are copied first, in parallel; ``function.json`` last. An interrupted copy leaves no
package that looks complete, and copying again sends only what is missing.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Any, Literal

from mfimage.errors import OptionError, PackageError, StorageError
from mfimage.package.spec import BlobRef, FunctionSpec
from mfimage.package.store import (
    PackageStore,
    Pipeline,
    blob_name,
    open_any,
    package_name,
)

THREADS = "mfimage-copy"
# Seconds for running transfers to end after one failed or the user interrupted the copy.
_GRACE = 1.0
_CHUNK = 1 << 20
_Kind = Literal["found", "moving", "copied"]


@dataclass(frozen=True, kw_only=True)
class CopyEvent:
    """Progress of one blob."""

    kind: _Kind  # found: it exists there already; moving: `current` bytes were read
    blob: str  # such as artifact 'model'
    size: int  # bytes, as the others
    current: int
    total: int  # of all blobs of the package


OnProgress = Callable[[CopyEvent], None]


def copy_package(
    reference: str | os.PathLike[str],
    root: str | os.PathLike[str],
    *,
    on_progress: OnProgress = lambda _: None,
    jobs: int = 8,
) -> str:
    """Copy a package to another root and return its reference there.

    Parameters
    ----------
    reference : str or path
        The package of a function, or of a pipeline: with its parts.
    root : str or path
        Folder or URL of the other root.
    on_progress : callable
        Receives events, from one thread at a time.
    jobs : int
        Number of blobs copied at the same time.

    Raises
    ------
    ReferenceNotFound
        If there is no such package.
    PackageError
        If it is damaged; nothing damaged is written.
    StorageError
        If a root cannot be read or written.
    """
    if jobs < 1:
        raise OptionError(f"jobs: expected at least 1, got {jobs}")
    package = open_any(reference)
    target = PackageStore(root)
    name = package_name(package.spec)
    if target.storage.url(name) == package.reference:
        return package.reference
    # A root that does not exist is reported once, not by every blob.
    target.storage.size(name)
    parts = package.parts if isinstance(package, Pipeline) else (package,)
    specs = [part.spec for part in parts]
    _Copy(package.store, specs, target, on_progress).run(jobs)
    with _named("function.json"):
        for spec in specs:
            target.write(spec)
        return target.write(package.spec)


def blob_labels(spec: FunctionSpec) -> dict[str, str]:
    """Return what each blob of a package is, by digest, for errors and progress."""
    labels = {ref.digest: f"wheel {name}" for name, ref in spec.environment.wheels.items()}
    labels |= {ref.digest: f"artifact {name!r}" for name, ref in spec.artifacts.items()}
    return {**labels, spec.code.digest: "code", spec.environment.lock.digest: "lock"}


class _Stopped(Exception):
    """Another blob failed, or the user interrupted the copy."""


class _Copy:
    def __init__(
        self,
        source: PackageStore,
        specs: Sequence[FunctionSpec],
        target: PackageStore,
        on_progress: OnProgress,
    ) -> None:
        self._source = source
        self._target = target
        self._on_progress = on_progress
        self._refs: dict[str, BlobRef] = {}
        self._labels: dict[str, str] = {}
        for spec in specs:
            self._refs |= spec.blobs
            of = f"{spec.name}: " if len(specs) > 1 else ""
            self._labels |= {key: f"{of}{label}" for key, label in blob_labels(spec).items()}
        self._total = sum(ref.size for ref in self._refs.values())
        self._reporting = threading.Lock()
        self._stop = threading.Event()

    def run(self, jobs: int) -> None:
        # The largest first, so that it does not run alone at the end.
        refs = sorted(self._refs.values(), key=lambda ref: ref.size, reverse=True)
        pool = ThreadPoolExecutor(min(jobs, len(refs)), thread_name_prefix=THREADS)
        moving = [pool.submit(self._move, ref) for ref in refs]
        try:
            wait(moving, return_when=FIRST_EXCEPTION)
        finally:
            self._stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            started = [future for future in moving if not future.cancelled()]
            if not wait(started, timeout=_GRACE).not_done:
                pool.shutdown()
        faults = [each.exception() for each in moving if each.done() and not each.cancelled()]
        # A transfer that was stopped is not the cause.
        for fault in sorted(filter(None, faults), key=lambda fault: isinstance(fault, _Stopped)):
            raise fault

    def _move(self, ref: BlobRef) -> None:
        with _named(self._labels[ref.digest]):
            if self._target.holds(ref):
                self._report("found", ref, ref.size)
                return
            if self._stop.is_set():
                raise _Stopped
            self._send(ref)
        self._report("copied", ref, ref.size)

    def _send(self, ref: BlobRef) -> None:
        path = self._source.blob_file(ref)

        def on_read(current: int) -> None:
            if self._stop.is_set():
                raise _Stopped
            self._report("moving", ref, current)

        with BufferedReader(_Watched(path, on_read), _CHUNK) as file:
            self._target.storage.write(blob_name(ref), file)

    def _report(self, kind: _Kind, ref: BlobRef, current: int) -> None:
        blob, total = self._labels[ref.digest], self._total
        event = CopyEvent(kind=kind, blob=blob, size=ref.size, current=current, total=total)
        with self._reporting:
            self._on_progress(event)


class _Watched(FileIO):
    def __init__(self, path: Path, on_read: Callable[[int], None]) -> None:
        super().__init__(path)
        self._on_read = on_read

    def readinto(self, buffer: Any, /) -> int:
        count = super().readinto(buffer)
        self._on_read(self.tell())
        return count or 0


@contextmanager
def _named(label: str) -> Iterator[None]:
    """Name the blob that failed, and say that nothing is lost."""
    try:
        yield
    except (StorageError, PackageError) as error:
        again = "copy again: what has arrived is not sent again"
        hint = f"{error.hint}; then {again}" if error.hint else again
        raise type(error)(f"{label}: {error.message}", hint=hint) from error
