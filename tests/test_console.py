"""What is told of a build, on a terminal and elsewhere."""

from __future__ import annotations

import io

from rich.console import Console
from rich.progress import Progress, TextColumn

from mfimage.console import PlainStory, TerminalStory
from mfimage.image.engine_events import BuildEvent

EVENTS = [
    BuildEvent(kind="started", step="[internal] load .dockerignore"),
    BuildEvent(kind="done", step="[internal] load .dockerignore", seconds=0.01),
    BuildEvent(kind="started", step="[build 2/3] RUN a\n  b"),
    BuildEvent(kind="log", step="[build 2/3] RUN a\n  b", text="working"),
    BuildEvent(kind="done", step="[build 2/3] RUN a\n  b", seconds=1.25),
    BuildEvent(kind="progress", step="[internal] load .dockerignore", current=2),
    BuildEvent(kind="cached", step="COPY x /"),
    BuildEvent(kind="failed", step="[internal] load metadata", text="no such image"),
]
LINES = ["[build 2/3] RUN a b  1.2 s", "COPY x /  cached", "[internal] load metadata  FAILED"]


def test_plain_lines(capsys):
    story = PlainStory(verbose=False)
    for event in EVENTS:
        story(event)
    assert capsys.readouterr().err.splitlines() == LINES


def test_verbose_tells_all(capsys):
    story = PlainStory(verbose=True)
    for event in EVENTS:
        story(event)
    said = capsys.readouterr().err.splitlines()
    assert "  working" in said
    assert said[0] == "[internal] load .dockerignore  0.0 s"


def test_terminal_shows_no_step_that_is_over():
    out = io.StringIO()
    progress = Progress(TextColumn("{task.description}", markup=False), console=Console(file=out))
    story = TerminalStory(progress, verbose=False)
    for event in EVENTS:
        story(event)
    assert progress.tasks == []
    assert out.getvalue().splitlines() == LINES
