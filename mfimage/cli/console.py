"""What stderr shows: bars of what is under way on a terminal, plain lines everywhere else."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from mfimage.terminal import byte_bar, is_terminal, step_bars, text_bar

if TYPE_CHECKING:
    from mfimage.copy import CopyEvent
    from mfimage.image.engine_events import BuildEvent
    from mfimage.run import FileProgress


def note(text: str) -> None:
    """Write a line to stderr."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _bars(make: Callable[[], Any], *, allowed: bool = True) -> Iterator[Any]:
    """Yield a ``rich.progress.Progress`` if stderr is a terminal, else None."""
    if not allowed or not is_terminal():
        yield None
        return
    with make() as progress:
        yield progress


class _Story:
    """Writes lines to stderr, above the bars if there are any."""

    def __init__(self, progress: Any = None) -> None:
        self._progress = progress

    def _write(self, line: str) -> None:
        if self._progress is None:
            note(line)
        else:
            self._progress.console.print(line, markup=False, highlight=False)


@contextlib.contextmanager
def build_story(*, verbose: bool = False) -> Iterator[BuildStory]:
    """Yield what shows a build, a pull or a push.

    Parameters
    ----------
    verbose : bool
        Show the steps' own output too.
    """
    with _bars(step_bars) as progress:
        yield BuildStory(progress, verbose=verbose)


class BuildStory(_Story):
    """A line for each step that ended, and a bar for each under way."""

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
            name = _short(event.step, 70)
            self._tasks[event.step] = self._progress.add_task(name, total=None, amount="")
        if event.total:
            amount = f"  {event.text} {event.current / 1e6:.1f} of {event.total / 1e6:.1f} MB"
            self._progress.update(self._tasks[event.step], amount=amount)


def _short(step: str, limit: int) -> str:
    text = " ".join(step.split())
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


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


@contextlib.contextmanager
def copy_story() -> Iterator[CopyStory]:
    """Yield what shows a copy; if the block succeeds, it ends with a summary."""
    with _bars(lambda: byte_bar("copying")) as progress:
        story = CopyStory(progress)
        yield story
    note(story.summary())


class CopyStory(_Story):
    """A line for each blob that was copied, and a bar of all."""

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

    def summary(self) -> str:
        """Return what was copied, and what was there already."""
        copied, found = self._copied, self._found
        return (
            f"copied {_count(len(copied), 'blob')} ({_bytes(sum(copied))}); "
            f"{_count(len(found), 'blob')} ({_bytes(sum(found))}) there already"
        )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _bytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


@contextlib.contextmanager
def file_story(*, bar: bool) -> Iterator[FileStory]:
    """Yield what shows a run over a file, with a bar if ``bar`` allows one."""
    with _bars(text_bar, allowed=bar) as progress:
        yield FileStory(progress)


class FileStory(_Story):
    """The first few records that fail, a bar, and a summary."""

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
