"""The story on stderr: what is under way on a terminal, plain lines everywhere else."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from mfimage.image.engine_events import BuildEvent


def say(text: str) -> None:
    """Write a line to stderr."""
    print(text, file=sys.stderr, flush=True)


class Story(Protocol):
    """Tells what a build, a pull or a push is doing."""

    def __call__(self, event: BuildEvent) -> None:
        """Tell one event."""


@contextlib.contextmanager
def story(*, verbose: bool = False) -> Iterator[Story]:
    """Yield the teller that fits where stderr goes.

    Parameters
    ----------
    verbose : bool
        Tell the steps' own output, too.
    """
    if not sys.stderr.isatty():
        yield PlainStory(verbose=verbose)
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}{task.fields[amount]}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield TerminalStory(progress, verbose=verbose)


class PlainStory:
    """A line for each step when it is over, and for each log line when asked for."""

    def __init__(self, *, verbose: bool) -> None:
        self._verbose = verbose

    def __call__(self, event: BuildEvent) -> None:
        """Tell one event."""
        if line := _line(event, verbose=self._verbose):
            say(line)


class TerminalStory:
    """The same lines, and below them what each step under way is doing."""

    def __init__(self, progress: Any, *, verbose: bool) -> None:
        self._progress = progress
        self._verbose = verbose
        self._bars: dict[str, Any] = {}
        self._over: set[str] = set()

    def __call__(self, event: BuildEvent) -> None:
        """Tell one event."""
        if line := _line(event, verbose=self._verbose):
            self._progress.console.print(line, markup=False, highlight=False)
        if event.step in self._over:
            return  # what BuildKit tells of a step may come after its end
        if event.kind in ("cached", "done", "failed"):
            self._over.add(event.step)
            if (bar := self._bars.pop(event.step, None)) is not None:
                self._progress.remove_task(bar)
            return
        bar = self._bars.get(event.step)
        if bar is None:
            bar = self._progress.add_task(_short(event.step, 70), total=None, amount="")
            self._bars[event.step] = bar
        if event.total:
            amount = f"  {event.text} {event.current / 1e6:.1f} of {event.total / 1e6:.1f} MB"
            self._progress.update(bar, amount=amount)


def _short(step: str, most: int) -> str:
    text = " ".join(step.split())
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _line(event: BuildEvent, *, verbose: bool) -> str | None:
    step = _short(event.step, 100)
    if step.startswith("[internal]") and event.kind != "failed" and not verbose:
        return None
    if event.kind == "cached":
        return f"{step}  cached"
    if event.kind == "done":
        return f"{step}  {event.seconds:.1f} s" if event.seconds is not None else step
    if event.kind == "failed":
        return f"{step}  FAILED"
    if event.kind == "log" and verbose:
        return f"  {event.text}"
    return None
