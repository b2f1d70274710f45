"""Templates and the stylesheet -> HTML in one file, without a request to anywhere."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

from mfimage.templating import html_environment

_ENVIRONMENT = cache(html_environment)


def render(template: str, **values: Any) -> str:
    """Render a template of ``templates/html``; every value is escaped."""
    return _ENVIRONMENT().get_template(f"html/{template}").render(style=stylesheet(), **values)


@cache
def stylesheet() -> str:
    """Return the stylesheet that all pages share; it applies below the class ``mfimage``."""
    folder = resources.files("mfimage.runtime.serving.page")
    return folder.joinpath("style.css").read_text(encoding="utf-8")
