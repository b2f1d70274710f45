"""What stderr shows of builds: bars of what is under way on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from mfimage.errors import shorten
from mfimage.terminal import is_terminal, step_bars

if TYPE_CHECKING:
    from mfimage.image.builder import BuildEvent


def note(text: str) -> None:
    """Write a line to stderr."""
    print(text, file=sys.stderr, flush=True)


class Story:
    """Writes lines to stderr, above the bars if there are any."""

    bars: Callable[[], Any]

    def __init__(self, progress: Any = None) -> None:
        self._progress = progress

    def _write(self, line: str) -> None:
        if self._progress is None:
            note(line)
        else:
            self._progress.console.print(line, markup=False, highlight=False)


AnyStory = TypeVar("AnyStory", bound=Story)


@contextlib.contextmanager
def show(kind: type[AnyStory], *, bars: bool = True, **options: Any) -> Iterator[AnyStory]:
    """Yield a story, with bars if they are wanted and stderr is a terminal."""
    if not bars or not is_terminal():
        yield kind(**options)
        return
    with kind.bars() as progress:
        yield kind(progress, **options)


class BuildStory(Story):
    """A line for each step that ended, and for its output if ``verbose``; a bar for the others."""

    bars = staticmethod(step_bars)

    def __init__(self, progress: Any = None, *, verbose: bool = False) -> None:
        super().__init__(progress)
        self._verbose = verbose
        self._tasks: dict[str, Any] = {}
        self._ended: set[str] = set()

    def __call__(self, event: BuildEvent) -> None:
        """Show an event."""
        if line := _line(event, verbose=self._verbose):
            self._write(line)
        if self._progress is None or event.step in self._ended:
            return  # BuildKit reports on a step even after its end
        if event.kind in ("cached", "done", "failed"):
            self._ended.add(event.step)
            if (task := self._tasks.pop(event.step, None)) is not None:
                self._progress.remove_task(task)
            return
        if event.step not in self._tasks:
            name = shorten(" ".join(event.step.split()), 70)
            self._tasks[event.step] = self._progress.add_task(name, total=None, amount="")
        if event.total:
            amount = f"  {event.text} {event.current / 1e6:.1f} of {event.total / 1e6:.1f} MB"
            self._progress.update(self._tasks[event.step], amount=amount)


def _line(event: BuildEvent, *, verbose: bool) -> str | None:
    step = shorten(" ".join(event.step.split()), 100)
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
