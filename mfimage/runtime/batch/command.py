"""The verb ``batch`` of an image's entrypoint."""

from __future__ import annotations

import argparse
import sys
from dataclasses import MISSING, asdict, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson

from mfimage.errors import BackendError
from mfimage.runtime.batch.options import ActorOptions, BatchOptions
from mfimage.runtime.loading.loader import load_folder
from mfimage.runtime.records.streams import STREAM, ended_by_sigterm, results

# Otherwise 0: all records have results; 1: the job failed; 2: wrong usage.
SOME_FAILED = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    for each in (*fields(BatchOptions), *fields(ActorOptions)):
        required = each.default is MISSING
        shown = "" if required or each.default is None else " (default: %(default)s)"
        parser.add_argument(
            f"--{each.name.replace('_', '-')}",
            required=required,
            default=None if required else each.default,
            type=each.metadata["type"],
            metavar=each.metadata["metavar"],
            help=each.metadata["help"] + shown,
        )
    parser.add_argument(
        "--allow-errors",
        action="store_true",
        help=f"exit with 0, not {SOME_FAILED}, when some records have no result",
    )


def run(folder: Path, arguments: argparse.Namespace) -> int:
    """Run a job; print its summary as JSON; return the exit code."""
    missing = [name for name in ("ray", "obstore") if find_spec(name) is None]
    if missing:
        raise BackendError(
            f"batch: {missing[0]} is not installed here",
            hint="build the image with --target ray, or pip install 'mfimage[ray]'",
        )
    import ray

    from mfimage.runtime.batch.job import BatchJob
    from mfimage.runtime.ray.batch import RayParts
    from mfimage.runtime.ray.preflight import connect

    options = _options(BatchOptions, arguments)
    cluster = _options(ActorOptions, arguments)
    with ended_by_sigterm(), results(STREAM) as out:
        fn = load_folder(folder, arguments.function)  # which may register formats
        job = BatchJob(fn.spec, options)
        parts = RayParts(fn.name, fn.digest, folder.absolute(), job.options, cluster)
        try:
            if job.is_incomplete:
                connect(ray, cluster.address)
            with ended_by_sigterm():  # Ray installs its own handler, which exits with 15
                summary = job.run(parts.run)
        finally:
            ray.shutdown()
        out.write(orjson.dumps(asdict(summary)) + b"\n")
    if summary.failed:
        sys.stderr.write(f"{summary.failed} records have no result: {summary.errors}\n")
    return SOME_FAILED if summary.failed and not arguments.allow_errors else 0


def _options(kind: Any, arguments: argparse.Namespace) -> Any:
    return kind(**{each.name: getattr(arguments, each.name) for each in fields(kind)})
