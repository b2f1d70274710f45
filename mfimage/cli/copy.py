"""Copy a package between roots."""

from __future__ import annotations

import os
import sys
import threading

import click


@click.command()
@click.argument("reference")
@click.argument("url")
@click.option(
    "--jobs", type=click.IntRange(min=1), default=8, show_default=True, metavar="N",
    help="How many blobs move at once.",
)  # fmt: skip
def copy(reference: str, url: str, jobs: int) -> None:
    """Copy a function package to another root, a folder or a URL; print its reference there."""
    from mfimage.cli.console import copy_story
    from mfimage.copy import copy_package

    try:
        with copy_story() as on_progress:
            copied = copy_package(reference, url, on_progress=on_progress, jobs=jobs)
    except BaseException as error:
        code = 130 if isinstance(error, KeyboardInterrupt) else 1
        click.get_current_context().find_root().call_on_close(lambda: _leave(code))
        raise
    click.echo(copied)


def _leave(code: int) -> None:
    """Exit without the threads that wait for a server: Python would wait for them.

    All has been said by now, and nothing half-written looks whole.
    """
    from mfimage.copy import THREADS

    if any(thread.name.startswith(THREADS) for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
