"""Images in folders and files: OCI layouts, tars of them, and what ``docker save`` writes."""

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
    tag: str | None = None  # which image of a layout; or its whole name

    def __str__(self) -> str:
        return f"{self.kind}:{self.path}{f':{self.tag}' if self.tag else ''}"

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
    if kind == DOCKER_ARCHIVE or Path(path).exists():
        return Location(kind=kind, path=Path(path))
    # The folder or file is the longest part that exists: its name and the tag may contain colons.
    start, _, tag = path.rpartition(":")
    while start and not Path(start).exists():
        start, _, more = start.rpartition(":")
        tag = f"{more}:{tag}"
    return Location(kind=kind, path=Path(start or path), tag=tag if start else None)
