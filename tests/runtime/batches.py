"""Batch jobs in this process: without Ray, part after part."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mfimage.runtime.batch.job import BatchOptions, Job, Summary
from mfimage.runtime.batch.parts import Part, PartDone, PartOptions, PartRunner
from mfimage.runtime.loading.loader import LiveFunction


class InProcess:
    """Runs parts here; ends before the part ``stop_at``."""

    def __init__(self, fn: LiveFunction, options: PartOptions, stop_at: int | None = None) -> None:
        self._runner = PartRunner(fn, options)
        self._stop_at = stop_at
        self.ran: list[int] = []

    def run(self, parts: list[Part]) -> Iterator[tuple[Part, PartDone]]:
        for part in parts:
            if part.index == self._stop_at:
                raise KeyboardInterrupt
            self.ran.append(part.index)
            yield part, self._runner.run(part)


def run_job(fn: LiveFunction, *, input: Any, output: Any, **options: Any) -> Summary:
    """Run a whole job in this process."""
    job = Job(fn.spec, BatchOptions(input=str(input), output=str(output), **options))
    return job.run(InProcess(fn, job.part_options))


def lines(folder: Path, pattern: str = "part-*.jsonl") -> list[Any]:
    """Return the results, in order."""
    files = sorted(folder.glob(pattern))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def failures(folder: Path) -> list[Any]:
    """Return what ``errors.jsonl`` says."""
    return lines(folder, "errors.jsonl")
