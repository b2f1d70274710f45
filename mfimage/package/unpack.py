"""A package laid out in a folder, as it stands in an image: what the runtime loads."""

from __future__ import annotations

from pathlib import Path

from mfimage.package.archive import extract
from mfimage.package.spec import FunctionSpec
from mfimage.package.store import PackageStore


def unpack(spec: FunctionSpec, store: PackageStore, folder: Path) -> None:
    """Write ``function.json``, ``code/`` and ``blobs/sha256/`` into ``folder``, all verified.

    Raises
    ------
    PackageError
        When a blob is missing or damaged.
    """
    (folder / "function.json").write_bytes(spec.to_json())
    extract(store.read_blob(spec.code), folder / "code", where=f"the code of {spec.name}")
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    for ref in spec.artifacts.values():
        with (blobs / ref.hex).open("wb") as file:
            file.writelines(store.stream_blob(ref))
