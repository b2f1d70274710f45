"""What an engine knows of an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class HistoryEntry:
    """One line of an image's history, oldest first.

    Attributes
    ----------
    created_by : str
        The instruction.
    size : int
        Bytes that its layer adds; 0 if it has none.
    comment : str
        Free text.
    """

    created_by: str
    size: int
    comment: str = ""


@dataclass(frozen=True, kw_only=True)
class ImageInfo:
    """An image as the engine has it.

    Attributes
    ----------
    id : str
        The engine's name for it, ``sha256:...``; no digest, which is a manifest's.
    repo_tags, repo_digests : tuple of str
        The references that lead to it; digests only once it was pushed or pulled.
    size : int
        Bytes, unpacked.
    os, architecture, variant : str
        The platform.
    created : str
        RFC 3339 time.
    env, labels : mapping of str to str
        The configuration's.
    user, working_dir : str
        Empty where the image does not say.
    entrypoint, command : tuple of str
        Exec form.
    layers : tuple of str
        Diff ids, lowest first.
    history : tuple of HistoryEntry
        Oldest first.
    """

    id: str
    repo_tags: tuple[str, ...] = ()
    repo_digests: tuple[str, ...] = ()
    size: int = 0
    os: str = "linux"
    architecture: str = ""
    variant: str = ""
    created: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    user: str = ""
    working_dir: str = ""
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    history: tuple[HistoryEntry, ...] = ()

    @property
    def platform(self) -> str:
        """Return the platform as ``os/architecture[/variant]``."""
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    @classmethod
    def from_engine(
        cls, image: Mapping[str, Any], history: Sequence[Mapping[str, Any]]
    ) -> ImageInfo:
        """Read the engine's answers to ``/images/NAME/json`` and ``/images/NAME/history``."""
        # Engines leave out, or set to null, what is empty.
        config: Mapping[str, Any] = image.get("Config") or {}
        return cls(
            id=image["Id"],
            repo_tags=tuple(image.get("RepoTags") or ()),
            repo_digests=tuple(image.get("RepoDigests") or ()),
            size=image.get("Size") or 0,
            os=image.get("Os") or "linux",
            architecture=image.get("Architecture") or "",
            variant=image.get("Variant") or "",
            created=image.get("Created") or "",
            env=dict(pair.partition("=")[::2] for pair in config.get("Env") or ()),
            labels=dict(config.get("Labels") or {}),
            user=config.get("User") or "",
            working_dir=config.get("WorkingDir") or "",
            entrypoint=tuple(config.get("Entrypoint") or ()),
            command=tuple(config.get("Cmd") or ()),
            layers=tuple((image.get("RootFS") or {}).get("Layers") or ()),
            history=tuple(_entry(each) for each in reversed(history)),
        )


def _entry(entry: Mapping[str, Any]) -> HistoryEntry:
    return HistoryEntry(
        created_by=entry.get("CreatedBy") or "",
        size=entry.get("Size") or 0,
        comment=entry.get("Comment") or "",
    )
