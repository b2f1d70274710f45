"""What stderr shows of copies and files; of builds, see `mfimage.image.story`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from mfimage.image.story import BuildStory, Story, note, show
from mfimage.sizes import format_size
from mfimage.terminal import step_bars, text_bar

if TYPE_CHECKING:
    from mfimage.copy import CopyEvent
    from mfimage.run import FileProgress

__all__ = ["BuildStory", "CopyStory", "FileStory", "note", "show"]


class CopyStory(Story):
    """A line for each blob that was copied, a row for each that is under way, and a summary."""

    bars = staticmethod(step_bars)

    def __init__(self, progress: Any = None) -> None:
        super().__init__(progress)
        self._copied: list[int] = []
        self._found: list[int] = []
        self._done: dict[str, int] = {}

    def __call__(self, event: CopyEvent) -> None:
        """Show an event."""
        if event.kind == "found":
            self._found.append(event.size)
        elif event.kind == "copied":
            self._copied.append(event.size)
        if self._progress is None:
            if event.kind == "copied":
                self._write(f"{event.blob}  {_bytes(event.size)}")
            return
        # A blob may be read twice: for its checksum, and to be sent.
        done = self._done[event.blob] = max(event.current, self._done.get(event.blob, 0))
        self._row("copying", sum(self._done.values()), event.total)
        if event.kind == "moving":
            self._row(event.blob, done, event.size)
        else:
            self._remove(event.blob)
        if event.kind == "copied":
            self._ended(event.blob, format_size(event.size))

    def summary(self) -> None:
        """Show what was copied, and what was there already."""
        copied, found = self._copied, self._found
        took = f" in {time.monotonic() - self._began:.1f} s" if self._progress else ""
        self._write(
            f"copied {_count(len(copied), 'blob')} ({_bytes(sum(copied))}){took}; "
            f"{_count(len(found), 'blob')} ({_bytes(sum(found))}) there already"
        )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _bytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


class FileStory(Story):
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
