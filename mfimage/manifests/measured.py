"""What ``mfimage test --json`` measured."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mfimage.errors import OptionError

_HOW = "mfimage test IMAGE --json > FILE"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """How long an image takes to start, and how much memory it needs."""

    start_seconds: float
    memory_bytes: int

    @classmethod
    def read(cls, path: str) -> Measured:
        """Read the report of ``mfimage test --json``."""
        try:
            report = json.loads(Path(path).read_bytes())
        except OSError as error:
            raise OptionError(
                f"measured: cannot read {path}: {error.strerror}", hint=f"make it: {_HOW}"
            ) from None
        except ValueError as error:
            raise OptionError(f"measured: {path} is not JSON: {error}", hint=_HOW) from None
        found = report.get("measured") if isinstance(report, dict) else None
        if not isinstance(found, dict):
            raise OptionError(
                f"measured: {path} does not say what was measured",
                hint=f"{_HOW}, of an image of target fastapi",
            )
        if report.get("status") != "passed":
            raise OptionError(
                f"measured: according to {path}, {report.get('image')} did not pass its test",
                hint=f"see what failed: mfimage test {report.get('image')}",
            )
        return cls(
            start_seconds=_number(found, "start_seconds", path),
            memory_bytes=int(_number(found, "memory_bytes", path)),
        )


def _number(found: dict[str, Any], name: str, path: str) -> float:
    value = found.get(name)
    number = float(value) if isinstance(value, int | float) else math.nan
    if isinstance(value, bool) or not math.isfinite(number) or number <= 0:
        raise OptionError(f"measured: {name} in {path} is {value!r}, not a number", hint=_HOW)
    return number
