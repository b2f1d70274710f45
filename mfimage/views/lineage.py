"""Where a function comes from and went, as the stages of a drawing: flow, run, ..., image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from mfimage.sizes import format_size
from mfimage.views.function import FunctionView
from mfimage.views.html import render

_MOST_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One box of the drawing."""

    kind: str
    name: str
    notes: tuple[str, ...] = ()


def lineage_of_function(function: FunctionView, image: Stage | None = None) -> tuple[Stage, ...]:
    """Return the stages of a function, and of the image it is in."""
    found = []
    if lineage := function.lineage:
        names = {name: getattr(lineage, name) for name in ("flow", "run", "step", "task", "user")}
        found += lineage_of_task(names)
    if function.artifacts:
        found.append(_artifacts(function))
    notes = [function.digest.removeprefix("sha256:")[:12]]
    notes += [f"commit {function.commit}"] if function.commit else []
    notes += [f"bound {function.created}"] if function.created else []
    kind = "pipeline" if function.parts else "function"
    found.append(Stage(kind=kind, name=function.name, notes=tuple(notes)))
    return (*found, image) if image else tuple(found)


def lineage_of_task(names: Mapping[str, str | None]) -> list[Stage]:
    """Return the stages of a task, by what is known of it."""
    notes = {
        "flow": [f"by {names['user']}"] if names.get("user") else [],
        "step": [f"task {names['task']}"] if names.get("task") else [],
    }
    return [
        Stage(kind=kind, name=name, notes=tuple(notes.get(kind, ())))
        for kind in ("flow", "run", "step")
        if (name := names.get(kind))
    ]


def _artifacts(function: FunctionView) -> Stage:
    artifacts: Sequence[tuple[str, int]] = [(each.name, each.size) for each in function.artifacts]
    named = [f"{name} · {format_size(size)}" for name, size in artifacts[:_MOST_NAMED]]
    if (more := len(artifacts) - _MOST_NAMED) > 0:
        named.append(f"and {more} more")
    count = "1 artifact" if len(artifacts) == 1 else f"{len(artifacts)} artifacts"
    return Stage(kind="artifacts", name=count, notes=tuple(named))


# What a drawing for other cards looks like: they show an image, and no HTML of ours.
_WIDTH, _GAP, _LINE, _LETTER = 820, 34, 16, 6.9
_LONGEST = 26


@dataclass(frozen=True, kw_only=True)
class _Box:
    stage: Stage
    x: float
    y: float
    width: float
    height: float


def lineage_svg(stages: Sequence[Stage]) -> str:
    """Return the drawing as an SVG image, in rows of at most 820 pixels."""
    height = 34 + _LINE * (1 + max((len(stage.notes) for stage in stages), default=0))
    boxes: list[_Box] = []
    x, y = 1.0, 1.0
    for stage in stages:
        texts = (stage.kind, stage.name, *stage.notes)
        width = 22 + _LETTER * min(_LONGEST, max(map(len, texts)))
        if boxes and x + width > _WIDTH:
            x, y = 1.0, y + height + 14
        boxes.append(_Box(stage=stage, x=x, y=y, width=width, height=height))
        x += width + _GAP
    bottom = boxes[-1].y + height if boxes else height
    right = max((box.x + box.width for box in boxes), default=0)
    arrows = list(pairwise(boxes))
    return render(
        "lineage.svg.j2", boxes=boxes, arrows=arrows, width=right + _GAP, height=bottom + 1,
        longest=_LONGEST, line=_LINE, gap=_GAP,
    )  # fmt: skip
