from __future__ import annotations

import json
import logging
import sys

from mfimage.runtime.serving.logs import AccessLog, JsonFormatter, Out, Timestamps, request_members


class Slow:
    """Writes little at a time, as a pipe may."""

    def __init__(self) -> None:
        self.data = b""
        self.writes: list[int] = []

    def write(self, data: bytes, /) -> int:
        self.writes.append(len(data))
        self.data += data[:1000]
        return len(data[:1000])


class Whole(Slow):
    def write(self, data: bytes, /) -> int:
        self.writes.append(len(data))
        self.data += data
        return len(data)


class Closed:
    def write(self, data: bytes, /) -> int:
        raise BrokenPipeError


def test_a_record_is_one_line_of_json() -> None:
    try:
        raise ValueError("no\nway")
    except ValueError:
        exc_info = sys.exc_info()
    record = logging.LogRecord("a.b", logging.ERROR, __file__, 1, "%s \udcff\n", ('"x"',), exc_info)
    record.request_id = "r1"
    record.created = 1700000000.25
    line = JsonFormatter().format(record)
    assert "\n" not in line
    entry = json.loads(line)
    assert "ValueError: no\nway" in entry.pop("exception")
    assert entry == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "error",
        "logger": "a.b",
        "message": '"x" \udcff\n',
        "request_id": "r1",
    }


def test_the_clock_changes_with_the_second() -> None:
    clock = Timestamps()
    assert [clock.text(now) for now in (0.0, 0.9996, 1.25)] == [
        "1970-01-01T00:00:00.000Z",
        "1970-01-01T00:00:00.999Z",
        "1970-01-01T00:00:01.250Z",
    ]


def test_requests_are_written_together_in_pieces_that_a_pipe_keeps_whole() -> None:
    raw = Whole()
    later = []
    log = AccessLog(Out(raw), lambda delay, callback: later.append(callback))
    members = request_members("POST", '/pre"dict')
    for number in range(100):
        log.write(members, f"id-{number}", 200, 0.0012345)
    assert len(later) == 1
    later[0]()
    lines = [json.loads(line) for line in raw.data.splitlines()]
    assert [line["request_id"] for line in lines] == [f"id-{number}" for number in range(100)]
    assert lines[0]["path"] == '/pre"dict'
    assert (lines[0]["status"], lines[0]["duration_ms"]) == (200, 1.234)
    assert max(raw.writes) <= 4096
    assert len(raw.writes) < 10


def test_a_slow_reader_gets_everything_and_one_that_has_gone_does_no_harm() -> None:
    raw = Slow()
    Out(raw).write(b"x" * 2500)
    assert raw.data == b"x" * 2500
    Out(Closed()).write(b"x")
