"""A function -> what a notebook shows of it, with and without the notebook's trust."""

from __future__ import annotations

import re
from functools import cache, partial

from mfimage.package.store import Package, Pipeline
from mfimage.views.function import as_json, view
from mfimage.views.html import render, stylesheet

# The custom properties that make the stylesheet light or dark.
_PALETTE = re.compile(r"--ink:.*?color-scheme: (?:light|dark);", re.S)
# A notebook has a theme of its own, whatever the system's setting is.
_LIGHT = 'body[data-jp-theme-light="true"]', "body.vscode-light", 'html[theme="light"]'
_DARK = 'body[data-jp-theme-light="false"]', "body.vscode-dark", 'html[theme="dark"]'


def function_html(package: Package | Pipeline) -> str:
    """Return a function or a pipeline as HTML."""
    return render(
        "function.html.j2",
        view=view(package),
        themes=_themes(),
        in_line=partial(as_json, indent=None),
    )


@cache
def _themes() -> str:
    """Return styles by which the notebook's theme outranks the system's setting."""
    light, dark = (match[0] for match in _PALETTE.finditer(stylesheet()))
    return "".join(
        f"\n:is({', '.join(places)}) .mfimage {{ {palette} }}"
        for places, palette in ((_LIGHT, light), (_DARK, dark))
    )
