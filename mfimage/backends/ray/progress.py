"""How far a ``map`` on a cluster is, on a terminal."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

from mfimage.terminal import is_terminal, text_bar

# What is over by then needs no bar.
_AFTER_SECONDS = 1.0
_EVERY_SECONDS = 0.1
# One bar at a time: a second map may run inside the first one's loop.
_DRAWING = threading.Lock()


def watched(name: str, results: Iterator[Any], total: int | None) -> Iterator[Any]:
    """Yield results, and show on stderr how many there were, if it is a terminal.

    Parameters
    ----------
    name : str
        The function's.
    total : int or None
        How many there will be, where that is known.
    """
    if not is_terminal() or not _DRAWING.acquire(blocking=False):
        yield from results
        return
    bar = None
    begun = time.monotonic()
    following = begun + _AFTER_SECONDS
    try:
        for count, result in enumerate(results, 1):
            yield result
            if (now := time.monotonic()) < following:
                continue
            following = now + _EVERY_SECONDS
            text = f"{name}: {count:,} done, {count / (now - begun):,.0f}/s"
            if bar is None:
                # No thread of its own: it would draw while the process ends.
                bar = text_bar(refresh=False)
                task = bar.add_task(text, total=total)
                bar.start()
                bar.console.show_cursor()  # nobody may be there to show it again
            bar.update(task, description=text, completed=count, refresh=True)
    finally:
        if bar is not None:
            bar.stop()
        _DRAWING.release()
