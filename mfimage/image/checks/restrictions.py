"""Whether an image works with restrictions."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable
from dataclasses import replace

from mfimage.image.checks.report import Failed, Recorder, Skipped
from mfimage.image.checks.runner import ContainerOptions

# As OpenShift chooses one: without a name, in root's group.
_ANY_USER = "12345:0"


def _read_only(launch: ContainerOptions) -> ContainerOptions:
    return replace(launch, read_only=True)


def _any_user(launch: ContainerOptions) -> ContainerOptions:
    return replace(launch, user=_ANY_USER)


def _no_capabilities(launch: ContainerOptions) -> ContainerOptions:
    return replace(launch, no_capabilities=True)


def _no_new_privileges(launch: ContainerOptions) -> ContainerOptions:
    return replace(launch, no_new_privileges=True)


RESTRICTIONS: dict[str, tuple[Callable[[ContainerOptions], ContainerOptions], str]] = {
    "read-only": (_read_only, "works on a read-only root with a /tmp in memory"),
    "any-user": (_any_user, f"works as {_ANY_USER}"),
    "no-capabilities": (_no_capabilities, "works without capabilities"),
    "no-new-privileges": (_no_new_privileges, "works with no-new-privileges"),
}
_TOGETHER = "restricted"


def check_restrictions(
    recorder: Recorder, launch: ContainerOptions, attempt: Callable[[ContainerOptions], object]
) -> None:
    """Start an image with all restrictions; if it does not work, with each alone to name it.

    ``attempt`` starts it and calls it; it raises `Failed` when it does not work.
    """

    def alone(restrict: Callable[[ContainerOptions], ContainerOptions], holds: str) -> str:
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


def _attempt(attempt: Callable[[ContainerOptions], object], launch: ContainerOptions) -> None:
    try:
        attempt(launch)
    except Skipped:
        return  # it starts, and there are no examples
