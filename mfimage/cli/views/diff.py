"""How two images differ: what came, what went, what changed."""

from __future__ import annotations

from functools import partial

from rich.console import Group, RenderableType
from rich.text import Text

from mfimage.cli.views.parts import GOOD, HEAD, SIGNS, ByWidth, below, columns, facts, short, text
from mfimage.errors import shorten
from mfimage.image.find.contents import ADDED, CHANGED, REMOVED, SECTIONS, Change, ImageDiff

_LONGEST = 300


def view(found: ImageDiff) -> RenderableType:
    """Return a table with a part for each section that differs."""
    head = facts([("before", found.before), ("after", found.after)])
    parts: list[RenderableType] = [head, Text()]
    if found:
        parts += [ByWidth(partial(_table, found)), Text()]
    parts.append(_summary(found))
    if found.unknown:
        unknown = ", ".join(found.unknown)
        parts.append(text(f"not compared, since not known of both images: {unknown}"))
    return Group(*parts)


def _table(found: ImageDiff, width: int) -> RenderableType:
    table = columns("", "", *[""] * (width > 0))
    table.show_header = False
    for section in SECTIONS:
        for number, change in enumerate(found.of(section)):
            if not number:
                table.add_row("", text(section, HEAD))
            style, values = SIGNS[change.sign], _values(change)
            name = text(short(change.name), style)
            row: list[RenderableType] = [name, values] if width else [below(name, [values])]
            table.add_row(text(change.sign, style), *row)
    return table


def _values(change: Change) -> Text:
    """Return before and after, each in its color."""
    sides = (change.before, SIGNS["-"]), (change.after, SIGNS["+"])
    return Text(" -> ").join(
        text(shorten(short(" ".join(value.split())), _LONGEST), style)
        for value, style in sides
        if value is not None
    )


def _summary(found: ImageDiff) -> Text:
    if not found:
        return text("no differences", GOOD)
    kinds = [change.kind for change in found.changes]
    signs = {ADDED: "+", REMOVED: "-", CHANGED: "~"}
    return Text(", ").join(
        text(f"{kinds.count(kind)} {kind}", SIGNS[sign])
        for kind, sign in signs.items()
        if kind in kinds
    )
