"""Terminals: which stream is one, its console and bars (by rich), and text that is safe there."""

from __future__ import annotations

import contextlib
import os
import sys
import unicodedata
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

_WIDEST = 120  # columns: lines of a wider terminal would be hard to follow
_ROOMY, _NARROW = 100, 72  # columns from which, and below which, rows have more or less in them
_BAR = 16
# Colors that can be read on a light and on a dark background.
GOOD, BAD = "green", "red"
# Controls, formats such as those that reverse the reading direction, halves of surrogate pairs,
# and separators of lines and paragraphs.
_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")


def visible(text: str, *, keep: str = "") -> str:
    r"""Return text with its control characters written out, as ``\x1b``, except those in ``keep``.

    Text from elsewhere can then neither move the cursor nor begin a line.
    """
    if text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode()
        if char not in keep and unicodedata.category(char) in _HIDDEN
        else char
        for char in text
    )


def is_terminal(stream: TextIO | None = None) -> bool:
    """Whether a stream, by default stderr, is a terminal; a process may have closed it."""
    with contextlib.suppress(AttributeError, ValueError):
        return (stream or sys.stderr).isatty()
    return False


def shows_bars() -> bool:
    """Whether stderr is a terminal that can redraw lines."""
    return is_terminal() and os.environ.get("TERM", "") not in ("dumb", "unknown")


def shows_tables() -> bool:
    """Whether stdout is a terminal, or is to be treated as one, as rich decides it."""
    # Here again, since rich is imported only where it is needed.
    compatible, forced = (os.environ.get(name, "") for name in ("TTY_COMPATIBLE", "FORCE_COLOR"))
    if compatible in ("0", "1"):
        return compatible == "1"
    return bool(forced) if "FORCE_COLOR" in os.environ else is_terminal(sys.stdout)


def console(**options: Any) -> Console:
    """Return a console, at most 120 columns wide, that takes text as it is: nothing is markup."""
    from rich.console import Console

    made = Console(markup=False, highlight=False, emoji=False, **options)
    made.width = min(made.width, _WIDEST)
    return made


def is_unicode(on: Console) -> bool:
    """Whether a console's encoding has more than ASCII's signs."""
    return on.encoding.lower().startswith("utf")


def step_bars() -> Any:
    """Return a ``rich.progress.Progress`` with a row for each step: bar, amount, rate, time.

    A task's field ``amount`` says how much is done, or what, where no amount is known.
    """
    from rich.control import Control
    from rich.progress import (
        BarColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TransferSpeedColumn,
    )
    from rich.segment import ControlType
    from rich.table import Column
    from rich.text import Text

    class Rate(TransferSpeedColumn):
        """Nothing, instead of a question mark, where there is no rate."""

        def render(self, task: Any) -> Text:
            return super().render(task) if task.completed and task.speed else Text()

    class Bar(BarColumn):
        """A bar where the total is known."""

        def render(self, task: Any) -> Any:
            return super().render(task) if task.total else Text(" " * _BAR)

    class Rows(Progress):
        """Rows that fit into the terminal, whatever its size becomes."""

        drawn: tuple[int, Any] = (0, None)

        def get_renderables(self) -> Any:
            width = on.width
            self.columns = wide if width >= _ROOMY else normal if width >= _NARROW else narrow
            before, table = self.drawn
            if width < before:
                self._erase_folded(table, before, width)
            self.drawn = width, self.make_tasks_table(self.tasks)
            yield self.drawn[1]

        def _erase_folded(self, table: Any, before: int, width: int) -> None:
            """Erase what a terminal has folded: its rows take more lines than we drew."""
            drawn = on.render_lines(table, on.options.update(width=before), pad=False)
            lengths = [sum(each.cell_length for each in line) for line in drawn]
            more = sum(max(-(-length // width), 1) - 1 for length in lengths)
            line = [(ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1)]
            on.control(Control(*line * more))

    on = bars_console()
    spinner = SpinnerColumn("dots" if is_unicode(on) else "line", style="cyan")

    def name(width: int) -> TextColumn:
        column = Column(no_wrap=True, overflow="crop", min_width=width, max_width=width)
        return TextColumn("{task.description}", markup=False, table_column=column)

    def column(text: str) -> TextColumn:
        return TextColumn(text, markup=False, justify="right", table_column=Column(no_wrap=True))

    bar = Bar(_BAR, complete_style="cyan", finished_style="green", pulse_style="cyan")
    rate, took = Rate(table_column=Column(no_wrap=True)), TimeElapsedColumn()
    amount = column("{task.fields[amount]}")
    wide = (spinner, name(40), bar, amount, rate, took)
    normal = (spinner, name(24), bar, amount, rate)
    narrow = (spinner, name(16), amount)
    return Rows(*wide, console=on, transient=True, redirect_stdout=is_terminal(sys.stdout))


def bars_console() -> Console:
    """Return the console of bars on stderr, which follows the terminal's size."""
    from rich.console import Console
    from rich.theme import Theme

    # rich's own yellow cannot be read on a light background; its red would look like a fault.
    theme = {
        "progress.elapsed": "default", "progress.remaining": "default",
        "progress.data.speed": "default", "bar.back": "bright_black", "bar.pulse": "cyan",
    }  # fmt: skip
    return Console(stderr=True, markup=False, highlight=False, emoji=False, theme=Theme(theme))


def text_bar(*, refresh: bool = True) -> Any:
    """Return a bar whose description shows the amount; a thread redraws it if ``refresh``."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(_BAR, complete_style="cyan", finished_style="green"),
        TimeRemainingColumn(),
        console=bars_console(),
        transient=True,
        auto_refresh=refresh,
        # Output to a file or a pipe must not be redirected to the bar.
        redirect_stdout=is_terminal(sys.stdout),
    )
