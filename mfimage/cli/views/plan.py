"""What a build would make: its layers with their sizes, and why each would change."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from rich.console import Group, RenderableType
from rich.text import Text

from mfimage.cli.views.parts import (
    HEAD,
    SIGNS,
    ByWidth,
    bar,
    below,
    columns,
    short,
    signed,
    size,
    text,
)
from mfimage.image.find.contents import REMOVED
from mfimage.image.plan.preview import CHANGED, NEW, SAME, PlannedImage, PlannedPart

_SIGNS = {NEW: "+", SAME: "=", CHANGED: "~", REMOVED: "-"}


def view(found: Sequence[PlannedImage]) -> RenderableType:
    """Return a table for each platform."""
    spaced = [part for image in found for part in (_image(image), Text())]
    return Group(*spaced[:-1])


def _image(image: PlannedImage) -> RenderableType:
    plan = image.plan
    title = text(f"{plan.subject.name} for {plan.target.name}, {plan.platform}", HEAD)
    against = f"compared with {image.before}" if image.before else "no image to compare with"
    table = ByWidth(partial(_table, image))
    return Group(title, text(short(against)), Text(), table, Text(), _summary(image))


def _table(image: PlannedImage, width: int) -> RenderableType:
    largest = max(part.size or 0 for part in image.parts)
    bars = width > 0
    table = columns("", "layer", "size", *[""] * bars, right=["size"])
    for part in image.parts:
        sign = _SIGNS[part.change]
        row = [text(sign, SIGNS.get(sign, "")), _about(part), size(part.size)]
        table.add_row(*row, *[bar(part.size, largest)] * bars)
    return table


def _about(part: PlannedPart) -> RenderableType:
    style = SIGNS.get(_SIGNS[part.change], "")
    holds = [text(short(part.holds))] if part.holds else []
    return below(text(part.name, f"{HEAD} {style}"), [*holds, *map(signed, part.listed)])


def _summary(image: PlannedImage) -> Text:
    changes = [part.change for part in image.parts]
    words = {NEW: "new", CHANGED: "changed", REMOVED: "removed", SAME: "the same"}
    return Text(", ").join(
        text(f"{changes.count(kind)} {word}", SIGNS.get(_SIGNS[kind], ""))
        for kind, word in words.items()
        if kind in changes
    )
