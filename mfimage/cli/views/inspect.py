"""What a package or an image is: what a person asks first, or everything."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from mfimage.cli.about import About
from mfimage.cli.views.parts import HEAD, PLACE, ByWidth, bar, columns, facts, short, size, text


def view(found: About | Mapping[str, Any]) -> RenderableType:
    """Return what is shown first, or all of a description."""
    return _first(found) if isinstance(found, About) else Group(*_all(found))


def _first(found: About) -> RenderableType:
    parts: list[RenderableType] = [facts((name, short(value)) for name, value in found.facts)]
    if found.items:
        parts += [Text(), text(found.listed, HEAD)]
        parts.append(facts((f"  {name}", short(value)) for name, value in found.items))
        if found.more:
            parts.append(text(f"  and {found.more} more; --all shows them"))
    if found.layers:
        parts += [Text(), ByWidth(partial(_layers, found))]
    if found.commands:
        parts += [Text()]
        for name, command in found.commands:
            # Neither folded nor indented: it is there to be copied.
            line = text(command)
            line.no_wrap, line.overflow = True, "ignore"
            parts += [text(f"# {name}", PLACE), line]
    return Group(*parts)


def _layers(found: About, width: int) -> RenderableType:
    table = columns("layer", "size", *[""] * (width > 0), right=["size"])
    largest = max(count for _, count in found.layers)
    for name, count in found.layers:
        table.add_row(text(name), size(count), *[bar(count, largest)] * (width > 0))
    return table


def _all(value: Any, indent: int = 0) -> Iterator[RenderableType]:
    pad = "  " * indent
    for name, each in value.items() if isinstance(value, Mapping) else enumerate(value, 1):
        label = text(f"{pad}{name}", PLACE)
        if isinstance(each, Mapping | list) and each:
            yield label
            yield from _all(each, indent + 1)
        else:
            yield label + Text("  ") + text(each if isinstance(each, str) else _plain(each))


def _plain(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
