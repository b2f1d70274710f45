"""Sphinx's configuration of the documentation: `make docs` writes the site to build/docs.

The pages are Markdown that reads well on GitHub. What GitHub does by itself is done here: its
anchors of headings, links to files beside docs/, and drawings in Mermaid.
"""

from __future__ import annotations

import hashlib
import html
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click
import metaflow  # noqa: F401 - it imports the decorators; they cannot be imported first
from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx
from sphinx.ext.napoleon import NumpyDocstring
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from mfimage import __version__
from mfimage.cli import main

DOCS = Path(__file__).parent
ROOT = DOCS.parent
REPOSITORY = "https://github.com/mfimage/mfimage"

project = "mfimage"
copyright = "the mfimage authors"
release = version = __version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
highlight_language = "text"
default_role = "code"
add_module_names = False
nitpicky = True
# References to mfimage's own names must resolve; those to other projects name types only.
nitpick_ignore_regex = [(r"py:.*", r"(?!mfimage\b).*")]

myst_heading_anchors = 4
myst_fence_as_directive = ["mermaid"]

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # The docstrings have them.
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Attributes", "params_style")]
napoleon_preprocess_types = True
napoleon_type_aliases = {
    name: f"{module}.{name}"
    for module, names in {
        "mfimage.bind": ["BindOptions"],
        "mfimage.function.decorator": ["DecoratedFunction"],
        "mfimage.function.parameters": ["FunctionParameters"],
        "mfimage.function.serializers": ["Serializer"],
        "mfimage.image.plan.options": ["BuildOptions"],
        "mfimage.image.report": ["Image"],
        "mfimage.load": ["JsonFunction"],
    }.items()
    for name in names
}

copybutton_prompt_text = "$ "
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
html_title = "mfimage"
html_static_path = ["site"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "source_repository": REPOSITORY,
    "source_branch": "main",
    "source_directory": "docs/",
}

logger = logging.getLogger(__name__)


def link_files(app: Sphinx, name: str, source: list[str]) -> None:
    """Lead links to files outside docs/ to the repository; the file must exist."""
    folder = (DOCS / name).parent

    def leave_or_lead(match: re.Match[str]) -> str:
        path = (folder / match[1]).resolve()
        if path.is_relative_to(DOCS):
            return match[0]
        if not path.exists():
            logger.warning("%s does not exist", match[1], location=name)
        kind = "tree" if path.is_dir() else "blob"
        return f"]({REPOSITORY}/{kind}/main/{path.relative_to(ROOT)}{match[2]})"

    source[0] = re.sub(r"\]\((\.\./[^)#\s]*)(#[^)]*)?\)", leave_or_lead, source[0])


def prose(text: str) -> str:
    """Return the text of a help as Markdown, with flags and empty values as code."""
    escaped = html.escape(inspect.cleandoc(text), quote=False)
    found = r"`[^`]*`|(?<![\w-])--[a-z][a-z-]*|''"
    return re.sub(found, lambda match: f"`{match[0].strip('`')}`", escaped)


def commands(name: str, command: click.Command) -> Iterator[str]:
    """Yield the Markdown that describes a command, or each command of a group."""
    context = click.Context(command, info_name=name, help_option_names=[])
    if isinstance(command, click.Group):
        for each in command.list_commands(context):
            if inner := command.get_command(context, each):
                yield from commands(f"{name} {each}", inner)
        return
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"## {name}\n\n```\n{name} {usage}\n```\n\n{prose(command.help or '')}\n\n"
    yield "| option | |\n|---|---|\n"
    for option in command.get_params(context):
        if isinstance(option, click.Option) and (record := option.get_help_record(context)):
            flags, text = (part.replace("|", "\\|") for part in record)
            yield f"| `{flags}` | {prose(text)} |\n"
    yield "\n"


def list_commands(app: Sphinx, name: str, source: list[str]) -> None:
    """Put the commands where the page says."""
    source[0] = source[0].replace("<!-- commands -->", "".join(commands("mfimage", main)))


class Mermaid(Directive):
    """Shows the SVG that `make pictures` made of a drawing: no script, nothing from elsewhere."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return the SVG."""
        text = "\n".join(self.content)
        path = DOCS / "pictures/drawings" / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.svg"
        if not path.exists():
            message = "this drawing has no picture yet: run `make pictures`"
            return [self.state.document.reporter.warning(message, line=self.lineno)]
        return [nodes.raw("", f'<div class="drawing">{path.read_text()}</div>', format="html")]


class StepDecorator(SphinxDirective):
    """Documents a decorator of steps from the class that Metaflow makes it from."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return what autodoc would make of a function with the class's docstring."""
        module, _, name = self.arguments[0].rpartition(".")
        made_from = getattr(importlib.import_module(module), name)
        given = ", ".join(f"{key}={value!r}" for key, value in made_from.defaults.items())
        text = NumpyDocstring(inspect.cleandoc(made_from.__doc__), self.config).lines()
        lines = [
            f".. py:decorator:: {made_from.name}({given})",
            "",
            *(f"   {line}" for line in text),
        ]
        return self.parse_text_to_nodes("\n".join(lines))


def setup(app: Sphinx) -> None:
    """Register what is defined here."""
    app.connect("source-read", link_files)
    app.connect("source-read", list_commands)
    app.add_directive("mermaid", Mermaid)
    app.add_directive("step-decorator", StepDecorator)
