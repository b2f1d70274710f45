"""The verb ``batch`` of an image's entrypoint."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import orjson

from mfimage.errors import BackendError
from mfimage.runtime.loading.loader import load_folder
from mfimage.runtime.records.streams import STREAM, ended_by_sigterm, results

# Beside 0, all records have results; 1, the job failed; 2, wrong usage.
SOME_FAILED = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the verb takes."""
    add = parser.add_argument
    add(
        "--input",
        required=True,
        metavar="URL",
        help="file, folder or pattern (*, ?, **); a path, s3://, gs:// or azure://",
    )
    add("--output", required=True, metavar="URL", help="a folder of this job alone")
    add("--format", metavar="NAME", help="jsonl, avro, parquet, or one's own; by suffix")
    add("--output-format", metavar="NAME", help="of the results; the input's")
    add(
        "--batch-size",
        type=int,
        default=256,
        metavar="N",
        help="most records that a batch function gets at once (%(default)s)",
    )
    add(
        "--part-bytes",
        type=int,
        metavar="N",
        help="how much of a file of lines is a part; by the size of the input",
    )
    add("--num-actors", type=int, metavar="N", help="processes; as many as there is room for")
    add("--num-cpus", type=float, default=1, metavar="N", help="of each process (%(default)s)")
    add("--num-gpus", type=float, default=0, metavar="N", help="of each process (%(default)s)")
    add(
        "--max-retries",
        type=int,
        default=2,
        metavar="N",
        help="how often a part is tried again when its process died, the last time so that a "
        "record which ends the process fails alone (%(default)s)",
    )
    add(
        "--start-timeout",
        type=float,
        default=300,
        metavar="SECONDS",
        help="how long to wait, without a process, for room on the cluster (%(default)s)",
    )
    add(
        "--address",
        metavar="HOST:PORT",
        help="the Ray cluster; auto: the one of this machine; local: a new one here "
        "(default: $RAY_ADDRESS, else auto, else local)",
    )
    add("--allow-errors", action="store_true",
        help=f"exit with 0, not {SOME_FAILED}, when some records have no result")  # fmt: skip


def run(folder: Path, options: argparse.Namespace) -> int:
    """Run a job; print its summary as JSON; return the exit code."""
    _need_ray()
    import ray

    from mfimage.runtime.batch.job import BatchOptions, Job
    from mfimage.runtime.ray.batch import RayJobOptions, RayRunner
    from mfimage.runtime.ray.preflight import connect

    cluster = RayJobOptions(
        address=options.address,
        num_actors=options.num_actors,
        num_cpus=options.num_cpus,
        num_gpus=options.num_gpus,
        max_retries=options.max_retries,
        start_timeout=options.start_timeout,
    )
    asked = BatchOptions(
        input=options.input,
        output=options.output,
        format=options.format,
        output_format=options.output_format,
        batch_size=options.batch_size,
        part_bytes=options.part_bytes,
    )
    with ended_by_sigterm(), results(STREAM) as out:
        fn = load_folder(folder)  # which may register formats
        job = Job(fn.spec, asked)
        runner = RayRunner(
            name=fn.name,
            digest=fn.digest,
            folder=folder.absolute(),
            part_options=job.part_options,
            options=cluster,
        )
        try:
            if job.is_left:
                connect(ray, options.address)
            with ended_by_sigterm():  # Ray has a handler of its own, which exits with 15
                summary = job.run(runner)
        finally:
            ray.shutdown()
        out.write(orjson.dumps(asdict(summary)) + b"\n")
    if summary.failed:
        sys.stderr.write(f"{summary.failed} records have no result: {summary.errors}\n")
    return SOME_FAILED if summary.failed and not options.allow_errors else 0


def _need_ray() -> None:
    missing = [name for name in ("ray", "obstore") if find_spec(name) is None]
    if missing:
        raise BackendError(
            f"batch: {missing[0]} is not installed here",
            hint="build the image with --target ray, or pip install 'mfimage[ray]'",
        )
