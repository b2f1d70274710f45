"""The checks of an image: a line for each, as they end."""

from __future__ import annotations

from functools import partial

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from mfimage.cli.views.parts import (
    BAD,
    CHANGED,
    FAILED,
    GOOD,
    PASSED,
    SKIPPED,
    ByWidth,
    lines,
    short,
    text,
)
from mfimage.image.checks.report import Check, Report
from mfimage.sizes import format_size

_MARKS = {"passed": PASSED, "failed": FAILED, "skipped": SKIPPED}
_STYLES = {"passed": GOOD, "failed": BAD, "skipped": CHANGED}
_NAME = 20  # columns; longer names fold


def view(found: Report) -> RenderableType:
    """Return all checks and their summary."""
    return Group(*map(check, found.checks), summary(found))


def check(found: Check) -> RenderableType:
    """Return the line of a check; of one that failed, all that was found."""
    return ByWidth(partial(_check, found))


def _check(found: Check, width: int) -> RenderableType:
    detail = found.detail if found.status == "failed" else found.detail.partition("\n")[0]
    style = BAD if found.status == "failed" else ""
    about = [text(short(line), style) for line in detail.splitlines()]
    table = Table.grid(
        Column(width=1), Column(width=_NAME, overflow="fold"),
        Column(width=7, justify="right", no_wrap=True), Column(overflow="fold"),
        padding=(0, 2, 0, 0),
    )  # fmt: skip
    row = _MARKS[found.status], text(found.name), text(f"{found.seconds:.1f} s")
    if width:
        table.add_row(*row, lines(about))
        return table
    table.add_row(*row)
    return Group(table, *(Padding(each, (0, 0, 0, 3)) for each in about))


def summary(found: Report) -> RenderableType:
    """Return the number of checks by status, and what was measured, below an empty line."""
    parts = [
        text(f"{number} {status}", style)
        for status, style in _STYLES.items()
        if (number := sum(each.status == status for each in found.checks))
    ]
    measured = []
    if (seconds := found.measured.get("start_seconds")) is not None:
        measured.append(f"ready after {seconds:.1f} s")
    if (memory := found.measured.get("memory_bytes")) is not None:
        measured.append(f"{format_size(int(memory))} of memory")
    counts = Text(", ").join(parts)
    return Group(Text(), counts + text(f"; {', '.join(measured)}" if measured else ""))
