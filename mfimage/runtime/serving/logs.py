"""Logs: JSON lines on stdout, one object a line."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

# Writes of at most this many bytes to a pipe are not interleaved with those of other processes.
_ATOMIC = 4096
_FLUSH_AFTER = 0.05
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "taskName", "color_message"}


class _Writable(Protocol):
    def write(self, data: bytes, /) -> int | None: ...


class Out:
    """Writes whole lines, from any thread."""

    def __init__(self, raw: _Writable) -> None:
        self._raw = raw
        self._lock = threading.RLock()  # a signal may come while it writes

    def write(self, data: bytes) -> None:
        """Write all of it; a closed pipe is not an error."""
        with self._lock:
            try:
                while data:
                    data = data[self._raw.write(data) or 0 :]
            except (OSError, ValueError):
                pass


class Timestamps:
    """RFC 3339 text of a time, in milliseconds and UTC; each is formatted once."""

    def __init__(self) -> None:
        self._millisecond = -1
        self._text = ""

    def text(self, now: float) -> str:
        """Return ``now`` as text."""
        millisecond = int(now * 1000)
        if millisecond != self._millisecond:
            second, rest = divmod(millisecond, 1000)
            moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._text = f"{moment}.{rest:03d}Z"
            self._millisecond = millisecond
        return self._text


class JsonFormatter(logging.Formatter):
    """A log record as one JSON object; ``extra=`` adds members."""

    def __init__(self) -> None:
        super().__init__()
        self._timestamps = Timestamps()

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without its end."""
        line: dict[str, Any] = {
            "time": self._timestamps.text(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update((k, v) for k, v in vars(record).items() if k not in _STANDARD)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        return json.dumps(line, default=str)


class _Handler(logging.Handler):
    def __init__(self, out: Out) -> None:
        super().__init__()
        self._out = out
        self.setFormatter(JsonFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._out.write(self.format(record).encode() + b"\n")
        except Exception:  # noqa: BLE001  (as every handler does)
            self.handleError(record)


def configure(level: str) -> Out:
    """Send all logging of this process to stdout as JSON lines; return the stream."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # what the function prints
    out = Out(io.FileIO(sys.stdout.fileno(), "w", closefd=False))
    root = logging.getLogger()
    root.handlers[:] = [_Handler(out)]
    root.setLevel(level.upper())
    # This server logs in its own words what uvicorn would at "info".
    logging.getLogger("uvicorn").setLevel(max(root.level, logging.WARNING))
    logging.captureWarnings(capture=True)
    return out


class AccessLog:
    """One line for each request, buffered for a moment so that many are one write."""

    def __init__(self, out: Out, later: Callable[[float, Callable[[], None]], object]) -> None:
        self._out = out
        self._later = later
        self._timestamps = Timestamps()
        self._lines: list[str] = []
        self._size = 0
        self._pending = False

    def write(self, members: str, request_id: str, status: int, seconds: float) -> None:
        """Log a request; all texts are ASCII and escaped, ``members`` as by ``request_members``."""
        line = (
            f'{{"time":"{self._timestamps.text(time.time())}","level":"info",'
            f'"logger":"mfimage.access","message":"request",{members},"status":{status},'
            f'"duration_ms":{seconds * 1000:.3f},"request_id":"{request_id}"}}\n'
        )
        if self._size + len(line) > _ATOMIC:
            self.flush()
        self._lines.append(line)
        self._size += len(line)
        if not self._pending:
            self._pending = True
            self._later(_FLUSH_AFTER, self._flush_later)

    def flush(self) -> None:
        """Write what is buffered."""
        if self._lines:
            self._out.write("".join(self._lines).encode())
            self._lines.clear()
            self._size = 0

    def _flush_later(self) -> None:
        self._pending = False
        self.flush()


def request_members(method: str, path: str) -> str:
    """Return a request's members of a log line, as JSON without braces."""
    return f'"method":{json.dumps(method)},"path":{json.dumps(path)}'
