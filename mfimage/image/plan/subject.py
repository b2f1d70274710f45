"""What an image is of: a function, several, or a step of a flow."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mfimage.package.archive import lay_out
from mfimage.package.spec import ArtifactRef, BlobRef, EnvironmentSpec, FunctionSpec
from mfimage.package.store import FILE_NAME, Package, PackageStore, package_name
from mfimage.runtime.layout import CODE, FUNCTION_JSON

FUNCTION, FUNCTIONS, STEP = "function", "functions", "step"
_LINEAGE = ("flow", "run", "step", "task", "user", "metaflow_version", "git_commit")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What an image is of, whatever that is."""

    kind: str  # ``function``, ``functions`` or ``step``
    name: str
    digest: str  # of all that it is
    environment: EnvironmentSpec
    description: str = ""
    entrypoint: str = ""  # as ``module:function``; a step has its command line
    # `code.tar.gz`, by the folder that it is unpacked into.
    code: Mapping[str, BlobRef] = field(default_factory=dict)
    artifacts: Mapping[str, ArtifactRef] = field(default_factory=dict)
    # What describes it in the image, by name beside the code.
    files: Mapping[str, bytes] = field(default_factory=dict)
    # Without the prefix of ours; those that are empty are left out.
    labels: Mapping[str, str] = field(default_factory=dict)
    # Where it comes from, for the SBOM.
    lineage: Mapping[str, str | None] = field(default_factory=dict)
    # Of several functions, each by its name.
    functions: Mapping[str, FunctionSpec] = field(default_factory=dict)

    @property
    def blobs(self) -> tuple[BlobRef, ...]:
        """What it is made of, without the lock."""
        return (*self.artifacts.values(), *self.environment.wheels.values(), *self.code.values())

    @property
    def revision(self) -> str:
        """The git commit of its code, where known."""
        return self.lineage.get("git.commit") or ""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form of what identifies it."""
        about: dict[str, Any] = {"name": self.name, "digest": self.digest}
        if self.functions:
            about["functions"] = {name: spec.digest for name, spec in self.functions.items()}
        return {self.kind: about}


def function_subject(spec: FunctionSpec) -> Subject:
    """Describe a function as what an image is of."""
    return Subject(
        kind=FUNCTION,
        name=spec.name,
        digest=spec.digest,
        environment=spec.environment,
        description=spec.description,
        entrypoint=spec.entrypoint,
        code={CODE: spec.code},
        artifacts=spec.artifacts,
        files={FUNCTION_JSON: timeless_json(spec)},
        labels={
            "task": spec.task,
            "artifacts": compact({k: ref.digest for k, ref in spec.artifacts.items()}),
            "schema.input": compact(spec.input_schema),
            "schema.output": compact(spec.output_schema),
            "schema.parameters": compact(spec.parameter_schema),
        },
        lineage=lineage_of(spec),
    )


def timeless_json(spec: FunctionSpec) -> bytes:
    """Return the bytes of a ``function.json`` for an image."""
    # Like the package's digest, the image does not depend on when the function was bound.
    lineage = dataclasses.replace(spec.lineage, created=None)
    return dataclasses.replace(spec, lineage=lineage).to_json()


def lineage_of(spec: FunctionSpec) -> dict[str, str | None]:
    """Return where a function comes from, as an SBOM has it."""
    found = {name.replace("_", "."): getattr(spec.lineage, name) for name in _LINEAGE}
    return {**found, "pathspec": spec.task}


def compact(value: Mapping[str, Any]) -> str:
    """Return JSON for a label; nothing for an empty mapping."""
    # ASCII, so that what a line of a Dockerfile cannot hold is escaped.
    return json.dumps(value, sort_keys=True, separators=(",", ":")) if value else ""


@dataclass(frozen=True, kw_only=True)
class BuildSource:
    """A subject, and the roots that have its blobs."""

    subject: Subject
    store: PackageStore
    # Below the root: where the locks of its images are kept.
    folder: str
    # Of several functions: the stores of their blobs, by digest; and their lock together, which no
    # root has.
    stores: Mapping[str, PackageStore] = field(default_factory=dict)
    lock: bytes | None = None

    def unverified_file(self, ref: BlobRef) -> Path:
        """Return a file on this machine for a reader that verifies the digest itself."""
        return self._store_of(ref).unverified_file(ref)

    def verified_files(self) -> dict[str, Path]:
        """Verify every blob; return the file of each, by digest."""
        locks = [self.subject.environment.lock] if self.lock is None else []
        refs = {ref.digest: ref for ref in (*self.subject.blobs, *locks)}
        return {digest: self._store_of(ref).blob_file(ref) for digest, ref in refs.items()}

    def read_blob(self, ref: BlobRef) -> bytes:
        """Return a blob, verified."""
        return self._store_of(ref).read_blob(ref)

    def stream_blob(self, ref: BlobRef) -> Iterator[bytes]:
        """Yield a blob, verified at its end."""
        return self._store_of(ref).stream_blob(ref)

    def unpack(self, folder: Path) -> None:
        """Lay everything out in an empty folder, verified, as in an image."""
        it = self.subject
        lay_out(
            folder, self, name=it.name, files=it.files, code=it.code,
            artifacts=it.artifacts.values(),
        )  # fmt: skip

    def read_lock(self) -> bytes:
        """Return the lock of the subject's environment."""
        if self.lock is not None:
            return self.lock
        return self.store.read_blob(self.subject.environment.lock)

    def _store_of(self, ref: BlobRef) -> PackageStore:
        return self.stores.get(ref.digest, self.store)


def function_source(package: Package) -> BuildSource:
    """Return the source of a function's images: its package."""
    folder = package_name(package.spec).removesuffix(f"/{FILE_NAME}")
    return BuildSource(subject=function_subject(package.spec), store=package.store, folder=folder)
