"""Templates, rendered strictly: nothing reaches the text that no filter has quoted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

import mfimage


class Quoted(str):
    """Text that may stand in what is rendered as it is."""

    __slots__ = ()


def environment(filters: Mapping[str, Callable[..., Quoted]]) -> jinja2.Environment:
    """Return an environment for the templates that ship with mfimage.

    Parameters
    ----------
    filters : mapping of str to callable
        Each makes `Quoted` text of a value, in the way of the language that is written.
    """
    made = jinja2.Environment(  # noqa: S701  (no HTML: `finalize` sees to quoting)
        loader=jinja2.FunctionLoader(template_text),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        finalize=_finalize,
    )
    made.filters |= filters
    return made


def template_text(name: str) -> str:
    """Return a template's text by its path in ``mfimage.templates``."""
    try:
        folder: Any = resources.files("mfimage.templates")
    except ModuleNotFoundError:
        # A source checkout that is not installed: the folder stands beside the package.
        folder = Path(mfimage.__file__).parent.parent / "templates"
    text: str = folder.joinpath(name).read_text(encoding="utf-8")
    return text


def _finalize(value: object) -> object:
    # Raises for whatever a template writes without a filter that quotes it.
    if not isinstance(value, Quoted):
        raise TypeError(f"{value!r} is written without quoting")
    return value
