"""The configuration of an image, from an engine or an OCI document."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mfimage.image.registry.reference import Reference
from mfimage.package.spec import sha256_digest


@dataclass(frozen=True, kw_only=True)
class HistoryEntry:
    """One entry of an image's history."""

    created_by: str
    size: int  # bytes of its layer; 0 if it has none
    comment: str = ""


@dataclass(frozen=True, kw_only=True)
class ImageInfo:
    """The configuration of an image."""

    id: str  # the configuration's digest, by which an engine knows the image; not the manifest's
    repo_tags: tuple[str, ...] = ()
    # An engine has them only once the image was pushed or pulled.
    repo_digests: tuple[str, ...] = ()
    size: int = 0  # bytes of all layers: compressed in a registry, unpacked in an engine
    os: str = "linux"
    architecture: str = ""
    variant: str = ""
    created: str = ""  # RFC 3339
    env: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    user: str = ""  # empty if not set, as is the working directory
    working_dir: str = ""
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()  # diff ids, lowest first
    history: tuple[HistoryEntry, ...] = ()  # oldest first

    @property
    def platform(self) -> str:
        """The platform as ``os/architecture[/variant]``."""
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    def public_texts(self) -> dict[str, str]:
        """Return what the configuration shows to everyone, by where it is."""
        texts = {f"the variable {name}": value for name, value in self.env.items()}
        texts |= {f"the label {name}": value for name, value in self.labels.items()}
        lines = (f"{entry.created_by}\n{entry.comment}" for entry in self.history)
        return texts | {f"line {n} of the history": text for n, text in enumerate(lines, 1)}

    def digest_of(self, reference: Reference) -> str | None:
        """Return the digest of the image in a reference's repository, if it came from there."""
        for text in self.repo_digests:
            name, _, digest = text.partition("@")
            if name == reference.name or name in reference.canonical:
                return digest
        return None

    @classmethod
    def from_engine(
        cls, image: Mapping[str, Any], history: Sequence[Mapping[str, Any]]
    ) -> ImageInfo:
        """Read an engine's responses to ``/images/NAME/json`` and ``/images/NAME/history``."""
        return cls(
            id=image["Id"],
            repo_tags=tuple(image.get("RepoTags") or ()),
            repo_digests=tuple(image.get("RepoDigests") or ()),
            size=image.get("Size") or 0,
            layers=tuple((image.get("RootFS") or {}).get("Layers") or ()),
            history=tuple(
                _entry(each.get("CreatedBy"), each.get("Size"), each.get("Comment"))
                for each in reversed(history)
            ),
            **_settings({name.lower(): value for name, value in image.items()}),
        )

    @classmethod
    def from_config(cls, raw: bytes, sizes: Sequence[int]) -> ImageInfo:
        """Read an OCI configuration; ``sizes`` are those of the layers, lowest first."""
        config: Mapping[str, Any] = json.loads(raw)
        return cls(
            id=sha256_digest(raw),
            size=sum(sizes),
            layers=tuple((config.get("rootfs") or {}).get("diff_ids") or ()),
            history=tuple(_history(config.get("history") or (), iter(sizes))),
            **_settings(config),
        )


def _settings(image: Mapping[str, Any]) -> dict[str, Any]:
    # What is empty may be left out, or null.
    config = image.get("config") or {}
    return {
        "os": image.get("os") or "linux",
        "architecture": image.get("architecture") or "",
        "variant": image.get("variant") or "",
        "created": image.get("created") or "",
        "env": dict(pair.partition("=")[::2] for pair in config.get("Env") or ()),
        "labels": dict(config.get("Labels") or {}),
        "user": config.get("User") or "",
        "working_dir": config.get("WorkingDir") or "",
        "entrypoint": tuple(config.get("Entrypoint") or ()),
        "command": tuple(config.get("Cmd") or ()),
    }


def _history(entries: Sequence[Mapping[str, Any]], sizes: Iterator[int]) -> Iterator[HistoryEntry]:
    for each in entries:
        size = 0 if each.get("empty_layer") else next(sizes, 0)
        yield _entry(each.get("created_by"), size, each.get("comment"))


def _entry(created_by: str | None, size: int | None, comment: str | None) -> HistoryEntry:
    return HistoryEntry(created_by=created_by or "", size=size or 0, comment=comment or "")
