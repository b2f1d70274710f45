"""Commands that run a function on this machine."""

from __future__ import annotations

import functools
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import click

from mfimage.cli.flags import options

if TYPE_CHECKING:
    from mfimage.load import JsonFunction


@click.command()
@click.argument("reference")
@click.option("--host", help="Address to listen on; MFIMAGE_HOST.")
@click.option("--port", type=int, help="Port to listen on; PORT.")
def serve(reference: str, host: str | None, port: int | None) -> None:
    """Serve the function over HTTP on this machine, as its image would."""
    given = {"MFIMAGE_HOST": host, "PORT": port}
    os.environ.update({name: str(value) for name, value in given.items() if value is not None})
    _runtime(reference, "serve")


_file_flags = options(
    click.option("--input", default="-", metavar="FILE", help="Records; - is stdin."),
    click.option("--output", default="-", metavar="FILE", help="Results; - is stdout."),
    click.option("--format", metavar="NAME", help="Of the input; by its suffix, else json."),
    click.option(
        "--output-format", metavar="NAME", help="Of the output; by its suffix, else json."
    ),
)
_backend_flags = options(
    click.option("--backend", metavar="NAME", help="Where it runs: local, process or ray."),
    click.option("--workers", type=int, metavar="N", help="Processes that run it."),
    click.option("--timeout", type=float, metavar="SECONDS", help="The most for a record."),
)


@click.command()
@click.argument("reference")
@_file_flags
@_backend_flags
def call(
    reference: str, *, backend: str | None, workers: int | None, timeout: float | None, **files: Any
) -> None:
    """Call the function with each record, one by one, and write each result at once.

    Records are lines of JSON, or a file's. It runs in this process, as its image would, unless a
    backend is named. The first record that fails ends it.
    """
    if (backend, workers, timeout) == (None, None, None):
        given = [f"--{name.replace('_', '-')}={value}" for name, value in files.items() if value]
        _runtime(reference, "call", *given)
    from mfimage.run import RecordFiles, call_files

    call_files(
        _loader(reference, backend, workers, timeout),
        RecordFiles(**files),
        ahead=max(workers or 1, 1),
    )


@click.command("map")
@click.argument("reference")
@_file_flags
@_backend_flags
@click.option("--batch-size", type=int, default=256, metavar="N", help="Records sent together.")
@click.option("--max-in-flight", type=int, metavar="N", help="Batches that are under way.")
@click.option(
    "--on-error", type=click.Choice(["stop", "skip"]), help="At a record that fails; stop."
)
@click.option("--errors", metavar="FILE", help="Skip records that fail; write here why.")
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
    """Run the function on all records of a file, as fast as it goes.

    Results come in order. The output is there when it is whole.
    """
    from mfimage.cli.console import file_story
    from mfimage.run import RecordFiles, map_files

    with file_story(bar=files["output"] != "-" or not sys.stdout.isatty()) as story:
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

    # The command has a bar of its own.
    cluster = {"progress": False} if backend == "ray" else {}
    return functools.partial(
        function_from_json, reference, backend=backend, workers=workers, timeout=timeout, **cluster
    )


def _runtime(reference: str, *command: str) -> NoReturn:
    """Run the image's own entrypoint on a package, in this process."""
    from mfimage.package.archive import unpack
    from mfimage.package.store import open_package
    from mfimage.runtime.__main__ import main as run

    package = open_package(reference)
    with tempfile.TemporaryDirectory(prefix="mfimage-") as folder:
        unpack(package.spec, package.store, Path(folder))
        os.environ["MFIMAGE_FUNCTION"] = folder
        code = run(command)
    sys.exit(code)
