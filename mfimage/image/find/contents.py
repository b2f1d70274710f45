"""What an image is made of, whichever builder made it, and how two images differ."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mfimage.errors import PackageError, shorten
from mfimage.image.find.info import ImageInfo
from mfimage.image.plan.options import LABEL_PREFIX
from mfimage.image.sbom.document import PREFIX
from mfimage.terminal import visible

_OCI = "org.opencontainers.image."
# In this order they are shown: the layers' own, then the rest.
SECTIONS = (
    "base", "python", "system", "distributions", "artifacts", "runtime", "code",
    "function", "env", "labels", "config",
)  # fmt: skip
LINEAGE = ("flow", "run", "step", "task", "user", "metaflow.version", "git.commit")
_FUNCTION_LABELS = (
    "function.digest",
    "functions.digest",
    "target",
    "schema.input",
    "schema.output",
    "ray-parts",
)


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing in an image."""

    text: str
    mark: str = ""  # distinguishes items of equal text, such as a hash


# What an image is made of, by the names in `SECTIONS`; None where it is not known.
Contents = Mapping[str, Mapping[str, Item] | None]


def contents_of(info: ImageInfo, sbom: bytes | None) -> Contents:
    """Return what an image is made of, by its configuration and SBOM."""
    # Without an SBOM, distributions and code files are not known.
    labels = info.labels
    found = _from_labels(labels)
    if sbom is not None:
        found |= _from_sbom(parse_sbom(sbom))
    python = labels.get(f"{LABEL_PREFIX}python")
    found.setdefault("python", {"python": Item(text=python)} if python else None)
    named = {name: labels.get(LABEL_PREFIX + name) for name in _FUNCTION_LABELS}
    found["function"] = {**(found.get("function") or {}), **_items(named)}
    found["env"] = _items(info.env, empty=True)
    others = {k: v for k, v in labels.items() if not k.startswith((LABEL_PREFIX, _OCI))}
    found["labels"] = _items(others, empty=True)
    config = {
        "platform": "/".join(info.platform.split("/")[:2]),
        "user": info.user,
        "workdir": info.working_dir,
        "entrypoint": json.dumps(info.entrypoint),
        "cmd": json.dumps(info.command),
    }
    found["config"] = _items(config, empty=True)
    return {name: found.get(name) for name in SECTIONS}


def parse_sbom(data: bytes) -> Mapping[str, Any]:
    """Parse an SBOM."""
    try:
        document: Mapping[str, Any] = json.loads(data)
        if document["bomFormat"] != "CycloneDX":
            raise ValueError("it is not CycloneDX")
        _from_sbom(document)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise PackageError(f"the image's SBOM cannot be read: {error}") from None
    return document


def components(document: Mapping[str, Any], kind: str) -> Iterable[Mapping[str, Any]]:
    """Yield the components of a kind: distribution, debian, function, artifact, code, runtime."""
    for component in document.get("components", ()):
        if _properties(component).get("kind") == kind:
            yield component


def _properties(part: Mapping[str, Any]) -> dict[str, str]:
    return {
        each["name"].removeprefix(PREFIX): each.get("value", "")
        for each in part.get("properties", ())
        if each["name"].startswith(PREFIX)
    }


def _items(texts: Mapping[str, str | None], *, empty: bool = False) -> dict[str, Item]:
    return {name: Item(text=text or "") for name, text in texts.items() if text or empty}


def _from_labels(labels: Mapping[str, str]) -> dict[str, Mapping[str, Item] | None]:
    if f"{LABEL_PREFIX}version" not in labels:
        return {}
    try:
        artifacts = json.loads(labels.get(f"{LABEL_PREFIX}artifacts") or "{}")
    except ValueError:
        artifacts = {}
    return {
        "base": _items({name: labels.get(f"{_OCI}base.{name}") for name in ("name", "digest")}),
        "artifacts": _items(artifacts, empty=True),
        "runtime": {"mfimage": Item(text=labels[f"{LABEL_PREFIX}version"])},
    }


def _from_sbom(document: Mapping[str, Any]) -> dict[str, Mapping[str, Item] | None]:
    lineage = _properties(document.get("metadata", {}))
    return {
        "python": {
            each["name"]: Item(text=each["version"])
            for each in document.get("components", ())
            if each.get("bom-ref") == "python"
        },
        "system": {
            each["name"]: Item(text=each.get("version", "any"))
            for each in components(document, "debian")
        },
        "distributions": {
            each["name"]: Item(text=each.get("version", "?"), mark=_hashes(each))
            for each in components(document, "distribution")
        },
        "artifacts": _by_content(document, "artifact"),
        "runtime": {
            each["name"]: Item(text=each["version"], mark=_properties(each)["files"])
            for each in components(document, "runtime")
        },
        "code": _by_content(document, "code"),
        "function": {
            **{name: Item(text=lineage[name]) for name in LINEAGE if name in lineage},
            **{
                each["bom-ref"]: Item(text=_properties(each)["digest"])
                for each in components(document, "function")
            },
        },
    }


def _by_content(document: Mapping[str, Any], kind: str) -> dict[str, Item]:
    return {
        each["name"]: Item(text=f"sha256:{each['hashes'][0]['content']}")
        for each in components(document, kind)
    }


def _hashes(component: Mapping[str, Any]) -> str:
    files = component.get("externalReferences", ())
    hashes = {found["content"] for each in files for found in each.get("hashes", ())}
    return " ".join(sorted(hashes))


ADDED, REMOVED, CHANGED = "added", "removed", "changed"
_SIGNS = {ADDED: "+", REMOVED: "-", CHANGED: "~"}
_LONGEST = 72


@dataclass(frozen=True, kw_only=True)
class Change:
    """One difference."""

    section: str
    name: str
    before: str | None  # such as versions; None where it is missing
    after: str | None

    @property
    def kind(self) -> str:
        """``added``, ``removed`` or ``changed``."""
        if self.before is None:
            return ADDED
        return REMOVED if self.after is None else CHANGED

    @property
    def sign(self) -> str:
        """``+``, ``-`` or ``~``."""
        return _SIGNS[self.kind]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        texts = {"before": self.before, "after": self.after}
        return {"change": self.kind, "name": self.name, **texts}

    def __str__(self) -> str:
        """Return a line such as ``~ numpy 1.26.4 -> 2.1.0``."""
        texts = [_short(text) for text in (self.before, self.after) if text is not None]
        return f"{self.sign} {self.name} {' -> '.join(texts)}".rstrip()


@dataclass(frozen=True, kw_only=True)
class ImageDiff:
    """All differences between two images."""

    before: str
    after: str
    changes: tuple[Change, ...]  # in the order of `SECTIONS`
    unknown: tuple[str, ...]  # sections that are not known of both images

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
        return "\n".join(map(visible, lines))


def diff(before: Contents, after: Contents, *, names: tuple[str, str]) -> ImageDiff:
    """Compare what two images are made of; ``names`` are the images'."""
    unknown = tuple(each for each in SECTIONS if None in (before[each], after[each]))
    changes = [
        change
        for section in SECTIONS
        if section not in unknown
        for change in _changes(section, before[section] or {}, after[section] or {})
    ]
    return ImageDiff(before=names[0], after=names[1], changes=tuple(changes), unknown=unknown)


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
    return line[:19] if line.startswith("sha256:") else shorten(line, _LONGEST)
