"""Batch jobs in this process: without Ray, part after part."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mfimage.runtime.batch.job import BatchJob, Summary
from mfimage.runtime.batch.options import BatchOptions
from mfimage.runtime.batch.parts import BatchPart, PartResult, PartRunner
from mfimage.runtime.loading.loader import LiveFunction


class InProcess:
    """Runs parts in this process; stops before the part ``stop_at``."""

    def __init__(self, fn: LiveFunction, options: BatchOptions, stop_at: int | None = None) -> None:
        self._runner = PartRunner(fn, options)
        self._stop_at = stop_at
        self.ran: list[int] = []

    def run(self, parts: list[BatchPart]) -> Iterator[tuple[BatchPart, PartResult]]:
        for part in parts:
            if part.index == self._stop_at:
                raise KeyboardInterrupt
            self.ran.append(part.index)
            yield part, self._runner.run(part)


def run_job(fn: LiveFunction, *, input: Any, output: Any, **options: Any) -> Summary:
    """Run a whole job in this process."""
    job = BatchJob(fn.spec, BatchOptions(input=str(input), output=str(output), **options))
    return job.run(InProcess(fn, job.options).run)


def lines(folder: Path, pattern: str = "part-*.jsonl") -> list[Any]:
    """Return the results, in order."""
    files = sorted(folder.glob(pattern))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def failures(folder: Path) -> list[Any]:
    """Return the lines of ``errors.jsonl``."""
    return lines(folder, "errors.jsonl")
