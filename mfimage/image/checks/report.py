"""The checks of an image and their results."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from mfimage.terminal import visible

Status = Literal["passed", "failed", "skipped"]


class Failed(Exception):
    """A check failed; the message says why."""


class Skipped(Exception):
    """A check does not apply; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """The result of one check."""

    name: str
    status: Status
    detail: str = ""  # what was found, or why it was skipped; lines after the first are a log's
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {**asdict(self), "seconds": round(self.seconds, 3)}


@dataclass(frozen=True, kw_only=True)
class Report:
    """The results of all checks of an image."""

    image: str
    id: str
    runner: str
    checks: tuple[Check, ...]
    # Of a server: ``start_seconds`` until it was ready, and ``memory_bytes`` that its processes
    # had resident at most while it was called.
    measured: Mapping[str, float] = field(default_factory=dict)

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.status == "failed")

    @property
    def summary(self) -> str:
        """The number of each status, as ``18 passed, 1 failed, 2 skipped``."""
        found = [check.status for check in self.checks]
        kinds: tuple[Status, ...] = ("passed", "failed", "skipped")
        return ", ".join(f"{found.count(each)} {each}" for each in kinds if each in found)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "image": self.image,
            "id": self.id,
            "runner": self.runner,
            "status": "failed" if self.failed else "passed",
            "measured": dict(self.measured) or None,
            "checks": [check.to_dict() for check in self.checks],
        }

    def to_text(self) -> str:
        """Return it as a table."""
        rows = [
            (each.name, each.status, f"{each.seconds:.1f} s", each.detail.partition("\n")[0])
            for each in self.checks
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
        return "\n".join(map(visible, lines))


class Recorder:
    """Runs checks and keeps their results."""

    def __init__(self, on_check: Callable[[Check], None] = lambda _: None) -> None:
        self._on_check = on_check
        self.checks: list[Check] = []  # those made so far
        self.measured: dict[str, float] = {}  # see `Report`

    def run(self, name: str, check: Callable[[], str]) -> bool:
        """Run a check, which returns what it found; return whether it did not fail."""
        started = time.monotonic()
        status: Status = "passed"
        try:
            detail = check()
        except Skipped as why:
            status, detail = "skipped", str(why)
        except Failed as fault:
            status, detail = "failed", str(fault)
        except (OSError, http.client.HTTPException) as error:
            status, detail = "failed", f"no answer: {str(error) or type(error).__name__}"
        self.add(name, status, detail, time.monotonic() - started)
        return status != "failed"

    def skip(self, names: Sequence[str], why: str) -> None:
        """Record checks as skipped."""
        for name in names:
            self.add(name, "skipped", why)

    def add(self, name: str, status: Status, detail: str, seconds: float = 0.0) -> None:
        """Record a result."""
        check = Check(name=name, status=status, detail=detail, seconds=seconds)
        self.checks.append(check)
        self._on_check(check)
