"""Content descriptors, and the media types of manifests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
ANY_MANIFEST = (INDEX, MANIFEST, DOCKER_LIST, DOCKER_MANIFEST)


@dataclass(frozen=True, kw_only=True)
class Descriptor:
    """A content descriptor."""

    media_type: str
    digest: str
    size: int
    artifact_type: str | None = None  # of an attached artifact
    annotations: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> Descriptor:
        """Parse the JSON form."""
        return cls(
            media_type=document["mediaType"], digest=document["digest"], size=document["size"],
            artifact_type=document.get("artifactType"),
            annotations=document.get("annotations") or {},
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        found: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest}
        found["size"] = self.size
        if self.artifact_type:
            found["artifactType"] = self.artifact_type
        if self.annotations:
            found["annotations"] = dict(sorted(self.annotations.items()))
        return found
