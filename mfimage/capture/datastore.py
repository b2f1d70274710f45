"""A task's artifacts as Metaflow's datastore keeps them: bytes, never unpickled.

The one module that knows the datastore's inside.
"""

from __future__ import annotations

import gzip
import io
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mfimage.errors import CaptureError, TaskError

_SUCCESS = "_success"


@dataclass(frozen=True, kw_only=True)
class StoredArtifact:
    """Where the datastore keeps an artifact.

    Attributes
    ----------
    key : str
        Its key in the content-addressed store.
    encoding, type, info
        As in ``ArtifactRef``; ``encoding`` without the store's own compression.
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
        When no attempt has finished, or no such datastore is known here.
    """

    def __init__(self, pathspec: str, kind: str, root: str) -> None:
        from metaflow.datastore.exceptions import DataException

        self.pathspec, self.kind, self.root = pathspec, kind, root
        flow, run, step, task = pathspec.split("/")
        self._flow = _flow_datastore(flow, kind, root)
        try:
            self._task = self._flow.get_task_datastore(run, step, task)
        except DataException:
            raise TaskError(
                f"task {pathspec} has not finished", hint="wait for it, or name another"
            ) from None
        self.artifacts: Mapping[str, StoredArtifact] = {
            name: _describe(key, self._task._info.get(name, {}))
            for name, key in self._task._objects.items()
            if not name.startswith("_")
        }

    def succeeded(self) -> bool:
        """Tell whether the task itself says that it went well."""
        return bool(self.constant(_SUCCESS))

    def constant(self, name: str) -> Any:
        """Return an artifact that consists of Python's own values; None when there is none.

        Raises
        ------
        CaptureError
            When its pickle names anything: it is not unpickled then.
        """
        key = self._task._objects.get(name)
        if key is None:
            return None
        with self._open(key, name) as (path, compressed):
            data = path.read_bytes()
        return _Constants(gzip.decompress(data) if compressed else data, name).load()

    @contextmanager
    def open(self, name: str) -> Iterator[tuple[Path, bool]]:
        """Yield the file that holds an artifact's bytes, and whether the store compressed them.

        Raises
        ------
        TaskError
            When the datastore has lost it.
        """
        with self._open(self.artifacts[name].key, name) as found:
            yield found

    @contextmanager
    def _open(self, key: str, name: str) -> Iterator[tuple[Path, bool]]:
        storage = self._flow._storage_impl
        path = storage.path_join(self._flow.ca_store._prefix, key[:2], key)
        with storage.load_bytes([path]) as loaded:
            for _, file, meta in loaded:
                if file is not None:
                    yield Path(file), not (meta or {}).get("cas_raw", False)
                    return
        raise TaskError(
            f"artifact {name!r} of {self.pathspec} is gone from the {self.kind} datastore",
            hint="run the flow again",
        )


class _Constants(pickle.Unpickler):
    """Reads numbers, text, lists and the like; calls nothing, whoever wrote the pickle."""

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
            return FlowDataStore(flow, None, storage_impl=storage, ds_root=root)
    raise TaskError(
        f"datastore {kind!r} is not known here", hint="install the Metaflow extension that has it"
    )


def _describe(key: str, info: Mapping[str, Any]) -> StoredArtifact:
    # Artifacts of old have no encoding; the store says itself whether it compressed them.
    encoding = str(info.get("encoding", "pickle-v2")).removeprefix("gzip+")
    kind = str(info.get("type", "object")).removeprefix("<class '").removesuffix("'>")
    return StoredArtifact(
        key=key, encoding=encoding, type=kind, info=info.get("serializer_info", {})
    )
