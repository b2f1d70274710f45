"""How little an image may be given and still work."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable
from dataclasses import replace

from mfimage.image.checks.report import Failed, Recorder, Skipped
from mfimage.image.checks.runner import Launch

# As OpenShift chooses one: no name, in root's group.
_ANYBODY = "12345:0"


def _read_only(launch: Launch) -> Launch:
    return replace(launch, read_only=True)


def _any_user(launch: Launch) -> Launch:
    return replace(launch, user=_ANYBODY)


def _no_capabilities(launch: Launch) -> Launch:
    return replace(launch, no_capabilities=True)


def _no_new_privileges(launch: Launch) -> Launch:
    return replace(launch, no_new_privileges=True)


RESTRICTIONS: dict[str, tuple[Callable[[Launch], Launch], str]] = {
    "read-only": (_read_only, "works on a read-only root with a /tmp in memory"),
    "any-user": (_any_user, f"works as {_ANYBODY}"),
    "no-capabilities": (_no_capabilities, "works without capabilities"),
    "no-new-privileges": (_no_new_privileges, "works with no-new-privileges"),
}
_TOGETHER = "restricted"


def check_restrictions(
    recorder: Recorder, launch: Launch, attempt: Callable[[Launch], object]
) -> None:
    """Start it with all restrictions; if it does not work, with each alone to know which it was.

    Parameters
    ----------
    recorder : Recorder
        Where the checks go.
    launch : Launch
        How it works without restrictions.
    attempt : callable
        Starts it and sees that it works; raises `Failed`.
    """

    def alone(restrict: Callable[[Launch], Launch], holds: str) -> str:
        _attempt(attempt, restrict(launch))
        return holds

    everything = launch
    for restrict, _ in RESTRICTIONS.values():
        everything = restrict(everything)
    started = time.monotonic()
    try:
        _attempt(attempt, everything)
    except (Failed, OSError, http.client.HTTPException) as fault:
        seconds = time.monotonic() - started
        held = [
            recorder.run(name, lambda pair=pair: alone(*pair))  # type: ignore[misc]
            for name, pair in RESTRICTIONS.items()
        ]
        if all(held):
            recorder.add(_TOGETHER, "failed", f"with all restrictions at once: {fault}", seconds)
        return
    share = (time.monotonic() - started) / len(RESTRICTIONS)
    for name, (_, holds) in RESTRICTIONS.items():
        recorder.add(name, "passed", holds, share)


def _attempt(attempt: Callable[[Launch], object], launch: Launch) -> None:
    try:
        attempt(launch)
    except Skipped:
        return  # it works, as far as can be told
