"""What stderr shows of builds: bars of what is under way on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from mfimage.errors import shorten
from mfimage.sizes import format_size
from mfimage.terminal import BAD, GOOD, is_unicode, shows_bars, step_bars, visible

if TYPE_CHECKING:
    from mfimage.image.builder import BuildEvent, BuiltLayer


def note(text: str) -> None:
    """Write one or several lines to stderr."""
    print(visible(text, keep="\n\t"), file=sys.stderr, flush=True)


class Story:
    """Writes lines to stderr, above the bars if there are any."""

    bars: Callable[[], Any]

    def __init__(self, progress: Any = None) -> None:
        self._progress = progress
        self._rows: dict[str, Any] = {}
        self._began = time.monotonic()

    def _write(self, line: str, style: str = "") -> None:
        if self._progress is None:
            note(visible(line, keep="\t"))
        else:
            text = visible(line, keep="\t")
            self._progress.console.print(text, style=style, markup=False, highlight=False)

    def _row(self, name: str, done: int, total: int, what: str = "") -> None:
        """Show how far something is, in its row: bytes, or what is done where they are unknown."""
        if name not in self._rows:
            text = visible(shorten(" ".join(name.split()), 70))
            self._rows[name] = self._progress.add_task(text, total=None, amount="")
        amount = visible(what)
        if total:
            amount = f"{format_size(done)} of {format_size(total)}"
        elif done:
            amount = format_size(done)
        self._progress.update(self._rows[name], completed=done, total=total or None, amount=amount)

    def _remove(self, name: str) -> None:
        if (row := self._rows.pop(name, None)) is not None:
            self._progress.remove_task(row)

    def _ended(self, name: str, *ends: str, failed: bool = False) -> None:
        """Write the line of something that is over."""
        passed, wrong = ("\u2713", "\u2717") if is_unicode(self._progress.console) else ("*", "x")
        line = "  ".join([f"{wrong if failed else passed} {name:<28}", *ends])
        self._write(line.rstrip(), BAD if failed else "")


AnyStory = TypeVar("AnyStory", bound=Story)


@contextlib.contextmanager
def show(kind: type[AnyStory], *, bars: bool = True, **options: Any) -> Iterator[AnyStory]:
    """Yield a story, with bars if they are wanted and stderr is a terminal."""
    if not bars or not shows_bars():
        yield kind(**options)
        return
    progress = kind.bars()
    # Ctrl-C waits until the cursor is hidden and the bars are there: only then can both be undone.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        progress.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield kind(progress, **options)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        progress.stop()


_OVER = ("cached", "done", "failed")


class BuildStory(Story):
    """A line for each step that ended, and for its output if ``verbose``; a bar for the others."""

    bars = staticmethod(step_bars)

    def __init__(self, progress: Any = None, *, verbose: bool = False) -> None:
        super().__init__(progress)
        self._verbose = verbose
        self._over: set[str] = set()
        # Of what progresses in a step, such as the layers of a pull: bytes, and all of them.
        self._amounts: dict[str, dict[str, tuple[int, int]]] = {}
        self._not_sent = 0

    def __call__(self, event: BuildEvent) -> None:
        """Show an event."""
        self._not_sent += event.spared
        if self._progress is None:
            if line := _line(event, verbose=self._verbose):
                self._write(line)
            return
        if event.kind == "started":
            self._over.discard(event.step)  # another platform's step of the same name
        elif event.step in self._over:
            return  # BuildKit reports on a step even after its end
        if event.kind in _OVER:
            self._end(event)
        elif event.kind == "log":
            if self._verbose:
                self._write(f"  {event.text}")
        else:
            amounts = self._amounts.setdefault(event.step, {})
            amounts[event.part] = event.current, event.total
            done, total = map(sum, zip(*amounts.values(), strict=True))
            self._row(event.step, done, total, event.text)

    def _end(self, event: BuildEvent) -> None:
        """Replace a step's row by a line."""
        self._over.add(event.step)
        self._amounts.pop(event.step, None)
        self._remove(event.step)
        step = shorten(" ".join(event.step.split()), 100)
        if event.kind == "failed":
            self._ended(step, "FAILED", failed=True)
        elif not (event.brief or step.startswith("[internal]")):
            ends = [format_size(event.total)] if event.total else []
            if event.kind == "cached":
                ends.append("cached")
            elif event.seconds is not None:
                ends.append(f"{event.seconds:.1f} s")
            self._ended(step, *ends)

    def summary(self, verb: str, layers: Sequence[BuiltLayer] = ()) -> None:
        """Show on a terminal how long it took, and what caches have saved of it."""
        if self._progress is None:
            return
        text = f"{verb} in {time.monotonic() - self._began:.1f} s"
        saved = []
        if cached := sum(layer.cached for layer in layers):
            saved.append(f"{cached} of {len(layers)} layers from cache")
        if self._not_sent:
            saved.append(f"{format_size(self._not_sent)} not sent")
        self._write("; ".join([text, ", ".join(saved)] if saved else [text]), GOOD)


def _line(event: BuildEvent, *, verbose: bool) -> str | None:
    step = shorten(" ".join(event.step.split()), 100)
    if event.brief or (step.startswith("[internal]") and event.kind != "failed" and not verbose):
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
