"""The parts of a batch job: which records each holds, and how one is run and committed.

A part is a range of lines of a file, or a whole file of a format without lines. Its results are
written whole, then a file marks it as done: a job that is started again runs the other parts.
"""

from __future__ import annotations

import functools
import io
import itertools
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson

import mfimage
from mfimage.errors import FunctionError, MfimageError, ValueFault
from mfimage.package.storage.objects import ObjectInfo
from mfimage.runtime.batch.options import BatchOptions
from mfimage.runtime.batch.store import locate
from mfimage.runtime.calls.queue import Outcome, call_many
from mfimage.runtime.loading import packages
from mfimage.runtime.loading.loader import LiveFunction
from mfimage.runtime.records.files import Payload, RecordSource, open_sink
from mfimage.runtime.records.formats import choose_format, given_schema, is_lines
from mfimage.runtime.records.run import write_results
from mfimage.runtime.serving.body import split_list
from mfimage.runtime.worker import BOOT, frames
from mfimage.runtime.worker.exceptions import rebuild

PRIVATE = "_mfimage"
Call = Callable[[Sequence[bytes]], Sequence[Outcome]]
_READ_AHEAD = 1 << 16


@dataclass(frozen=True, kw_only=True)
class BatchPart:
    """The lines of a file that start in a range of bytes, or a whole file without lines."""

    index: int
    url: str
    start: int
    end: int

    def __str__(self) -> str:
        return f"part {self.index} ({self.url}, bytes {self.start} to {self.end})"


@dataclass(frozen=True, kw_only=True)
class PartResult:
    """How many records a part had, how many failed, and its lines, empty ones included."""

    records: int
    failed: int
    lines: int


def plan_parts(files: Sequence[ObjectInfo], *, by_lines: bool, part_bytes: int) -> list[BatchPart]:
    """Divide files into parts, of ``part_bytes`` each if their format has lines."""
    ranges = (
        (file.url, start, min(start + part_bytes, file.size) if by_lines else file.size)
        for file in files
        for start in (range(0, file.size, part_bytes) if by_lines else (0,))
    )
    return [
        BatchPart(index=index, url=url, start=start, end=end)
        for index, (url, start, end) in enumerate(ranges)
    ]


class PartRunner:
    """Runs parts of a job in this process; ``options`` are those of the ``BatchJob``."""

    def __init__(self, fn: LiveFunction, options: BatchOptions) -> None:
        self._fn = fn
        self._options = options
        # By name: the function's module may have registered them.
        self._input = choose_format("-", options.format)
        self._output = choose_format("-", options.output_format, option="output_format")
        self._schema = given_schema(fn.spec, self._input, "input")

    def run(self, part: BatchPart, guard: Path | None = None) -> PartResult:
        """Run a part and commit its results; ``guard``, its package's folder, isolates records."""
        output, folder = locate(self._options.output.rstrip("/"))
        name = f"{part.index:05}"
        suffix = self._output.suffixes[0]
        call: Call = functools.partial(call_many, self._fn)
        with tempfile.TemporaryDirectory(prefix="mfimage-") as private, ExitStack() as stack:
            if guard is not None:
                call = stack.enter_context(closing(Guard(self._fn, guard)))
            results, errors = Path(private, "results"), Path(private, "errors")
            with results.open("wb") as out, errors.open("wb") as bad:
                done = self._run(part, call, out, bad)
            output.write(f"{folder}/part-{name}{suffix}", results)
            output.write(f"{folder}/{PRIVATE}/errors/{name}.jsonl", errors)
        # Last: it marks the others as complete.
        output.write(f"{folder}/{PRIVATE}/done/{name}.json", orjson.dumps(asdict(done)))
        return done

    def _run(self, part: BatchPart, call: Call, out: BinaryIO, bad: BinaryIO) -> PartResult:
        records = failed = 0
        with (
            _open_part(part, is_lines(self._input)) as file,
            open_sink(out, self._output, self._fn) as sink,
        ):
            numbered = RecordSource(file, part.url, self._input, self._schema).payloads()
            while batch := list(itertools.islice(numbered, self._options.batch_size)):
                payloads = dict(batch)
                for number, error in write_results(_outcomes(call, batch), sink.append_json):
                    if error is not None:
                        failed += 1
                        bad.write(_failure(number, payloads[number], error) + b"\n")
                records += len(batch)
            lines = file.count if isinstance(file, _Lines) else records
            return PartResult(records=records, failed=failed, lines=lines)


def _outcomes(call: Call, batch: Sequence[tuple[int, Payload]]) -> Iterator[tuple[int, Outcome]]:
    called = iter(call([payload for _, payload in batch if isinstance(payload, bytes)]))
    for number, payload in batch:
        yield number, next(called) if isinstance(payload, bytes) else payload


