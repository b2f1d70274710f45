"""Functions -> a card: lineage, schemas, examples and their results, sizes, environment.

As a page, which is also what `@card(type="mfimage")` shows, and as a component of other Metaflow
cards (`component.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

from mfimage.image.find.files import StoredFiles
from mfimage.image.find.places import FoundImage
from mfimage.views.function import FunctionView, as_json
from mfimage.views.html import document
from mfimage.views.image import commands_of, image_stage, views_of
from mfimage.views.lineage import lineage_of_function

# Of a card; more distributions are folded, more examples are not shown.
MOST_DISTRIBUTIONS = 10
MOST_EXAMPLES = 20


def function_page(functions: Sequence[FunctionView], *, title: str = "") -> str:
    """Return the card of functions."""
    return _page(functions, None, title)


def image_functions_page(image: FoundImage, files: StoredFiles) -> str:
    """Return the card of an image's functions, with the sizes of its layers."""
    return _page(views_of(files), image, image.name)


def _page(functions: Sequence[FunctionView], image: FoundImage | None, title: str) -> str:
    stage = image_stage(image) if image else None
    names = ", ".join(each.name for each in functions)
    return document(
        "card.html.j2",
        title=names or title,
        image=image,
        functions=[(each, lineage_of_function(each, stage)) for each in functions],
        lineage=lineage_of_function,
        commands=commands_of(image, functions) if image else (),
        largest=max((layer.size for layer in image.layers), default=0) if image else 0,
        as_json=as_json,
        most_distributions=MOST_DISTRIBUTIONS,
        most_examples=MOST_EXAMPLES,
    )
