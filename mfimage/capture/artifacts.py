"""A task's artifact blobs, copied as stored bytes, never unpickled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mfimage.capture.task import StoredArtifact, TaskInfo, flow_datastore
from mfimage.errors import CaptureError, TaskError
from mfimage.package.spec import ArtifactRef
from mfimage.package.store import PackageStore

_INCLUDED_FILE = "metaflow.includefile.IncludedFile"


def copy_artifacts(
    task: TaskInfo, names: Iterable[str], store: PackageStore
) -> dict[str, ArtifactRef]:
    """Copy artifacts into a package store.

    Parameters
    ----------
    task : TaskInfo
        Whose they are.
    names : iterable of str
        Which.
    store : PackageStore
        Where they go; what is there already is not written again.

    Returns
    -------
    dict of name to ArtifactRef

    Raises
    ------
    TaskError
        When the task has no such artifact, or the datastore lost it.
    """
    found: dict[str, ArtifactRef] = {}
    for name in sorted(names):
        artifact = task.artifacts.get(name)
        if artifact is None:
            raise missing_artifact(task, name)
        if artifact.type == _INCLUDED_FILE:
            raise CaptureError(
                f"artifact {name!r} of {task.pathspec} is an IncludeFile: its content is not in it",
                hint=f"keep the content in a step, as self.{name}_text = self.{name}",
            )
        with _stored(task, name, artifact) as (path, compressed):
            blob = store.put_file(path)
        found[name] = ArtifactRef(
            digest=blob.digest,
            size=blob.size,
            encoding=f"gzip+{artifact.encoding}" if compressed else artifact.encoding,
            type=artifact.type,
            info=artifact.info,
        )
    return found


def missing_artifact(task: TaskInfo, name: str) -> TaskError:
    """Return the error for an artifact that a task does not have."""
    return TaskError(
        f"task {task.pathspec} has no artifact {name!r}",
        hint=f"it has: {', '.join(sorted(task.artifacts)) or 'none'}",
    )


@contextmanager
def _stored(task: TaskInfo, name: str, artifact: StoredArtifact) -> Iterator[tuple[Path, bool]]:
    """Yield the file that holds the stored bytes, and whether the store compressed them."""
    storage, path = _place(task, artifact)
    with storage.load_bytes([path]) as loaded:
        for _, file, meta in loaded:
            if file is None:
                break
            yield Path(file), not (meta or {}).get("cas_raw", False)
            return
    raise TaskError(
        f"artifact {name!r} of {task.pathspec} is gone from the {task.datastore} datastore",
        hint="run the flow again",
    )


def _place(task: TaskInfo, artifact: StoredArtifact) -> tuple[Any, str]:
    flow = flow_datastore(task.flow, task.datastore, task.root)
    storage, key = flow._storage_impl, artifact.key
    return storage, storage.path_join(flow.ca_store._prefix, key[:2], key)
