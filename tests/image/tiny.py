"""Whole builds that need neither an engine nor an index: a base of one file, an empty lock."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from mfimage.image.builder import BuiltImage
from mfimage.image.oci.builder import OciBuilder
from mfimage.image.plan.options import BuildOptions
from mfimage.image.plan.plan import ImagePlan, make_plan
from mfimage.image.plan.subject import function_subject
from mfimage.image.registry.location import Location
from mfimage.image.secrets.scan import scan_image
from tests.image.sample import Sample

_OCI = "application/vnd.oci.image."


_FILES: Mapping[str, bytes] = {"etc/base": b""}


def write_base(
    folder: Path, *, python: str = "3.11.7", files: Mapping[str, bytes] = _FILES
) -> Location:
    """Write a base for this machine as an OCI layout; nothing of it can run."""
    (folder / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)

    def put(data: bytes, kind: str) -> dict[str, Any]:
        name = hashlib.sha256(data).hexdigest()
        (folder / "blobs" / "sha256" / name).write_bytes(data)
        return {"mediaType": _OCI + kind, "digest": f"sha256:{name}", "size": len(data)}

    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    data = layer.getvalue()
    path = "PATH=/usr/local/bin:/usr/bin:/bin"
    config = {
        "os": "linux",
        "architecture": "amd64",
        "config": {"Env": [path, f"PYTHON_VERSION={python}"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(data).hexdigest()}"]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_OCI}manifest.v1+json",
        "config": put(json.dumps(config).encode(), "config.v1+json"),
        "layers": [put(data, "layer.v1.tar")],
    }
    described = put(json.dumps(manifest).encode(), "manifest.v1+json")
    index = {"schemaVersion": 2, "manifests": [described]}
    (folder / "index.json").write_text(json.dumps(index))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return Location(kind="oci", path=folder)


def open_oci(secrets: dict[str, bytes] | None = None, **options: Any) -> OciBuilder:
    return OciBuilder(
        compression="gzip", compiled=False, fresh=False, secrets=secrets or {},
        on_event=lambda _: None, **options,
    )  # fmt: skip


def plan_on(builder: OciBuilder, base: Location, sample: Sample, **options: Any) -> ImagePlan:
    """Plan a sample on a base."""
    return make_plan(
        function_subject(sample.spec()),
        lock=sample.lock,
        base=builder.base(base, "linux/amd64"),
        options=BuildOptions(platform="linux/amd64", **options),
    )


def build_layout(
    base: Location, sample: Sample, folder: Path, *, secrets: Any = None, **options: Any
) -> tuple[str, BuiltImage]:
    """Build a sample into a layout, as `mfimage build` does; return its name."""
    with closing(open_oci(secrets)) as builder:
        image = builder.build(plan_on(builder, base, sample, **options), sample.blobs.path)
        scan_image(builder, image, sample.blobs.path, secrets or {})
        builder.write([image], Location(kind="oci", path=folder), ())
    return f"oci:{folder}", image
