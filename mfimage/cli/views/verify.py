"""Whether a build gives an image again: its layers, and the files that differ."""

from __future__ import annotations

from functools import partial

from rich.console import Group, RenderableType
from rich.text import Text

from mfimage.cli.views.parts import (
    BAD,
    FAILED,
    GOOD,
    HEAD,
    PASSED,
    ByWidth,
    below,
    columns,
    facts,
    short,
    text,
)
from mfimage.verify import Verification


def view(found: Verification) -> RenderableType:
    """Return a table of layers."""
    head = facts([("image", found.image), ("built again by", found.builder)])
    settings = [text(f"the configuration's {name} differs", BAD) for name in found.settings]
    verdict = text("the same", GOOD) if found.same else text("differs", BAD)
    table = ByWidth(partial(_table, found))
    return Group(head, Text(), table, *settings, Text(), verdict)


def _table(found: Verification, width: int) -> RenderableType:
    table = columns("", "layer", *["content"] * (width > 0), fixed=["content"])
    for layer in found.layers:
        style = HEAD if layer.same else f"{HEAD} {BAD}"
        changes = [] if layer.same else [text(str(each), BAD) for each in layer.changes]
        content = [text(short(layer.diff_id))]
        detail = [text(layer.detail)] if layer.detail else []
        under = [*detail, *changes] if width else [*content, *detail, *changes]
        about, row = below(text(layer.name, style), under), content if width else []
        table.add_row(PASSED if layer.same else FAILED, about, *row)
    return table
