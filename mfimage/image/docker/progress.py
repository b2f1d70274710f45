"""What ``docker build`` prints while it builds, as `BuildEvent`.

By ``--progress=rawjson`` that is a JSON document a line; by ``--progress=plain`` it is text for
people, of which the steps, their logs and their ends are recognized.
"""

from __future__ import annotations

import base64
import json
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from mfimage.image.builder import BuildEvent, Kind

_LOG_LINES = 20
_PLAIN = re.compile(r"#(\d+) (.*)")
_DONE = re.compile(r"DONE (\d+\.\d+)s")
_ERROR = re.compile(r"ERROR:? (.*)")
_LOG = re.compile(r"\d+\.\d+(?: (.*))?")


@dataclass
class _Step:
    name: str = ""
    started: datetime | None = None
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


class BuildProgress:
    """Follows one build through what the command prints."""

    def __init__(self, redact: Callable[[str], str]) -> None:
        self._redact = redact
        self._steps: dict[str, _Step] = {}
        self._other: deque[str] = deque(maxlen=_LOG_LINES)

    def feed(self, line: bytes) -> Iterator[BuildEvent]:
        """Take one line; yield what is new in it."""
        if line.startswith(b"{"):
            try:
                yield from self._status(json.loads(line))
                return
            except ValueError:
                pass  # no progress, but something that begins alike
        text = line.decode(errors="replace").rstrip("\r\n")
        if match := _PLAIN.match(text):
            yield from self._plain(match[1], self._redact(match[2]))
        elif text.strip():
            self._other.append(self._redact(text))

    def failure(self) -> Failure | None:
        """Return the step that failed, if one did."""
        failed = [step for step in self._steps.values() if step.error]
        # When a step fails, those beside it are canceled and fail too.
        culprits = [step for step in failed if "context canceled" not in step.error] or failed
        if not culprits:
            return None
        step = culprits[0]
        return Failure(step=step.name, error=step.error, log=tuple(step.log))

    def message(self) -> str:
        """Return the command's own error message."""
        lines = [line for line in self._other if not line.startswith("See 'docker ")]
        errors = [line for line in lines if line.lower().startswith("error: ")]
        last = (errors or lines or [""])[-1]
        return last[len("error: ") :] if errors else last

    # --progress=rawjson

    def _status(self, status: Mapping[str, Any]) -> Iterator[BuildEvent]:
        # In the order of a step's life, whatever the order in the document.
        vertexes = status.get("vertexes") or ()
        for vertex in vertexes:
            yield from self._start(vertex)
        for each in status.get("statuses") or ():
            yield self._progress(each)
        for log in status.get("logs") or ():
            yield from self._log(log)
        for vertex in vertexes:
            yield from self._finish(vertex)

    def _step(self, key: str) -> _Step:
        return self._steps.setdefault(key, _Step())

    def _start(self, vertex: Mapping[str, Any]) -> Iterator[BuildEvent]:
        step = self._step(vertex["digest"])
        step.name = self._redact(vertex.get("name") or "") or step.name
        if step.started is None and (started := vertex.get("started")):
            step.started = _time(started)
            yield BuildEvent(kind="started", step=step.name)

    def _finish(self, vertex: Mapping[str, Any]) -> Iterator[BuildEvent]:
        step = self._step(vertex["digest"])
        completed = vertex.get("completed")
        if step.over or not completed:
            return
        for rest in filter(None, step.partial.values()):
            yield self._line(step, _shown(rest))
        step.partial.clear()
        elapsed = _time(completed) - step.started if step.started else None
        yield from self._end(
            step,
            error=self._redact(vertex.get("error") or ""),
            cached=bool(vertex.get("cached")),
            seconds=elapsed.total_seconds() if elapsed is not None else None,
        )

    def _progress(self, status: Mapping[str, Any]) -> BuildEvent:
        return BuildEvent(
            kind="progress",
            step=self._step(status["vertex"]).name,
            text=self._redact(status.get("name") or status.get("id") or ""),
            part=self._redact(status.get("id") or ""),
            current=status.get("current") or 0,
            total=status.get("total") or 0,
        )

    def _log(self, log: Mapping[str, Any]) -> Iterator[BuildEvent]:
        step = self._step(log["vertex"])
        stream = log.get("stream") or 0
        data = base64.b64decode(log.get("data") or "")
        *lines, rest = (step.partial.get(stream, b"") + data).split(b"\n")
        step.partial[stream] = rest
        for line in lines:
            yield self._line(step, _shown(line))

    # --progress=plain

    def _plain(self, number: str, text: str) -> Iterator[BuildEvent]:
        if number == "0":
            return  # which builder it is
        if number not in self._steps:
            step = self._step(number)
            step.name = text
            yield BuildEvent(kind="started", step=text)
            return
        step = self._steps[number]
        if text in (step.name, "..."):
            return  # the command turns to another step, and back
        if match := _DONE.fullmatch(text):
            yield from self._end(step, seconds=float(match[1]))
        elif text == "CACHED":
            yield from self._end(step, cached=True)
        elif text == "CANCELED":
            yield from self._end(step, error="context canceled")
        elif match := _ERROR.fullmatch(text):
            yield from self._end(step, error=match[1])
        elif match := _LOG.fullmatch(text):
            yield self._line(step, match[1] or "")
        else:
            yield BuildEvent(kind="progress", step=step.name, text=text)

    # Both

    def _end(
        self, step: _Step, *, error: str = "", cached: bool = False, seconds: float | None = None
    ) -> Iterator[BuildEvent]:
        if not step.over:
            step.over, step.error = True, error
            kind: Kind = "failed" if error else "cached" if cached else "done"
            yield BuildEvent(kind=kind, step=step.name, text=error, seconds=seconds)

    def _line(self, step: _Step, text: str) -> BuildEvent:
        line = self._redact(text)
        step.log.append(line)
        return BuildEvent(kind="log", step=step.name, text=line)


def _shown(line: bytes) -> str:
    """Return the last state of a line that a progress bar may have rewritten."""
    return line.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace")


def _time(text: str) -> datetime:
    """Parse RFC 3339 with any number of decimals; the zone is left out, since one build has one."""
    found = datetime.strptime(text[:19], "%Y-%m-%dT%H:%M:%S")
    fraction = re.match(r"\.(\d+)", text[19:])
    micros = int(fraction[1][:6].ljust(6, "0")) if fraction else 0
    return found.replace(microsecond=micros)
