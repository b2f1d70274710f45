"""Parts of views. Text is shown as it is: neither markup nor control characters act."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from mfimage.sizes import format_size
from mfimage.terminal import BAD, GOOD, visible

__all__ = ["BAD", "GOOD"]
CHANGED, PLACE, HEAD = "magenta", "cyan", "bold"
SIGNS = {"+": GOOD, "-": BAD, "~": CHANGED}
_DIGEST = re.compile(
    r"(?<![\w/])(?:sha256:([0-9a-f]{12})[0-9a-f]*|([0-9a-f]{12})[0-9a-f]{28,})(?:\.{3}|(?![\w/]))"
)
_WIDE, _NARROW = 100, 64  # columns from which, and below which, a table has more or fewer
_BAR = 16


def text(value: object, style: str = "") -> Text:
    """Return text that folds where it does not fit."""
    return Text(visible(str(value)), style=style, overflow="fold")


def short(value: str) -> str:
    """Shorten digests and commits to 12 digits; not those in paths."""
    return _DIGEST.sub(lambda match: match[1] or match[2], value)


def signed(line: str) -> Text:
    """Return a line such as ``+ numpy 2.1.0`` in its sign's color."""
    return text(short(line), SIGNS.get(line[:1], ""))


def lines(parts: Iterable[Text]) -> Text:
    """Return lines below each other."""
    return Text("\n", overflow="fold").join(parts)


def below(first: Text, others: Iterable[Text]) -> RenderableType:
    """Return a line, and those that belong to it, indented."""
    return Group(first, *(Padding(each, (0, 0, 0, 2)) for each in others))


def facts(rows: Iterable[tuple[str, str]]) -> Table:
    """Return names and values."""
    table = Table.grid(Column(no_wrap=True), Column(overflow="fold"), padding=(0, 2, 0, 0))
    for name, value in rows:
        table.add_row(text(name, PLACE), text(value))
    return table


def columns(*names: str, right: Iterable[str] = (), fixed: Iterable[str] = ()) -> Table:
    """Return an empty table; columns in ``right`` and ``fixed`` are not folded."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style=HEAD)
    for name in names:
        numeric = name in right
        table.add_column(
            name, overflow="fold", justify="right" if numeric else "left",
            no_wrap=numeric or name in fixed,
        )  # fmt: skip
    return table


def size(count: int | None) -> Text:
    """Return a size; nothing where it is not known."""
    return text("" if count is None else format_size(count))


def bar(count: int | None, largest: int) -> RenderableType:
    """Return a size as a bar, relative to the largest one."""
    if not count or not largest:
        return Text()
    if not (width := round(_BAR * count / largest)):
        return Text()
    return ProgressBar(
        total=1, completed=1, width=width, complete_style=PLACE, finished_style=PLACE
    )


class Mark:
    """A sign of one character, or another one where the encoding lacks it."""

    def __init__(self, sign: str, plain: str, style: str) -> None:
        self._sign, self._plain, self._style = sign, plain, style

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self._plain if options.ascii_only else self._sign, style=self._style)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, 1)


PASSED, FAILED, SKIPPED = Mark("✓", "*", GOOD), Mark("✗", "x", BAD), Mark("-", "-", CHANGED)


class ByWidth:
    """What is shown on a narrow terminal, on one of at least 64 columns, and of at least 100."""

    def __init__(self, make: Callable[[int], RenderableType]) -> None:
        self._make = make  # called with 0, 1 or 2

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        yield self._make((width >= _NARROW) + (width >= _WIDE))
