"""Templates and the stylesheet -> HTML in one file, without a request to anywhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

from mfimage.sizes import format_size
from mfimage.templating import html_environment, template_text


@cache
def _environment() -> Any:
    made = html_environment()
    made.filters["size"] = format_size
    return made


def render(template: str, **values: Any) -> str:
    """Render a template of ``templates/html``; every value is escaped."""
    values.setdefault("style", stylesheet())
    text: str = _environment().get_template(f"html/{template}").render(**values)
    return text


def document(template: str, *, files: Sequence[str] = (), **values: Any) -> str:
    """Render a whole page: one file, whose policy allows nothing but what is in it.

    ``files`` are stylesheets and scripts of ``templates/html``, included in this order.
    """
    texts = {name: template_text(f"html/{name}") for name in ("document.css", *files)}
    style = "\n".join([stylesheet(), *(t for name, t in texts.items() if name.endswith(".css"))])
    script = "\n".join(text for name, text in texts.items() if name.endswith(".js"))
    policy = {
        "default-src": "'none'",
        "style-src": _hash(style),
        "script-src": _hash(script) if script else "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return render(
        template,
        policy="; ".join(f"{name} {value}" for name, value in policy.items()),
        style=style,
        script=script,
        **values,
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def stylesheet() -> str:
    """Return the stylesheet that all pages share; it applies below the class ``mfimage``."""
    folder = resources.files("mfimage.runtime.serving.page")
    return folder.joinpath("style.css").read_text(encoding="utf-8")
