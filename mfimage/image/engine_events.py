"""What a build tells while it runs: BuildKit's progress messages, made into `BuildEvent`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from mfimage.image.engine_wire import fields

Kind = Literal["started", "log", "progress", "cached", "done", "failed"]
_LOG_LINES = 20


@dataclass(frozen=True, kw_only=True)
class BuildEvent:
    """One thing that happened in a build, a pull or a push.

    Attributes
    ----------
    kind : str
        ``started``; ``log`` and ``progress``, any number of them; then one of ``cached``, ``done``
        and ``failed``.
    step : str
        The step's name as the engine tells it, such as ``[build 3/7] RUN make``; for a pull or
        push the layer's short digest.
    text : str
        The log line, what progresses, or what failed.
    current, total : int
        Bytes, of a ``progress``; 0 where unknown.
    seconds : float, optional
        How long the step took, when it is over.
    """

    kind: Kind
    step: str
    text: str = ""
    current: int = 0
    total: int = 0
    seconds: float | None = None


@dataclass
class _Step:
    name: str = ""
    started: float | None = None
    over: bool = False
    error: str = ""
    partial: dict[int, bytes] = field(default_factory=dict)  # by stream: stdout, stderr
    log: deque[str] = field(default_factory=lambda: deque(maxlen=_LOG_LINES))


@dataclass(frozen=True, kw_only=True)
class Failure:
    """The step that failed: its name, its error, the end of its log."""

    step: str
    error: str
    log: tuple[str, ...]


class BuildTrace:
    """Follows one build through its ``moby.buildkit.trace`` messages.

    Parameters
    ----------
    redact : callable
        Applied to all text before it is kept or handed on.
    """

    def __init__(self, redact: Callable[[str], str]) -> None:
        self._redact = redact
        self._steps: dict[str, _Step] = {}

    def feed(self, message: bytes) -> Iterator[BuildEvent]:
        """Take one serialized ``StatusResponse``; yield what is new in it.

        Raises
        ------
        ValueError
            If it cannot be read.
        """
        parts: dict[int, list[_Fields]] = {1: [], 2: [], 3: []}
        for number, value in fields(message):
            if isinstance(value, bytes) and number in parts:
                parts[number].append(_read(value))
        vertexes, statuses, logs = parts.values()
        # In the order of a step's life, whatever the order in the message.
        for vertex in vertexes:
            yield from self._start(vertex)
        for status in statuses:
            yield self._progress(status)
        for log in logs:
            yield from self._log(log)
        for vertex in vertexes:
            yield from self._finish(vertex)

    def failure(self) -> Failure | None:
        """Return the step that failed, if one did."""
        failed = [step for step in self._steps.values() if step.error]
        # When a step fails, those beside it are cancelled and fail too.
        culprits = [step for step in failed if "context canceled" not in step.error] or failed
        if not culprits:
            return None
        step = culprits[0]
        return Failure(step=step.name, error=step.error, log=tuple(step.log))

    def _start(self, vertex: _Fields) -> Iterator[BuildEvent]:
        step = self._steps.setdefault(vertex.text(1), _Step())
        step.name = self._redact(vertex.text(3)) or step.name
        if step.started is None and (started := vertex.time(5)) is not None:
            step.started = started
            yield BuildEvent(kind="started", step=step.name)

    def _finish(self, vertex: _Fields) -> Iterator[BuildEvent]:
        step = self._steps[vertex.text(1)]
        completed = vertex.time(6)
        if step.over or completed is None:
            return
        step.over = True
        step.error = self._redact(vertex.text(7))
        for rest in filter(None, step.partial.values()):
            yield self._line(step, rest)
        step.partial.clear()
        seconds = completed - step.started if step.started is not None else None
        kind: Kind = "failed" if step.error else "cached" if vertex.number(4) else "done"
        yield BuildEvent(kind=kind, step=step.name, text=step.error, seconds=seconds)

    def _progress(self, status: _Fields) -> BuildEvent:
        step = self._steps.setdefault(status.text(2), _Step())
        text = self._redact(status.text(3) or status.text(1))
        return BuildEvent(
            kind="progress",
            step=step.name,
            text=text,
            current=status.number(4),
            total=status.number(5),
        )

    def _log(self, log: _Fields) -> Iterator[BuildEvent]:
        step = self._steps.setdefault(log.text(1), _Step())
        stream = log.number(3)
        *lines, rest = (step.partial.get(stream, b"") + log.raw(4)).split(b"\n")
        step.partial[stream] = rest
        for line in lines:
            yield self._line(step, line)

    def _line(self, step: _Step, raw: bytes) -> BuildEvent:
        # A progress bar rewrites its line: only its last state is worth showing.
        line = self._redact(raw.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace"))
        step.log.append(line)
        return BuildEvent(kind="log", step=step.name, text=line)


class _Fields:
    """A message's fields by number; what is absent is empty, as protobuf has it."""

    def __init__(self, values: dict[int, int | bytes]) -> None:
        self._values = values

    def raw(self, number: int) -> bytes:
        value = self._values.get(number, b"")
        return value if isinstance(value, bytes) else b""

    def text(self, number: int) -> str:
        return self.raw(number).decode(errors="replace")

    def number(self, number: int) -> int:
        value = self._values.get(number, 0)
        return value if isinstance(value, int) else 0

    def time(self, number: int) -> float | None:
        value = self._values.get(number)
        if not isinstance(value, bytes):
            return None
        stamp = _read(value)
        return stamp.number(1) + stamp.number(2) / 1e9


def _read(message: bytes) -> _Fields:
    return _Fields(dict(fields(message)))
