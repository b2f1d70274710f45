"""Jinja templates: Dockerfiles, in which a filter must quote every value, and escaped HTML."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

import mfimage


class Quoted(str):
    """Text that is already quoted."""

    __slots__ = ()


def environment(filters: Mapping[str, Callable[..., Quoted]]) -> jinja2.Environment:
    """Return an environment for mfimage's templates, with filters that quote values."""
    made = jinja2.Environment(  # noqa: S701  (not HTML: `finalize` enforces quoting)
        loader=jinja2.FunctionLoader(template_text),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        finalize=_finalize,
    )
    made.filters |= filters
    return made


def html_environment() -> jinja2.Environment:
    """Return an environment for mfimage's HTML, in which every value is escaped."""
    made = jinja2.Environment(
        loader=jinja2.FunctionLoader(template_text),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # For our own stylesheets and scripts, and nothing else.
    made.filters["css"] = made.filters["js"] = markupsafe.Markup
    made.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return made


def template_text(name: str) -> str:
    """Return a template's text by its path in ``mfimage.templates``."""
    try:
        folder: Any = resources.files("mfimage.templates")
    except ModuleNotFoundError:
        # A source checkout that is not installed: the folder is beside the package.
        folder = Path(mfimage.__file__).parent.parent / "templates"
    text: str = folder.joinpath(name).read_text(encoding="utf-8")
    return text


def _finalize(value: object) -> object:
    if not isinstance(value, Quoted):
        raise TypeError(f"{value!r} is not quoted: use a filter")
    return value
