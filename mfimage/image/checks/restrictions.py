"""Whether an image works with restrictions."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from mfimage.image.checks.report import Failed, Recorder, Skipped
from mfimage.image.checks.runner import ContainerOptions

_ANY_USER = "12345:0"  # as OpenShift chooses one: without a name, in root's group


# What each changes of `ContainerOptions`, and what then is known.
RESTRICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "read-only": ({"read_only": True}, "works on a read-only root with a /tmp in memory"),
    "any-user": ({"user": _ANY_USER}, f"works as {_ANY_USER}"),
    "no-capabilities": ({"no_capabilities": True}, "works without capabilities"),
    "no-new-privileges": ({"no_new_privileges": True}, "works with no-new-privileges"),
}


def check_restrictions(
    recorder: Recorder, launch: ContainerOptions, attempt: Callable[[ContainerOptions], object]
) -> None:
    """Start an image with all restrictions; if it does not work, with each alone to name it."""
    # ``attempt`` starts it and calls it; it raises `Failed` when it does not work.

    def works(changes: dict[str, Any], holds: str) -> str:
        # What is skipped starts, and there are no examples.
        with suppress(Skipped):
            attempt(replace(launch, **changes))
        return holds

    started = time.monotonic()
    try:
        works(
            {name: on for changes, _ in RESTRICTIONS.values() for name, on in changes.items()}, ""
        )
    except (Failed, OSError, http.client.HTTPException) as fault:
        seconds = time.monotonic() - started
        held = [
            recorder.run(name, partial(works, changes, holds))
            for name, (changes, holds) in RESTRICTIONS.items()
        ]
        if all(held):
            recorder.add("restricted", "failed", f"with all restrictions at once: {fault}", seconds)
        return
    share = (time.monotonic() - started) / len(RESTRICTIONS)
    for name, (_, holds) in RESTRICTIONS.items():
        recorder.add(name, "passed", holds, share)
