"""What stderr shows of a build, a copy or a run over a file, on a terminal and elsewhere."""

from __future__ import annotations

import io

from rich.console import Console
from rich.progress import Progress, TextColumn

from mfimage.cli.console import BuildStory, CopyStory, FileStory, show
from mfimage.copy import CopyEvent
from mfimage.image.builder import BuildEvent
from mfimage.run import FileProgress

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
    story = BuildStory()
    for event in EVENTS:
        story(event)
    assert capsys.readouterr().err.splitlines() == LINES


def test_verbose_shows_all(capsys):
    story = BuildStory(verbose=True)
    for event in EVENTS:
        story(event)
    said = capsys.readouterr().err.splitlines()
    assert "  working" in said
    assert said[0] == "[internal] load .dockerignore  0.0 s"


def test_terminal_shows_no_step_that_is_over():
    out = io.StringIO()
    progress = Progress(TextColumn("{task.description}", markup=False), console=Console(file=out))
    story = BuildStory(progress)
    for event in EVENTS:
        story(event)
    assert progress.tasks == []
    assert [line.split() for line in out.getvalue().splitlines()] == [
        ["✓", "[build", "2/3]", "RUN", "a", "b", "1.2", "s"],
        ["✓", "COPY", "x", "/", "cached"],
        ["✗", "[internal]", "load", "metadata", "FAILED"],
    ]


MODEL, CODE, LOCK = ("artifact 'model'", 4_000_000), ("code", 1_000_000), ("lock", 1_500)
COPIED = [
    CopyEvent(kind=kind, blob=blob, size=size, current=current, total=6_000_000)
    for kind, (blob, size), current in (
        ("moving", MODEL, 4_000_000),
        ("found", CODE, 1_000_000),
        ("moving", MODEL, 1_000_000),
        ("copied", MODEL, 4_000_000),
        ("copied", LOCK, 1_500),
    )
]
COPY_LINES = ["artifact 'model'  4.0 MB", "lock  1.5 kB"]
SUMMARY = "copied 2 blobs (4.0 MB); 1 blob (1.0 MB) there already"


def test_a_copy_is_shown_in_plain_lines(capsys):
    with show(CopyStory) as story:
        for event in COPIED:
            story(event)
        story.summary()
    assert capsys.readouterr().err.splitlines() == [*COPY_LINES, SUMMARY]


def test_rows_show_how_much_of_a_copy_is_done():
    """Also when a blob is read twice: it never runs back."""
    out = io.StringIO()
    progress = Progress(TextColumn("{task.description}"), console=Console(file=out))
    story = CopyStory(progress)
    done, moving = [], []
    for event in COPIED:
        story(event)
        done.append(progress.tasks[0].completed)
        moving.append([(task.description, task.completed) for task in progress.tasks[1:]])
    assert done == [4_000_000, 5_000_000, 5_000_000, 5_000_000, 5_001_500]
    assert progress.tasks[0].total == 6_000_000
    model = [("artifact 'model'", 4_000_000)]
    assert moving == [model, model, model, [], []]
    story.summary()
    lines = [" ".join(line.split()) for line in out.getvalue().splitlines()]
    assert lines == [
        "✓ artifact 'model' 4.0 MB",
        "✓ lock 1.5 kB",
        SUMMARY.replace(";", " in 0.0 s;"),
    ]


RUN = FileProgress(records=1200, failed=1, position=30, size=60, seconds=2.0)
RUN_LINE = "1200 records in 2.0 s (600/s), 1 failed"


def test_a_run_over_a_file_is_shown_in_few_lines(capsys):
    with show(FileStory) as story:
        story.progress(RUN)
        for number in range(20):
            story.failure(f"line {number}: x")
        story.summary(RUN)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "line 0: x"
    assert said[10:] == ["... and more; --errors FILE records all of them", RUN_LINE]


def test_a_bar_shows_how_far_a_file_is_read():
    out = io.StringIO()
    progress = Progress(TextColumn("{task.description}"), console=Console(file=out))
    bar = FileStory(progress)
    bar.progress(RUN)
    [task] = progress.tasks
    assert (task.description, task.completed, task.total) == (RUN_LINE, 30, 60)
    bar.summary(RUN)
    assert out.getvalue().splitlines() == [RUN_LINE]
