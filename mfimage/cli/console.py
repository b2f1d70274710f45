"""The story on stderr: what is under way on a terminal, plain lines everywhere else."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from mfimage.terminal import byte_bar, is_terminal, step_bars, text_bar

if TYPE_CHECKING:
    from mfimage.copy import CopyEvent
    from mfimage.image.builder import BuildEvent
    from mfimage.run import FileProgress


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
    if not is_terminal():
        yield PlainStory(verbose=verbose)
        return
    with step_bars() as progress:
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


@contextlib.contextmanager
def copy_story() -> Iterator[CopyStory]:
    """Yield the teller of a copy; when the block ends well, it says what there was to do."""
    if not is_terminal():
        story = CopyStory()
        yield story
    else:
        with byte_bar("copying") as progress:
            story = CopyBar(progress)
            yield story
    say(story.summary())


class CopyStory:
    """A line for each blob that was copied."""

    def __init__(self) -> None:
        self._copied: list[int] = []
        self._found: list[int] = []

    def __call__(self, event: CopyEvent) -> None:
        """Tell one event."""
        if event.kind == "found":
            self._found.append(event.size)
        elif event.kind == "copied":
            self._copied.append(event.size)
            self._say(f"{event.blob}  {_bytes(event.size)}")

    def _say(self, line: str) -> None:
        say(line)

    def summary(self) -> str:
        """Return what was copied, and what was there."""
        copied, found = self._copied, self._found
        return (
            f"copied {_count(len(copied), 'blob')} ({_bytes(sum(copied))}); "
            f"{_count(len(found), 'blob')} ({_bytes(sum(found))}) there already"
        )


class CopyBar(CopyStory):
    """The same lines, and below them a bar."""

    def __init__(self, progress: Any) -> None:
        super().__init__()
        self._progress = progress
        self._task: Any = None
        self._at: dict[str, int] = {}

    def __call__(self, event: CopyEvent) -> None:
        """Tell one event."""
        super().__call__(event)
        if self._task is None:
            self._task = self._progress.add_task("", total=event.total)
        # A blob may be read twice, for its checksum and to be sent.
        self._at[event.blob] = max(event.current, self._at.get(event.blob, 0))
        self._progress.update(self._task, completed=sum(self._at.values()))

    def _say(self, line: str) -> None:
        self._progress.console.print(line, markup=False, highlight=False)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _bytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


@contextlib.contextmanager
def file_story(*, bar: bool) -> Iterator[FileStory]:
    """Yield the teller of a run over a file; ``bar`` says whether one may be drawn."""
    if not bar or not is_terminal():
        yield FileStory()
        return
    with text_bar() as progress:
        yield FileBar(progress)


class FileStory:
    """The first few records that fail, and what it was in the end."""

    most = 10

    def __init__(self) -> None:
        self._told = 0

    def progress(self, progress: FileProgress) -> None:
        """Tell how far it is: nothing, where that would be lines of it."""

    def failure(self, text: str) -> None:
        """Tell of a record that failed."""
        self._told += 1
        if self._told <= self.most:
            self._say(text)
        elif self._told == self.most + 1:
            self._say("... and more; --errors FILE takes all of them")

    def summary(self, progress: FileProgress) -> None:
        """Tell what it was."""
        self._say(_rate(progress))

    def _say(self, line: str) -> None:
        say(line)


class FileBar(FileStory):
    """The same lines, and below them a bar."""

    def __init__(self, progress: Any) -> None:
        super().__init__()
        self._progress = progress
        self._task = progress.add_task("", total=None)

    def progress(self, progress: FileProgress) -> None:
        """Show how far it is."""
        self._progress.update(
            self._task,
            description=_rate(progress),
            total=progress.size or None,
            completed=progress.position,
        )

    def _say(self, line: str) -> None:
        self._progress.console.print(line, markup=False, highlight=False)


def _rate(progress: FileProgress) -> str:
    rate = progress.records / progress.seconds if progress.seconds else 0.0
    failed = f", {progress.failed} failed" if progress.failed else ""
    count = _count(progress.records, "record")
    return f"{count} in {progress.seconds:.1f} s ({rate:,.0f}/s){failed}"
