"""Two images -> a page of how they differ: layers, distributions, artifacts, code, settings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mfimage.image.find.contents import ADDED, CHANGED, REMOVED, ImageDiff, contents_of, diff
from mfimage.image.find.files import LayerFiles, StoredFiles
from mfimage.image.find.places import FoundImage
from mfimage.runtime.layout import BLOBS, FUNCTION
from mfimage.sizes import format_size
from mfimage.views.html import document
from mfimage.views.treemap import installed, kind_of

SAME = "same"
SIGNS = {ADDED: "+", REMOVED: "-", CHANGED: "~", SAME: "="}
_TITLES = {
    "base": "Base",
    "python": "Python",
    "system": "System packages",
    "distributions": "Distributions",
    "artifacts": "Artifacts",
    "runtime": "Runtime",
    "code": "Code",
    "function": "Function",
    "env": "Variables",
    "labels": "Labels",
    "config": "Settings",
}
_SHA = "sha256:"
_DIGEST = re.compile(r"(sha256:[0-9a-f]{12})[0-9a-f]{52}")


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two images."""

    image: FoundImage
    files: StoredFiles
    sbom: bytes | None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a comparison; texts are None, and sizes too, where there is none."""

    kind: str  # added, removed, changed or same
    name: str
    before: str | None
    after: str | None
    sizes: tuple[int | None, int | None] = (None, None)

    @property
    def sign(self) -> str:
        """The sign of its kind: colour alone would not be seen by all."""
        return SIGNS[self.kind]

    @property
    def growth(self) -> str:
        """By how much the size changed, with its sign; empty if it did not, or is not known."""
        if self.kind == SAME or self.sizes == (None, None):
            return ""
        return signed((self.sizes[1] or 0) - (self.sizes[0] or 0))


def signed(size: int) -> str:
    """Return a difference of sizes as ``+1.2 MB``."""
    return f"{'+' if size > 0 else '-' if size else ''}{format_size(abs(size))}"


def difference_page(before: Side, after: Side) -> str:
    """Return the page of two images."""
    images = (before.image, after.image)
    contents = [contents_of(side.image.info, side.sbom) for side in (before, after)]
    found = diff(contents[0], contents[1], names=(before.image.name, after.image.name))
    return document(
        "difference.html.j2",
        title=f"{before.image.name} and {after.image.name}",
        same=not found,
        sides=[
            (word, each.image.name, sum(layer.size for layer in each.image.layers), each.files.size)
            for word, each in (("before", before), ("after", after))
        ],
        growth=signed(after.files.size - before.files.size),
        layers=tuple(_layers(before.files.layers, after.files.layers)),
        shared=_shared(before.files.layers, after.files.layers),
        sections=[
            (_TITLES[name], rows)
            for name in _TITLES
            if (rows := tuple(_rows(found, name, before.files, after.files)))
        ],
        unknown=[_TITLES[name].lower() for name in found.unknown],
        digests=[(each.digest or each.info.id)[:19] for each in images],
    )


def _shared(before: Sequence[LayerFiles], after: Sequence[LayerFiles]) -> int:
    """Return the unpacked bytes of layers that both have."""
    both = {layer.diff_id for layer in before}
    return sum(layer.size for layer in after if layer.diff_id in both)


def _layers(before: Sequence[LayerFiles], after: Sequence[LayerFiles]) -> Iterator[Row]:
    """Yield each layer; those of equal kind that are in one image only are changed ones."""
    there = {layer.diff_id for layer in after}
    gone = [layer for layer in before if layer.diff_id not in there]
    known = {layer.diff_id for layer in before}
    for layer in after:
        kind = kind_of(layer)
        if layer.diff_id in known:
            sizes = (layer.size, layer.size)
            yield Row(kind=SAME, name=kind, before=None, after=layer.digest[:19], sizes=sizes)
            continue
        old = next((each for each in gone if kind_of(each) == kind), None)
        if old is not None:
            gone.remove(old)
        yield Row(
            kind=CHANGED if old else ADDED,
            name=kind,
            before=old.digest[:19] if old else None,
            after=layer.digest[:19],
            sizes=(old.size if old else None, layer.size),
        )
    for old in gone:
        yield Row(
            kind=REMOVED,
            name=kind_of(old),
            before=old.digest[:19],
            after=None,
            sizes=(old.size, None),
        )


def _rows(found: ImageDiff, section: str, before: StoredFiles, after: StoredFiles) -> Iterator[Row]:
    sizes = [_sizes(section, files) for files in (before, after)]
    for change in found.of(section):
        texts = (change.before, change.after)
        keys = [change.name if section == "distributions" else text for text in texts]
        known = [None if key is None else by.get(key) for key, by in zip(keys, sizes, strict=True)]
        yield Row(
            kind=change.kind,
            name=change.name,
            before=_shortened(change.before),
            after=_shortened(change.after),
            sizes=(known[0], known[1]),
        )


def _shortened(text: str | None) -> str | None:
    return text and _DIGEST.sub(r"\1", text)


def _sizes(section: str, files: StoredFiles) -> Mapping[str, int]:
    """Return unpacked bytes: of distributions by name, of artifacts by digest."""
    if section == "distributions":
        return {each.name: each.size for each in installed(files)}
    if section == "artifacts":
        folder = f"{FUNCTION}/{BLOBS}/".lstrip("/")
        return {
            f"{_SHA}{path.removeprefix(folder)}": size
            for layer in files.layers
            for path, size in layer.files.items()
            if path.startswith(folder)
        }
    return {}
