"""Progress of ``docker build``, as buildx and as Docker 20.10 print it."""

from __future__ import annotations

import base64
import json

import pytest

from mfimage.image.builder import BuildEvent
from mfimage.image.docker.progress import BuildProgress, Failure


def time(seconds: float) -> str:
    return f"2024-03-01T10:00:{seconds:012.9f}Z"


def vertex(
    digest: str,
    name: str = "",
    *,
    started: float | None = None,
    completed: float | None = None,
    cached: bool = False,
    error: str = "",
) -> dict:
    found = {"digest": digest, "name": name, "cached": cached, "error": error}
    found |= {"started": time(started)} if started is not None else {}
    found |= {"completed": time(completed)} if completed is not None else {}
    return {"vertexes": [found]}


def status(digest: str, name: str, current: int, total: int) -> dict:
    found = {"id": name, "vertex": digest, "current": current, "total": total}
    return {"statuses": [found]}


def log(digest: str, text: bytes, stream: int = 1) -> dict:
    data = base64.b64encode(text).decode()
    return {"logs": [{"vertex": digest, "stream": stream, "data": data}]}


def run(*messages: dict) -> tuple[BuildProgress, list[BuildEvent]]:
    lines = (json.dumps(message).encode() + b"\n" for message in messages)
    return read(*lines)


def read(*lines: bytes) -> tuple[BuildProgress, list[BuildEvent]]:
    progress = BuildProgress(lambda text: text)
    return progress, [event for line in lines for event in progress.feed(line)]


def test_a_step_starts_logs_and_ends_once() -> None:
    progress, events = run(
        vertex("a", "[1/2] RUN make"),
        vertex("a", "[1/2] RUN make", started=10),
        log("a", b"one\ntw"),
        vertex("a", "[1/2] RUN make", started=10) | log("a", b"o\n"),
        log("a", b"half") | vertex("a", "[1/2] RUN make", started=10, completed=12.5),
        vertex("a", "[1/2] RUN make", started=10, completed=12.5),
    )
    step = "[1/2] RUN make"
    assert events == [
        BuildEvent(kind="started", step=step),
        BuildEvent(kind="log", step=step, text="one"),
        BuildEvent(kind="log", step=step, text="two"),
        BuildEvent(kind="log", step=step, text="half"),
        BuildEvent(kind="done", step=step, seconds=2.5),
    ]
    assert progress.failure() is None


def test_a_cached_step() -> None:
    _, events = run(vertex("a", "[1/2] RUN make", started=10, completed=10, cached=True))
    assert [event.kind for event in events] == ["started", "cached"]


def test_progress_has_its_bytes() -> None:
    _, events = run(vertex("a", "FROM x", started=1), status("a", "extracting", 5, 10))
    assert events[1] == BuildEvent(
        kind="progress", step="FROM x", text="extracting", part="extracting", current=5, total=10
    )


def test_a_progress_bar_shows_its_last_state() -> None:
    _, events = run(vertex("a", "RUN pip", started=1), log("a", b"10%\r50%\r100%\r\n"))
    assert events[-1].text == "100%"


def test_characters_that_arrive_in_pieces_are_put_together() -> None:
    _, events = run(vertex("a", "RUN x", started=1), log("a", b"caf\xc3"), log("a", b"\xa9\n"))
    assert events[-1].text == "café"


def test_lines_of_stdout_and_stderr_are_not_mixed() -> None:
    _, events = run(
        vertex("a", "RUN x", started=1),
        log("a", b"ou", 1),
        log("a", b"err\n", 2),
        log("a", b"t\n", 1),
    )
    assert [event.text for event in events[1:]] == ["err", "out"]


