"""A small function package on disk, and plans made of it."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mfimage.image.docker.render import context_files
from mfimage.image.plan.base import BaseImage, default_base
from mfimage.image.plan.options import BuildOptions
from mfimage.image.plan.plan import ImagePlan, make_plan
from mfimage.image.plan.subject import function_subject
from mfimage.image.registry.reference import parse_reference
from mfimage.package.spec import (
    ArtifactRef,
    BlobRef,
    EnvironmentSpec,
    FunctionSpec,
    Lineage,
    sha256_digest,
)

LOCK = b'lock-version = "1.0"\ncreated-by = "test"\npackages = []\n'
RAY_LOCK = LOCK.replace(b"[]", b"[{ name = 'ray', version = '2.60.0' }]")
CODE = {"predict.py": b"def predict(data, params):\n    return {}\n"}


@dataclass
class Blobs:
    """Blobs in a folder, by digest."""

    folder: Path

    def put(self, data: bytes) -> BlobRef:
        digest = sha256_digest(data)
        ref = BlobRef(digest=digest, size=len(data))
        self.path(ref).write_bytes(data)
        return ref

    def path(self, ref: BlobRef) -> Path:
        return self.folder / ref.hex


def archive(files: Mapping[str, bytes], **changes: Any) -> bytes:
    """Make a ``code.tar.gz``."""
    raw = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=raw, mode="wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for name, content in sorted(files.items()):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in changes.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(content))
    return raw.getvalue()


@dataclass
class Sample:
    """What a plan is made of; change it, and plan again."""

    blobs: Blobs
    code: dict[str, bytes] = field(default_factory=lambda: dict(CODE))
    artifacts: dict[str, bytes] = field(
        default_factory=lambda: {"model": b"m" * 3000, "feature_names": b"names"}
    )
    wheels: dict[str, bytes] = field(default_factory=dict)
    lock: bytes = LOCK
    created: str | None = "2026-11-20T12:00:00Z"
    description: str = "Run inference\nusing the bound model.\n\nMore."
    system_packages: tuple[str, ...] = ()
    input_schema: dict[str, Any] = field(default_factory=lambda: {"type": "object"})

    def spec(self) -> FunctionSpec:
        put = self.blobs.put
        return FunctionSpec(
            name="predict",
            entrypoint="predict:predict",
            task="MyTrainFlow/123/train/456",
            description=self.description,
            code=put(archive(self.code)),
            input_schema=self.input_schema,
            output_schema={"type": "object", "additionalProperties": {"type": "integer"}},
            environment=EnvironmentSpec(
                python="3.11.7",
                platform="linux/amd64",
                source="imports",
                lock=put(self.lock),
                wheels={name: put(data) for name, data in self.wheels.items()},
                system_packages=self.system_packages,
            ),
            lineage=Lineage(
                flow="MyTrainFlow",
                run="123",
                step="train",
                task="456",
                git_commit="0123456789abcdef0123456789abcdef01234567",
                created=self.created,
            ),
            artifacts={
                name: ArtifactRef(
                    **vars(put(data)), encoding="gzip+pickle-v4", type="builtins.bytes"
                )
                for name, data in self.artifacts.items()
            },
        )

    def plan(
        self,
        *,
        base: str | BaseImage | None = None,
        digest: str | None = None,
        **options: Any,
    ) -> ImagePlan:
        spec = self.spec()
        if not isinstance(base, BaseImage):
            reference = (
                parse_reference(base) if base else default_base(spec.environment.python_minor)
            )
            base = BaseImage(reference=reference, python="3.11.2", digest=digest)
        return make_plan(
            function_subject(spec), lock=self.lock, base=base, options=BuildOptions(**options)
        )


def make_sample(folder: Path) -> Sample:
    """Start a package whose blobs go into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    return Sample(blobs=Blobs(folder))


def contents(sample: Sample, plan: ImagePlan | None = None) -> dict[str, bytes]:
    """Return what is in the context's files."""
    files = context_files(plan or sample.plan(), sample.blobs.path)
    return {file.path: b"".join(file.chunks()) for file in files}
