"""Function packages made by hand, without a task: what a binding would have written."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mfimage.package.spec import (
    ArtifactRef,
    BlobRef,
    EnvironmentSpec,
    FunctionSpec,
    Lineage,
)
from mfimage.package.store import PackageStore
from tests.support.no_lock.no_lock import LOCK

PREDICT = '''\
from mfimage.function.decorator import json_function
from mfimage.function.parameters import FunctionParameters


@json_function
def predict(data: dict, params: FunctionParameters) -> dict:
    """Multiply."""
    return {"y": data["x"] * params.factor}
'''


def archive(files: Mapping[str, str | bytes]) -> bytes:
    """Make a ``code.tar.gz``."""
    members = []
    for name, content in sorted(files.items()):
        data = content.encode() if isinstance(content, str) else content
        member = tarfile.TarInfo(name)
        member.size = len(data)
        members.append((member, data))
    return archive_of(members)


def archive_of(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """Make a ``tar.gz`` of members that nobody checked."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for member, data in members:
            tar.addfile(member, io.BytesIO(data))
    return gzip.compress(raw.getvalue(), mtime=0)


def put_artifact(store: PackageStore, value: Any, **changes: Any) -> ArtifactRef:
    """Store an artifact as Metaflow's datastore does."""
    data = value if isinstance(value, bytes) else gzip.compress(pickle.dumps(value, 4), mtime=0)
    blob = store.put_bytes(data)
    return ArtifactRef(
        **{
            "digest": blob.digest,
            "size": blob.size,
            "encoding": "gzip+pickle-v4",
            "type": type(value).__name__,
            **changes,
        }
    )


def make_spec(code: BlobRef, lock: BlobRef, **changes: Any) -> FunctionSpec:
    """Make what a package says of itself."""
    spec = FunctionSpec(
        name="predict",
        entrypoint="predict:predict",
        task="IrisFlow/1/train/2",
        code=code,
        environment=EnvironmentSpec(
            python="3.11.7", platform="linux/amd64", source="imports", lock=lock
        ),
        lineage=Lineage(
            flow="IrisFlow", run="1", step="train", task="2", created="2026-11-20T12:00:00Z"
        ),
    )
    return replace(spec, **changes)


def make_package(
    root: Path,
    files: Mapping[str, str | bytes] | None = None,
    artifacts: Mapping[str, Any] | None = None,
    **changes: Any,
) -> str:
    """Write a whole package and return its reference.

    By default it multiplies ``x`` by the artifact ``factor``, 3.
    """
    store = PackageStore(root)
    values = {"factor": 3} if artifacts is None else artifacts
    refs = {
        name: value if isinstance(value, ArtifactRef) else put_artifact(store, value)
        for name, value in values.items()
    }
    code = changes.pop("code", None) or store.put_bytes(archive(files or {"predict.py": PREDICT}))
    return store.write(make_spec(code, store.put_bytes(LOCK), artifacts=refs, **changes))
