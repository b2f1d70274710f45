"""A task's artifacts as Metaflow's datastore keeps them: bytes, never unpickled.

The only module that knows the datastore's internals.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mfimage.capture.task.patience import make_patient, reading, require_datastore
from mfimage.errors import CaptureError, PackageError, TaskError

_SUCCESS = "_success"


@dataclass(frozen=True, kw_only=True)
class StoredArtifact:
    """Where the datastore keeps an artifact.

    Attributes
    ----------
    key : str
        Its key in the content-addressed store.
    encoding, type, info
        As in ``ArtifactRef``, but ``encoding`` is without the store's own compression.
    """

    key: str
    encoding: str
    type: str
    info: Mapping[str, Any]


class TaskStore:
    """The artifacts of a task's last finished attempt.

    Parameters
    ----------
    pathspec : str
        ``Flow/run/step/task``.
    kind : str
        Type of the datastore, as ``local`` or ``s3``.
    root : str
        Its root folder or URL.

    Raises
    ------
    TaskError
        When no attempt has finished, or the type of datastore is unknown here.
    """

    def __init__(self, pathspec: str, kind: str, root: str) -> None:
        self.pathspec, self.kind, self.root = pathspec, kind, root
        self.artifacts: Mapping[str, StoredArtifact] = {}
        flow, run, step, task = pathspec.split("/")
        self._flow = _flow_datastore(flow, kind, root)
        self._open_task(run, step, task)

    def _open_task(self, run: str, step: str, task: str) -> None:
        from metaflow.datastore.exceptions import DataException

        try:
            with reading(self.kind, self.root):
                self._task = self._flow.get_task_datastore(run, step, task)
        except DataException:
            raise TaskError(
                f"task {self.pathspec} has not finished", hint="wait for it, or name another"
            ) from None
        self.artifacts = {
            name: describe_artifact(key, self._task._info.get(name, {}))
            for name, key in self._task._objects.items()
            if not name.startswith("_")
        }

    def succeeded(self) -> bool:
        """Return whether the task recorded that it succeeded."""
        return bool(self.constant(_SUCCESS))

    def constant(self, name: str) -> Any:
        """Return an artifact of built-in values; None when there is none.

        Raises
        ------
        CaptureError
            When its pickle names a class or function; it is not unpickled then.
        """
        key = self._task._objects.get(name)
        if key is None:
            return None
        with self._open(key, f"artifact {name!r}") as (path, compressed):
            data = path.read_bytes()
        return _Constants(gzip.decompress(data) if compressed else data, name).load()

    @contextmanager
    def open(self, name: str) -> Iterator[tuple[Path, bool]]:
        """Yield the file that holds an artifact's bytes, and whether the store compressed them.

        Raises
        ------
        TaskError
            When it is missing from the datastore.
        """
        with self._open(self.artifacts[name].key, f"artifact {name!r}") as found:
            yield found

    def read_file(self, key: str, what: str) -> bytes:
        """Return a file that Metaflow keeps among the artifacts, verified.

        Raises
        ------
        TaskError
            When it is missing from the datastore.
        PackageError
            When its content does not have that SHA-1.
        """
        with self._open(key, what) as (path, _):
            data = path.read_bytes()
        if hashlib.sha1(data, usedforsecurity=False).hexdigest() != key:
            raise PackageError(
                f"{what} of {self.pathspec} does not have the digest in its key",
                hint="it was damaged or changed; run the flow again",
            )
        return data

    @contextmanager
    def _open(self, key: str, what: str) -> Iterator[tuple[Path, bool]]:
        storage = self._flow._storage_impl
        path = storage.path_join(self._flow.ca_store._prefix, key[:2], key)
        with ExitStack() as stack:
            with reading(self.kind, self.root):
                loaded = list(stack.enter_context(storage.load_bytes([path])))
            for _, file, meta in loaded:
                if file is not None:
                    yield Path(file), not (meta or {}).get("cas_raw", False)
                    return
        raise TaskError(
            f"{what} of {self.pathspec} is gone from the {self.kind} datastore",
            hint="run the flow again",
        )


def local_roots() -> list[str]:
    """Return the local datastores that Metaflow uses here: the client's and the folder's."""
    from metaflow.plugins.datastores.local_storage import LocalStorage

    found = LocalStorage.get_datastore_root_from_config(lambda *_: None, create_on_absent=False)
    return [str(each) for each in dict.fromkeys([LocalStorage.datastore_root, found]) if each]


class _Constants(pickle.Unpickler):
    """Reads numbers, text, lists and the like; calls nothing."""

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(io.BytesIO(data))
        self._name = name

    def find_class(self, module_name: str, global_name: str) -> Any:
        raise CaptureError(f"the pickle of {self._name} names {module_name}.{global_name}")


def _flow_datastore(flow: str, kind: str, root: str) -> Any:
    from metaflow.datastore.flow_datastore import FlowDataStore
    from metaflow.plugins import DATASTORES

    for storage in DATASTORES:
        if kind == storage.TYPE:
            require_datastore(kind)
            found = FlowDataStore(flow, None, storage_impl=storage, ds_root=root)
            make_patient(found._storage_impl, kind, root)
            return found
    raise TaskError(
        f"datastore {kind!r} is not known here", hint="install the Metaflow extension that has it"
    )


def describe_artifact(key: str, info: Mapping[str, Any]) -> StoredArtifact:
    """Return an artifact from a task's own record of it."""
    # Old artifacts have no encoding; the store itself records whether it compressed them.
    encoding = str(info.get("encoding", "pickle-v2")).removeprefix("gzip+")
    kind = str(info.get("type", "object")).removeprefix("<class '").removesuffix("'>")
    return StoredArtifact(
        key=key, encoding=encoding, type=kind, info=info.get("serializer_info", {})
    )
