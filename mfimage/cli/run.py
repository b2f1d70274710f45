"""Commands that run a function on this machine."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import click

from mfimage.cli.flags import options

if TYPE_CHECKING:
    from mfimage.load import JsonFunction


@click.command()
@click.argument("references", metavar="REFERENCE...", nargs=-1, required=True)
@click.option("--host", help="Address to listen on; by default MFIMAGE_HOST.")
@click.option("--port", type=int, help="Port to listen on; by default PORT.")
def serve(references: tuple[str, ...], host: str | None, port: int | None) -> None:
    """Serve functions over HTTP, as their image would."""
    from mfimage.runtime.settings import VARIABLES

    given = {"host": host, "port": port}
    for variable in VARIABLES:
        if (value := given.get(variable.field)) is not None:
            variable.put(str(value), os.environ)
    _runtime(references, "serve")


_file_flags = options(
    click.option(
        "--input", default="-", metavar="FILE", help="File to read records from; - is stdin."
    ),
    click.option(
        "--output", default="-", metavar="FILE", help="File to write results to; - is stdout."
    ),
    click.option(
        "--format", metavar="NAME", help="Format of the input; by default by its suffix, else json."
    ),
    click.option(
        "--output-format", metavar="NAME",
        help="Format of the output; by default by its suffix, else json.",
    ),
)  # fmt: skip
_backend_flags = options(
    click.option(
        "--backend", metavar="NAME", help="Where the function runs: local, process or ray."
    ),
    click.option("--workers", type=int, metavar="N", help="Processes that run the function."),
    click.option("--timeout", type=float, metavar="SECONDS", help="Time limit for each record."),
)


@click.command()
@click.argument("reference")
@_file_flags
@_backend_flags
def call(
    reference: str, *, backend: str | None, workers: int | None, timeout: float | None, **files: Any
) -> None:
    """Call a function with each record, one by one.

    Each result is written at once. The function runs in this process if this interpreter satisfies
    its lock, else in its own environment, as its image would, unless a backend is named. The first
    record that fails ends the run.
    """
    from mfimage.package.store import Pipeline, open_any

    bare = (backend, workers, timeout) == (None, None, None)
    if bare and not isinstance(open_any(reference), Pipeline):  # its parts choose for themselves
        given = [f"--{name.replace('_', '-')}={value}" for name, value in files.items() if value]
        _runtime([reference], "call", *given)
    from mfimage.run import RecordFiles, call_files

    load = _loader(reference, backend, workers, timeout)
    call_files(load, RecordFiles(**files), ahead=max(workers or 1, 1))


@click.command("map")
@click.argument("reference")
@_file_flags
@_backend_flags
@click.option("--batch-size", type=int, default=256, metavar="N", help="Records to send together.")
@click.option(
    "--max-in-flight", type=int, metavar="N", help="Batches to send before results are back."
)
@click.option(
    "--on-error", type=click.Choice(["stop", "skip"]),
    help="What to do when a record fails; by default stop.",
)  # fmt: skip
@click.option("--errors", metavar="FILE", help="Skip records that fail, and write why to a file.")
def map_(
    reference: str,
    *,
    backend: str | None,
    workers: int | None,
    timeout: float | None,
    batch_size: int,
    max_in_flight: int | None,
    on_error: Literal["stop", "skip"] | None,
    errors: str | None,
    **files: Any,
) -> None:
    """Run a function on all records of a file.

    Records are sent in batches, results are written in order. The output appears when it is
    complete.
    """
    from mfimage.cli.console import FileStory, show
    from mfimage.run import RecordFiles, map_files

    bars = files["output"] != "-" or not sys.stdout.isatty()
    with show(FileStory, bars=bars) as story:
        done = map_files(
            _loader(reference, backend, workers, timeout),
            RecordFiles(**files),
            on_error=on_error,
            errors=errors,
            on_progress=story.progress,
            on_failure=story.failure,
            batch_size=batch_size,
            max_in_flight=max_in_flight,
        )
        story.summary(done)
    sys.exit(1 if done.failed else 0)


def _loader(
    reference: str, backend: str | None, workers: int | None, timeout: float | None
) -> Callable[[], JsonFunction]:
    from mfimage.load import function_from_json

    # The command shows its own bar.
    cluster = {"progress": False} if backend == "ray" else {}
    return functools.partial(
        function_from_json, reference, backend=backend, workers=workers, timeout=timeout, **cluster
    )


def _runtime(references: Sequence[str], *command: str) -> NoReturn:
    from mfimage.run import run_entrypoint

    sys.exit(run_entrypoint(references, command, lambda line: click.echo(line, err=True)))
