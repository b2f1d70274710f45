"""The environment of a function: its distributions, the largest first, and why each is there."""

from __future__ import annotations

from functools import partial

from rich.console import Group, RenderableType
from rich.text import Text

from mfimage.cli.views.parts import (
    CHANGED,
    GOOD,
    HEAD,
    ByWidth,
    bar,
    below,
    columns,
    facts,
    lines,
    short,
    size,
    text,
)
from mfimage.environment import DistributionReport, EnvironmentReport
from mfimage.sizes import format_size


def view(found: EnvironmentReport) -> RenderableType:
    """Return a table of distributions, or how the running interpreter differs."""
    if found.differences is not None:
        same = text("the running interpreter has exactly this environment", GOOD)
        return lines([text(each, CHANGED) for each in found.differences]) or same
    head = {
        "function": found.function,
        "python": found.python,
        "platform": found.platform,
        "source": found.source,
        "lock": short(found.lock),
        "system packages": ", ".join(found.system_packages),
    }
    origins = {each.origin for each in found.distributions}
    if len(origins) == 1:
        head["from"] = origins.pop()
    ordered = sorted(found.distributions, key=lambda each: (-(each.size or 0), each.name))
    table = ByWidth(partial(_table, ordered, bool(origins)))
    about = facts((name, value) for name, value in head.items() if value)
    return Group(about, Text(), table, Text(), _summary(found))


def _table(distributions: list[DistributionReport], origin: bool, width: int) -> RenderableType:
    bars = width > 1
    names = ["distribution", "version", "size", *[""] * bars, "why"]
    table = columns(*(names if width else ["distribution", "size"]), right=["size"])
    largest = max((each.size or 0 for each in distributions), default=0)
    for each in distributions:
        why = [text(each.why)] + [text(each.origin)] * origin
        if width:
            row = [text(each.name, HEAD), text(each.version), size(each.size)]
            table.add_row(*row, *[bar(each.size, largest)] * bars, lines(why))
        else:
            named = text(each.name, HEAD) + Text(" ") + text(each.version)
            table.add_row(below(named, why), size(each.size))
    return table


def _summary(found: EnvironmentReport) -> Text:
    known = [each.size for each in found.distributions if each.size is not None]
    count = f"{len(found.distributions)} distributions"
    if not known:
        return text(count)
    return text(f"{count}; {len(known)} are installed here, with {format_size(sum(known))}")
