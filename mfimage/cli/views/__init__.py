"""What commands show on a terminal: a module for each, whose `view` returns what rich renders.

The library returns data; without a terminal its plain lines are printed, and with ``--json`` its
JSON, for which neither a view nor rich is imported.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from mfimage.terminal import console, shows_tables

if TYPE_CHECKING:
    from rich.console import RenderableType


def show(
    name: str, found: Any, *, text: Callable[[], str], document: Any = None, as_json: bool = False
) -> None:
    """Print a result: on a terminal the view ``name``, else its text; or its JSON document."""
    if as_json:
        echo(json.dumps(document, indent=2))
    elif shows_tables():
        print_view(import_module(f"{__name__}.{name}").view(found))
    else:
        echo(text())


def echo(text: str) -> None:
    """Print a line; what the encoding of stdout lacks is written as an escape."""
    _escape()
    click.echo(text)


def print_view(found: RenderableType) -> None:
    """Print what rich renders."""
    _escape()
    console().print(found, crop=False)  # a command to be copied is not cut


def _escape() -> None:
    with contextlib.suppress(AttributeError):
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
