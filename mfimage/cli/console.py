"""What stderr shows: bars of what is under way on a terminal, plain lines everywhere else."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from mfimage.errors import shorten
from mfimage.terminal import byte_bar, is_terminal, step_bars, text_bar

if TYPE_CHECKING:
    from mfimage.copy import CopyEvent
    from mfimage.image.builder import BuildEvent
    from mfimage.run import FileProgress


def note(text: str) -> None:
    """Write a line to stderr."""
    print(text, file=sys.stderr, flush=True)


class _Story:
    """Writes lines to stderr, above the bars if there are any."""

    bars: Callable[[], Any]

    def __init__(self, progress: Any = None) -> None:
        self._progress = progress

    def _write(self, line: str) -> None:
        if self._progress is None:
            note(line)
        else:
            self._progress.console.print(line, markup=False, highlight=False)


AnyStory = TypeVar("AnyStory", bound=_Story)


@contextlib.contextmanager
def show(kind: type[AnyStory], *, bars: bool = True, **options: Any) -> Iterator[AnyStory]:
    """Yield a story, with bars if they are wanted and stderr is a terminal."""
    if not bars or not is_terminal():
        yield kind(**options)
        return
    with kind.bars() as progress:
        yield kind(progress, **options)


class BuildStory(_Story):
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


class CopyStory(_Story):
    """A line for each blob that was copied, a bar of all, and a summary."""

    bars = staticmethod(partial(byte_bar, "copying"))

    def __init__(self, progress: Any = None) -> None:
        super().__init__(progress)
        self._copied: list[int] = []
        self._found: list[int] = []
        self._task: Any = None
        self._done: dict[str, int] = {}

    def __call__(self, event: CopyEvent) -> None:
        """Show an event."""
        if event.kind == "found":
            self._found.append(event.size)
        elif event.kind == "copied":
            self._copied.append(event.size)
            self._write(f"{event.blob}  {_bytes(event.size)}")
        if self._progress is None:
            return
        if self._task is None:
            self._task = self._progress.add_task("", total=event.total)
        # A blob may be read twice: for its checksum, and to be sent.
        self._done[event.blob] = max(event.current, self._done.get(event.blob, 0))
        self._progress.update(self._task, completed=sum(self._done.values()))

    def summary(self) -> None:
        """Show what was copied, and what was there already."""
        copied, found = self._copied, self._found
        self._write(
            f"copied {_count(len(copied), 'blob')} ({_bytes(sum(copied))}); "
            f"{_count(len(found), 'blob')} ({_bytes(sum(found))}) there already"
        )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _bytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


class FileStory(_Story):
    """The first few records that fail, a bar, and a summary."""

    bars = staticmethod(text_bar)
    limit = 10

    def __init__(self, progress: Any = None) -> None:
        super().__init__(progress)
        self._failures = 0
        self._task = None if progress is None else progress.add_task("", total=None)

    def progress(self, done: FileProgress) -> None:
        """Show how much is done; without a bar, nothing."""
        if self._progress is not None:
            total = done.size or None
            self._progress.update(
                self._task, description=_rate(done), total=total, completed=done.position
            )

    def failure(self, text: str) -> None:
        """Show a record that failed."""
        self._failures += 1
        if self._failures <= self.limit:
            self._write(text)
        elif self._failures == self.limit + 1:
            self._write("... and more; --errors FILE records all of them")

    def summary(self, done: FileProgress) -> None:
        """Show the totals."""
        self._write(_rate(done))


def _rate(done: FileProgress) -> str:
    rate = done.records / done.seconds if done.seconds else 0.0
    failed = f", {done.failed} failed" if done.failed else ""
    return f"{_count(done.records, 'record')} in {done.seconds:.1f} s ({rate:,.0f}/s){failed}"
