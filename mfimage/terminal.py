"""Progress bars on stderr, by rich."""

from __future__ import annotations

import contextlib
import sys
from typing import Any


def is_terminal() -> bool:
    """Whether stderr is a terminal; a process may have none, or have closed it."""
    with contextlib.suppress(AttributeError, ValueError):
        return sys.stderr.isatty()
    return False


def step_bars() -> Any:
    """Return a ``rich.progress.Progress`` that shows steps and their times."""
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    text = TextColumn("{task.description}{task.fields[amount]}", markup=False)
    return _progress(SpinnerColumn(), text, TimeElapsedColumn())


def byte_bar(text: str) -> Any:
    """Return a progress bar of bytes."""
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn

    return _progress(TextColumn(text), BarColumn(), DownloadColumn(), TimeRemainingColumn())


def text_bar(*, refresh: bool = True) -> Any:
    """Return a bar whose description shows the amount; a thread redraws it if ``refresh``."""
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

    text = TextColumn("{task.description}", markup=False)
    return _progress(text, BarColumn(), TimeRemainingColumn(), auto_refresh=refresh)


def _progress(*columns: Any, auto_refresh: bool = True) -> Any:
    from rich.console import Console
    from rich.progress import Progress

    return Progress(
        *columns,
        console=Console(stderr=True),
        transient=True,
        auto_refresh=auto_refresh,
        # Output to a file or a pipe must not be redirected to the bar.
        redirect_stdout=sys.stdout.isatty(),
    )
