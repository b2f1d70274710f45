"""What an image is of: a function, or a step of a flow."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mfimage.package.spec import ArtifactRef, BlobRef, EnvironmentSpec, FunctionSpec
from mfimage.package.store import FILE_NAME, Package, PackageStore, package_name
from mfimage.runtime.layout import FUNCTION_JSON

FUNCTION, STEP = "function", "step"
_LINEAGE = ("flow", "run", "step", "task", "user", "metaflow_version", "git_commit")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What an image is of, whatever that is."""

    kind: str  # ``function`` or ``step``
    name: str
    digest: str  # of all that it is
    environment: EnvironmentSpec
    description: str = ""
    entrypoint: str = ""  # as ``module:function``; a step has its command line
    code: BlobRef | None = None  # `code.tar.gz`, unpacked into the image
    artifacts: Mapping[str, ArtifactRef] = field(default_factory=dict)
    # What describes it in the image, by name beside the code.
    files: Mapping[str, bytes] = field(default_factory=dict)
    # Without the prefix of ours; those that are empty are left out.
    labels: Mapping[str, str] = field(default_factory=dict)
    # Where it comes from, for the SBOM.
    lineage: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def revision(self) -> str:
        """The git commit of its code, where known."""
        return self.lineage.get("git.commit") or ""


def function_subject(spec: FunctionSpec) -> Subject:
    """Describe a function as what an image is of."""
    # Like the package's digest, the image does not depend on when the function was bound.
    timeless = dataclasses.replace(spec, lineage=dataclasses.replace(spec.lineage, created=None))
    lineage = {name.replace("_", "."): getattr(spec.lineage, name) for name in _LINEAGE}
    return Subject(
        kind=FUNCTION,
        name=spec.name,
        digest=spec.digest,
        environment=spec.environment,
        description=spec.description,
        entrypoint=spec.entrypoint,
        code=spec.code,
        artifacts=spec.artifacts,
        files={FUNCTION_JSON: timeless.to_json()},
        labels={
            "task": spec.task,
            "artifacts": compact({k: ref.digest for k, ref in spec.artifacts.items()}),
            "schema.input": compact(spec.input_schema),
            "schema.output": compact(spec.output_schema),
            "schema.parameters": compact(spec.parameter_schema),
        },
        lineage={**lineage, "pathspec": spec.task},
    )


def compact(value: Mapping[str, Any]) -> str:
    """Return JSON for a label; nothing for an empty mapping."""
    # ASCII, so that what a line of a Dockerfile cannot hold is escaped.
    return json.dumps(value, sort_keys=True, separators=(",", ":")) if value else ""


@dataclass(frozen=True, kw_only=True)
class BuildSource:
    """A subject, and the root that has its blobs."""

    subject: Subject
    store: PackageStore
    # Below the root: where the locks of its images are kept.
    folder: str


def function_source(package: Package) -> BuildSource:
    """Return the source of a function's images: its package."""
    folder = package_name(package.spec).removesuffix(f"/{FILE_NAME}")
    return BuildSource(subject=function_subject(package.spec), store=package.store, folder=folder)
