"""Metaflow's cards: `@card(type="mfimage")`, and `fn.card()` for `current.card.append`.

Importing it is cheap, as Metaflow does for each command of a flow.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

# Not `metaflow.cards`, which is not whole yet when Metaflow imports this to register it.
from metaflow.plugins.cards.card_modules.card import MetaflowCard, MetaflowCardComponent

if TYPE_CHECKING:
    from mfimage.views.function import FunctionView

_FUNCTION = "mfimage.load.JsonFunction"
_BLOCKS = 20
_MISSING = (
    "<!doctype html><html lang='en'><meta charset='utf-8'><title>mfimage</title>"
    "<p>This card needs all of mfimage where the step runs ({}): <code>pip install mfimage</code>"
)


class FunctionCard(MetaflowCard):
    """The card of the functions that a task bound.

    Parameters
    ----------
    options : mapping
        ``artifact``: a name, or a list of names; by default all artifacts that are functions.
    """

    type: str = "mfimage"  # type: ignore[assignment]  # None in Metaflow's own class

    def __init__(self, options: Mapping[str, Any] = {}, **_: Any) -> None:
        named = options.get("artifact", ())
        self._names = (named,) if isinstance(named, str) else tuple(named)

    def render(self, task: Any) -> str:
        """Return the page of a finished task's functions."""
        try:
            from mfimage.package.store import open_any
            from mfimage.views.card import function_page
            from mfimage.views.function import view

            names = self._names or tuple(function_artifacts(task))
            views = [view(open_any(_reference(task, name))) for name in names]
            return function_page(views, title=task.pathspec)
        except ModuleNotFoundError as error:
            return _MISSING.format(html.escape(str(error)))


def function_artifacts(task: Any) -> Iterator[str]:
    """Yield the artifacts of a task that are functions, by their types: nothing is unpickled."""
    from mfimage.capture.task.task import describe_task

    found = describe_task(task).artifacts
    yield from sorted(name for name, artifact in found.items() if artifact.type == _FUNCTION)


def _reference(task: Any, name: str) -> str:
    from mfimage.capture.task.task import describe_task, missing_artifact
    from mfimage.errors import OptionError

    described = describe_task(task)
    artifact = described.artifacts.get(name)
    if artifact is None:
        raise missing_artifact(described, name)
    if artifact.type != _FUNCTION:
        raise OptionError(
            f"artifact: {name!r} of {task.pathspec} is a {artifact.type}, not a function",
            hint="name an artifact that JsonFunction(...) made, or none: all of them are shown",
        )
    return str(task[name].data.reference)


class FunctionComponent(MetaflowCardComponent):
    """A function in a card of another type: made of components that each card can show."""

    def __init__(self, function: FunctionView) -> None:
        self._function = function

    def render(self) -> dict[str, Any]:
        """Return a section of Metaflow's own components, which show every text as text."""
        function = self._function
        return {
            "type": "section",
            "title": function.name,
            "subtitle": " ".join(function.description.partition("\n\n")[0].split()),
            "contents": list(_contents(function)),
        }


def _contents(function: FunctionView) -> Iterator[dict[str, Any]]:
    from mfimage.views.card import MOST_DISTRIBUTIONS, MOST_EXAMPLES
    from mfimage.views.lineage import lineage_of_function, lineage_svg

    for each in (function, *function.parts):
        drawn = lineage_svg(lineage_of_function(each)).encode()
        src = f"data:image/svg+xml;base64,{base64.b64encode(drawn).decode()}"
        yield {"type": "image", "src": src, "label": f"Lineage of {each.name}"}
    yield {"type": "pythonCode", "data": function.signature}
    if function.examples:
        shown = function.examples[:MOST_EXAMPLES]
        rows = [[_line(each.input), _line(each.output)] for each in shown]
        yield _table(rows, ["Example", "Result"])
    schemas = [_line(function.input_schema), _line(function.output_schema)]
    yield _table([schemas], ["Schema of the input", "Schema of the output"])
    if function.artifacts:
        sized = [(each.name, each.type, each.size_text, each.size) for each in function.artifacts]
        yield _bars(sized, ["Artifact", "Type", "Stored"])
    if environment := function.environment:
        largest = environment.distributions[:MOST_DISTRIBUTIONS]
        sized = [(f"{e.name} {e.version}", e.why, e.size_text, e.size or 0) for e in largest]
        if sized:
            yield _bars(sized, ["Distribution", "Why it is there", "Size"])
    load = f"function_from_json({function.reference!r})"
    yield {"type": "pythonCode", "data": f"from metaflow import function_from_json\n\n{load}"}


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _table(rows: Sequence[Sequence[Any]], columns: Sequence[str]) -> dict[str, Any]:
    return {"type": "table", "columns": list(columns), "data": [list(row) for row in rows],
            "vertical": False}  # fmt: skip


def _bars(sized: Sequence[tuple[str, str, str, int]], columns: Sequence[str]) -> dict[str, Any]:
    # Of letters: a table gives a progress bar a few pixels.
    largest = max((size for *_, size in sized), default=0) or 1
    counts = [round(_BLOCKS * size / largest) for *_, size in sized]
    drawn = ["█" * count + "░" * (_BLOCKS - count) for count in counts]
    rows = [[*texts, bar] for (*texts, _), bar in zip(sized, drawn, strict=True)]
    return _table(rows, [*columns, "of the largest"])
