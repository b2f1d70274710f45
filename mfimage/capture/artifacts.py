"""A task's artifact blobs, copied as stored bytes, never unpickled."""

from __future__ import annotations

from collections.abc import Iterable

from mfimage.capture.task import TaskInfo, missing_artifact
from mfimage.errors import CaptureError
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
    CaptureError
        When what is stored is not the artifact's content.
    """
    return {name: _copy(task, name, store) for name in sorted(names)}


def _copy(task: TaskInfo, name: str, store: PackageStore) -> ArtifactRef:
    artifact = task.artifacts.get(name)
    if artifact is None:
        raise missing_artifact(task, name)
    if artifact.type == _INCLUDED_FILE:
        raise CaptureError(
            f"artifact {name!r} of {task.pathspec} is an IncludeFile: its content is not in it",
            hint=f"keep the content in a step, as self.{name}_text = self.{name}, "
            "or name the artifacts that the function needs with artifacts=",
        )
    with task.store.open(name) as (path, compressed):
        blob = store.put_file(path)
    return ArtifactRef(
        digest=blob.digest,
        size=blob.size,
        encoding=f"gzip+{artifact.encoding}" if compressed else artifact.encoding,
        type=artifact.type,
        info=artifact.info,
    )
