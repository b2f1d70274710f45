"""Pages of HTML, as files: `mfimage card`, and ``--html`` of other commands."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import click

from mfimage.errors import OptionError

html_flag = click.option(
    "--html", metavar="FILE", help="Write a page of it, as one file; - is the standard output."
)


@click.command()
@click.argument("what", metavar="REFERENCE|IMAGE")
@click.option("--platform", metavar="OS/ARCH", help="Image of an index; by default this machine's.")
@click.option(
    "-o", "--output", required=True, metavar="FILE", help="Where to write the page; - is stdout."
)
def card(what: str, platform: str | None, output: str) -> None:
    """Write a page of a function: lineage, schemas, examples, sizes, environment.

    Of an image, that of its functions, and the sizes of its layers. The page is one file, which
    makes no request to anywhere.
    """
    from mfimage.inspect import card_page

    write_page(output, partial(card_page, what, platform=platform), option="output")


def write_page(file: str, make: Callable[[], str], *, option: str = "html") -> None:
    """Write the page that ``make`` returns, whole or not at all; to stdout for ``-``."""
    from mfimage.files import whole_file

    if file == "-":
        click.echo(make(), nl=False)
        return
    with contextlib.ExitStack() as writing:
        # First: an image's layers may take a while to read.
        with _explained(option, file):
            opened = writing.enter_context(whole_file(Path(file)))
        text = make()
        with _explained(option, file):
            opened.write(text.encode())
            writing.close()


@contextlib.contextmanager
def _explained(option: str, file: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OptionError(f"{option}: {file} cannot be written: {error.strerror}") from None
