"""Images in folders and files: ``oci:DIR``, ``oci-archive:FILE``, ``docker-archive:FILE``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mfimage.errors import OptionError

OCI, OCI_ARCHIVE, DOCKER_ARCHIVE = "oci", "oci-archive", "docker-archive"
KINDS = (OCI, OCI_ARCHIVE, DOCKER_ARCHIVE)
LOCATIONS = "oci:DIR, oci-archive:FILE or docker-archive:FILE"


@dataclass(frozen=True, kw_only=True)
class Location:
    """An image in a folder or file: an OCI layout, a tar of one, or what ``docker save`` writes."""

    kind: str
    path: Path

    def __str__(self) -> str:
        return f"{self.kind}:{self.path}"

    @property
    def canonical(self) -> str:
        """Nothing: the path means something on this machine only."""
        return ""

    @property
    def digest(self) -> None:
        """Nothing: what lies there may change."""


def parse_location(text: str, *, field: str) -> Location | None:
    """Parse a location; None when it is something else."""
    kind, colon, path = text.partition(":")
    if not colon or kind not in KINDS:
        return None
    if not path:
        raise OptionError(f"{field}: {text!r} has no path", hint=f"write {LOCATIONS}")
    return Location(kind=kind, path=Path(path))
