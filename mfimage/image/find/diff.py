"""How two images differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mfimage.image.find.contents import SECTIONS, Contents, Item

ADDED, REMOVED, CHANGED = "added", "removed", "changed"
_SIGNS = {ADDED: "+", REMOVED: "-", CHANGED: "~"}
_LONGEST = 72


@dataclass(frozen=True, kw_only=True)
class Change:
    """One difference."""

    section: str
    name: str
    # Such as versions; None where it is missing.
    before: str | None
    after: str | None

    @property
    def kind(self) -> str:
        """``added``, ``removed`` or ``changed``."""
        if self.before is None:
            return ADDED
        return REMOVED if self.after is None else CHANGED

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        texts = {"before": self.before, "after": self.after}
        return {"change": self.kind, "name": self.name, **texts}

    def __str__(self) -> str:
        """Return a line such as ``~ numpy 1.26.4 -> 2.1.0``."""
        texts = [_short(text) for text in (self.before, self.after) if text is not None]
        return f"{_SIGNS[self.kind]} {self.name} {' -> '.join(texts)}".rstrip()


@dataclass(frozen=True, kw_only=True)
class ImageDiff:
    """All differences between two images."""

    before: str
    after: str
    # In the order of `SECTIONS`.
    changes: tuple[Change, ...]
    # Sections that are not known of both images.
    unknown: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.changes)

    def of(self, *sections: str) -> tuple[Change, ...]:
        """Return the differences in these sections."""
        return tuple(change for change in self.changes if change.section in sections)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form: all sections, unknown ones as null."""
        found: dict[str, Any] = {
            name: None if name in self.unknown else [c.to_dict() for c in self.of(name)]
            for name in SECTIONS
        }
        return {"before": self.before, "after": self.after, "same": not self, "changes": found}

    def to_text(self) -> str:
        """Return a paragraph for each section that differs."""
        lines: list[str] = []
        for name in SECTIONS:
            if found := self.of(name):
                lines += [name, *(f"  {change}" for change in found)]
        if not lines:
            lines.append("no differences")
        if self.unknown:
            unknown = ", ".join(self.unknown)
            lines.append(f"not compared, since not known of both images: {unknown}")
        return "\n".join(lines)


def diff(before: Contents, after: Contents, *, names: tuple[str, str]) -> ImageDiff:
    """Compare what two images are made of; ``names`` are the images'."""
    changes: list[Change] = []
    unknown = tuple(each for each in SECTIONS if None in (before[each], after[each]))
    for section in SECTIONS:
        changes += _changes(section, before[section] or {}, after[section] or {})
    known = tuple(change for change in changes if change.section not in unknown)
    return ImageDiff(before=names[0], after=names[1], changes=known, unknown=unknown)


def _changes(section: str, one: Mapping[str, Item], other: Mapping[str, Item]) -> Iterator[Change]:
    for name in sorted({*one, *other}):
        before, after = one.get(name), other.get(name)
        if before != after:
            marked = bool(before and after and before.text == after.text)
            texts = [
                None if each is None else f"{each.text} ({each.mark})" if marked else each.text
                for each in (before, after)
            ]
            yield Change(section=section, name=name, before=texts[0], after=texts[1])


def _short(text: str) -> str:
    line = " ".join(text.split())
    if line.startswith("sha256:"):
        return line[:19]
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."