class _Lines(io.BufferedReader):
    """The lines of a part, counted as they are read."""

    count = 0

    def __next__(self) -> bytes:
        line = super().__next__()
        self.count += 1
        return line


def _open_part(part: BatchPart, by_lines: bool) -> BinaryIO:
    store, key = locate(part.url)
    if not by_lines:
        return store.open(key)
    # From one byte before: if that ends a line, the part's first line is whole.
    data = store.read(key, max(part.start - 1, 0), part.end)
    if part.start:
        data = data[data.find(b"\n") + 1 :] if b"\n" in data else b""
    pieces = [data]
    if data and not data.endswith(b"\n"):  # its last line ends in a later part
        pieces, at, ahead = [data, b""], part.end, _READ_AHEAD
        size = store.size(key) or part.end
        while at < size and b"\n" not in pieces[-1]:
            pieces.append(store.read(key, at, min(at + ahead, size)))
            at, ahead = at + ahead, 2 * ahead
        pieces[-1] = pieces[-1][: pieces[-1].find(b"\n") + 1] or pieces[-1]
    return _Lines(io.BytesIO(b"".join(pieces)))


def _failure(number: int, payload: Payload, error: BaseException) -> bytes:
    """Return a line of the errors file; ``line`` counts from the part's first."""
    described: dict[str, Any] = {
        "line": number,
        "error": type(error).__name__,
        "message": str(error),
    }
    if isinstance(error, ValueFault):
        described["faults"] = [asdict(fault) for fault in error.faults]
    if isinstance(payload, bytes):
        described["record"] = payload.decode(errors="replace").rstrip("\r\n")
    return orjson.dumps(described)


class Poison(MfimageError):
    """A record that ended the process that ran it."""

    def __init__(self) -> None:
        super().__init__("the process that ran this record died")


class Guard:
    """Calls a function in a process that a record may end; then with each record alone.

    ``folder`` is its unpacked package. ``fn`` is not called, so its artifacts are not loaded here.
    """

    def __init__(self, fn: LiveFunction, folder: Path) -> None:
        self._fn = fn
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._sock: socket.socket | None = None
        self._lifeline = -1

    def __call__(self, payloads: Sequence[bytes]) -> list[Outcome]:
        """Return the outcomes of records, as ``call_many`` does."""
        outcomes: list[Outcome] = []
        for payload in payloads:
            try:
                self._fn.parse(payload)
                outcomes.append(payload.strip())
            except Exception as error:  # noqa: BLE001  (it replaces the result)
                outcomes.append(error)
        results = iter(self._run([each for each in outcomes if isinstance(each, bytes)]))
        return [next(results) if isinstance(each, bytes) else each for each in outcomes]

    def _run(self, payloads: list[bytes]) -> list[Outcome]:
        if not payloads:
            return []
        sock = self._sock or self._start()
        try:
            frames.send_frame(sock, frames.BATCH, b"\n".join(payloads))
            return _read_outcomes(frames.receive_frame(sock))
        except (EOFError, OSError):
            self.close()
        if len(payloads) == 1:
            return [Poison()]
        return [outcome for payload in payloads for outcome in self._run([payload])]

    def _start(self) -> socket.socket:
        """Start a process that loads the function."""
        mine, theirs = socket.socketpair()
        lifeline, self._lifeline = os.pipe()
        passed = (theirs.fileno(), lifeline)
        source = str(Path(mfimage.__file__).parents[1])
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", BOOT, *map(str, passed), source],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what the function prints
                pass_fds=passed,
                start_new_session=True,
            )
        finally:
            theirs.close()
            os.close(lifeline)
        self._sock = mine
        found = packages.find(self._folder, self._fn.name)
        config = {
            "spec": self._fn.spec.to_json().decode(),
            "reference": str(self._folder),
            "blobs": str(found.blobs),
            "code": str(found.code),
            "log_level": logging.getLogger().level,
        }
        frames.send_frame(mine, frames.START, json.dumps(config).encode())
        frame = frames.receive_frame(mine)
        if frame.kind != frames.READY:
            raise rebuild(frame.payload)
        return mine

    def close(self) -> None:
        """End the process."""
        if self._sock is not None:
            self._sock.close()
            os.close(self._lifeline)
            self._sock = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _read_outcomes(frame: frames.Frame) -> list[Outcome]:
    if frame.kind == frames.ARRAY:
        return [*split_list(frame.payload)]
    if frame.kind == frames.FAILURE:
        return [_rebuild(frame.payload)]
    lines = frame.payload.split(b"\n")
    if frame.kind == frames.MIXED:
        return [_rebuild(line[1:]) if line[:1] == b"-" else line[1:] for line in lines]
    return [*lines]


def _rebuild(described: bytes) -> Exception:
    try:
        return rebuild(described)
    except ValueError as error:
        return FunctionError(str(error))