def test_the_failure_is_the_step_that_failed_not_those_canceled_for_it() -> None:
    progress, events = run(
        vertex("a", "RUN slow", started=1),
        vertex("b", "RUN bad", started=1),
        *(log("b", b"line %d\n" % number) for number in range(30)),
        vertex("a", "RUN slow", started=1, completed=2, error="context canceled"),
        vertex("b", "RUN bad", started=1, completed=2, error="exit code: 3"),
    )
    assert events[-1] == BuildEvent(kind="failed", step="RUN bad", text="exit code: 3", seconds=1)
    assert progress.failure() == Failure(
        step="RUN bad",
        error="exit code: 3",
        log=tuple(f"line {number}" for number in range(10, 30)),
    )


def test_everything_shown_is_redacted() -> None:
    progress = BuildProgress(lambda text: text.replace("hunter2", "***"))
    message = (
        vertex("a", "RUN echo hunter2", started=1, completed=2, error="hunter2 failed")
        | log("a", b"it is hunter2\n")
        | status("a", "hunter2", 1, 2)
    )
    lines = [json.dumps(message).encode(), b"#9 [1/1] RUN hunter2", b"#9 0.1 hunter2", b"hunter2"]
    events = [event for line in lines for event in progress.feed(line)]
    assert len(events) == 6
    assert "hunter2" not in repr(events) + repr(progress.failure()) + progress.message()


@pytest.mark.parametrize("line", [b'{"half', b"{}", b"{ not JSON }", b"\xff\xfe", b"#1", b""])
def test_what_is_no_progress_is_no_crash(line: bytes) -> None:
    _, events = read(line + b"\n")
    assert events == []


PLAIN = b"""\
#0 building with "default" instance using docker driver

#1 [internal] load build definition from Dockerfile
#1 transferring dockerfile: 105B done
#1 DONE 0.1s

#2 [build 1/2] FROM docker.io/library/python:3.11-slim
#2 CACHED

#3 [build 2/2] RUN pip install uv
#3 0.402 Collecting uv
#3 ...

#4 [stage-1 2/3] RUN sleep 60
#4 CANCELED

#3 [build 2/2] RUN pip install uv
#3 12.345
#3 12.5 no such thing
#3 ERROR: process "/bin/sh -c pip install uv" did not complete successfully: exit code: 7
------
 > [build 2/2] RUN pip install uv:
12.5 no such thing
------
Dockerfile:2
--------------------
   2 | >>> RUN pip install uv
--------------------
ERROR: failed to solve: process "/bin/sh -c pip install uv" did not complete: exit code: 7
"""


def test_plain_progress_is_understood() -> None:
    progress, events = read(*PLAIN.splitlines(keepends=True))
    pip = "[build 2/2] RUN pip install uv"
    error = 'process "/bin/sh -c pip install uv" did not complete successfully: exit code: 7'
    assert [(event.kind, event.step, event.text, event.seconds) for event in events] == [
        ("started", "[internal] load build definition from Dockerfile", "", None),
        (
            "progress",
            "[internal] load build definition from Dockerfile",
            "transferring dockerfile: 105B done",
            None,
        ),
        ("done", "[internal] load build definition from Dockerfile", "", 0.1),
        ("started", "[build 1/2] FROM docker.io/library/python:3.11-slim", "", None),
        ("cached", "[build 1/2] FROM docker.io/library/python:3.11-slim", "", None),
        ("started", pip, "", None),
        ("log", pip, "Collecting uv", None),
        ("started", "[stage-1 2/3] RUN sleep 60", "", None),
        ("failed", "[stage-1 2/3] RUN sleep 60", "context canceled", None),
        ("log", pip, "", None),
        ("log", pip, "no such thing", None),
        ("failed", pip, error, None),
    ]
    assert progress.failure() == Failure(
        step=pip, error=error, log=("Collecting uv", "", "no such thing")
    )
    assert progress.message().startswith("failed to solve: process")


def test_the_last_line_is_the_message_of_an_old_client() -> None:
    progress, _ = read(b"#1 [internal] load .dockerignore\n", b"dockerfile parse error line 1\n")
    assert progress.message() == "dockerfile parse error line 1"
    assert progress.failure() is None
