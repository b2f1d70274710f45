from __future__ import annotations

from mfimage.image.engine_events import BuildEvent, BuildTrace, Failure
from mfimage.image.engine_wire import encode_bytes, encode_int


def stamp(seconds: float) -> bytes:
    return encode_int(1, int(seconds)) + encode_int(2, int(seconds % 1 * 1e9))


def vertex(
    digest: str,
    name: str = "",
    *,
    started: float | None = None,
    completed: float | None = None,
    cached: bool = False,
    error: str = "",
) -> bytes:
    message = encode_bytes(1, digest.encode()) + encode_bytes(3, name.encode())
    if cached:
        message += encode_int(4, 1)
    if started is not None:
        message += encode_bytes(5, stamp(started))
    if completed is not None:
        message += encode_bytes(6, stamp(completed))
    if error:
        message += encode_bytes(7, error.encode())
    return encode_bytes(1, message)


def status(digest: str, name: str, current: int, total: int) -> bytes:
    return encode_bytes(
        2,
        encode_bytes(1, b"sha256:layer")
        + encode_bytes(2, digest.encode())
        + encode_bytes(3, name.encode())
        + encode_int(4, current)
        + encode_int(5, total),
    )


def log(digest: str, text: bytes, stream: int = 1) -> bytes:
    step = encode_bytes(1, digest.encode())
    return encode_bytes(3, step + encode_int(3, stream) + encode_bytes(4, text))


def unchanged(text: str) -> str:
    return text


def run(*messages: bytes) -> tuple[BuildTrace, list[BuildEvent]]:
    trace = BuildTrace(unchanged)
    return trace, [event for message in messages for event in trace.feed(message)]


def test_a_step_starts_logs_and_ends_once() -> None:
    trace, events = run(
        vertex("a", "[1/2] RUN make"),
        vertex("a", "[1/2] RUN make", started=10),
        log("a", b"one\ntw"),
        vertex("a", "[1/2] RUN make", started=10) + log("a", b"o\n"),
        log("a", b"half") + vertex("a", "[1/2] RUN make", started=10, completed=12.5),
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
    assert trace.failure() is None


def test_a_cached_step_says_so() -> None:
    _, events = run(vertex("a", "[1/2] RUN make", started=10, completed=10, cached=True))
    assert [event.kind for event in events] == ["started", "cached"]


def test_progress_has_its_bytes() -> None:
    _, events = run(vertex("a", "FROM x", started=1), status("a", "extracting", 5, 10))
    assert events[1] == BuildEvent(
        kind="progress", step="FROM x", text="extracting", current=5, total=10
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


def test_the_failure_is_the_step_that_failed_not_the_ones_cancelled_for_it() -> None:
    trace, events = run(
        vertex("a", "RUN slow", started=1) + vertex("b", "RUN bad", started=1),
        *(log("b", b"line %d\n" % number) for number in range(30)),
        vertex("a", "RUN slow", started=1, completed=2, error="context canceled"),
        vertex("b", "RUN bad", started=1, completed=2, error="exit code: 3"),
    )
    assert events[-1] == BuildEvent(kind="failed", step="RUN bad", text="exit code: 3", seconds=1)
    assert trace.failure() == Failure(
        step="RUN bad",
        error="exit code: 3",
        log=tuple(f"line {number}" for number in range(10, 30)),
    )


def test_everything_shown_is_redacted() -> None:
    trace = BuildTrace(lambda text: text.replace("hunter2", "***"))
    message = (
        vertex("a", "RUN echo hunter2", started=1, completed=2, error="hunter2 failed")
        + log("a", b"it is hunter2\n")
        + status("a", "hunter2", 1, 2)
    )
    events = list(trace.feed(message))
    assert len(events) == 4
    assert "hunter2" not in repr(events)
    assert "hunter2" not in repr(trace.failure())
