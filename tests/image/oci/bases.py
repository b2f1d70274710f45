"""Base images made by hand, as small as can be: no engine and no registry is needed."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mfimage.image.registry.location import Location

_OCI = "application/vnd.oci.image."
OFFICIAL = ("PATH=/usr/local/bin:/usr/bin:/bin", "PYTHON_VERSION=3.11.7", "LANG=C.UTF-8")
FILES = {"usr/local/bin/python3.11": b"program", "usr/local/bin/python3": "python3.11"}


def layer(files: Mapping[str, bytes | str]) -> bytes:
    """Make a tar of files (bytes) and symbolic links (their targets)."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                tar.addfile(member)
            else:
                member.size, member.mode = len(content), 0o755
                tar.addfile(member, io.BytesIO(content))
    return raw.getvalue()


def layout(
    folder: Path,
    *layers: Mapping[str, bytes | str],
    env: Sequence[str] = OFFICIAL,
    platforms: Sequence[str] = ("linux/amd64",),
    **config: Any,
) -> Location:
    """Write an OCI layout of an image with these layers, one a platform."""
    folder.mkdir(parents=True)
    tars = [layer(files) for files in (layers or (FILES,))]
    entries = []
    for platform in platforms:
        system, _, machine = platform.partition("/")
        plain = {
            "os": system,
            "architecture": machine,
            "config": {"Env": list(env), **config},
            "rootfs": {"type": "layers", "diff_ids": [digest(tar) for tar in tars]},
            "history": [{"created_by": f"base {number}"} for number in range(len(tars))],
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{_OCI}manifest.v1+json",
            "config": put(folder, json.dumps(plain).encode(), "config.v1+json"),
            "layers": [put(folder, gzip.compress(t, mtime=0), "layer.v1.tar+gzip") for t in tars],
        }
        described = put(folder, json.dumps(manifest).encode(), "manifest.v1+json")
        entries.append({**described, "platform": {"os": system, "architecture": machine}})
    index = {"schemaVersion": 2, "manifests": entries}
    (folder / "index.json").write_text(json.dumps(index))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return Location(kind="oci", path=folder)


def put(folder: Path, data: bytes, kind: str) -> dict[str, Any]:
    """Write a blob; return its descriptor."""
    path = folder / "blobs" / "sha256" / hashlib.sha256(data).hexdigest()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return {"mediaType": _OCI + kind, "digest": digest(data), "size": len(data)}


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
