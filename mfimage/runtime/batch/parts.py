"""The parts of a batch job: which records each holds, and how one is run and committed.

A part is a range of lines of one file, or a whole file of another format. Each is written whole,
then a mark says that it is done: a job that is started again does the rest.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import orjson

from mfimage.errors import InputError, ValueFault
from mfimage.function import json as json_values
from mfimage.package.storage.objects import ObjectInfo
from mfimage.runtime.batch.guard import Guard
from mfimage.runtime.batch.store import locate
from mfimage.runtime.calls.queue import Outcome, call_many
from mfimage.runtime.records.files import RecordSource, open_sink
from mfimage.runtime.records.formats import choose_format, given_schema
from mfimage.runtime.records.run import write_results

if TYPE_CHECKING:
    from mfimage.runtime.loading.loader import LiveFunction

PRIVATE = "_mfimage"
Call = Callable[[Sequence[bytes]], Sequence[Outcome]]
Given = tuple[int, bytes | InputError]
_AHEAD = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some of the records of one file.

    Attributes
    ----------
    index : int
        Its place among all parts.
    url : str
        The file.
    start, end : int
        The lines that start in this range of bytes; all records, where the format has no lines.
    """

    index: int
    url: str
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class PartOptions:
    """How parts are run.

    Attributes
    ----------
    output : str
        URL of the folder.
    format, output_format : str
        Serializers' names.
    suffix : str
        Of the files of results.
    batch_size : int
        The most records that a batch function gets at once.
    """

    output: str
    format: str
    output_format: str
    suffix: str
    batch_size: int


@dataclass(frozen=True, kw_only=True)
class PartDone:
    """What became of a part.

    Attributes
    ----------
    records, failed : int
        How many records it had, and how many of them gave no result.
    lines : int
        How many lines, empty ones too: what line numbers of the next part start from.
    """

    records: int
    failed: int
    lines: int


def plan_parts(files: Sequence[ObjectInfo], *, by_lines: bool, part_bytes: int) -> list[Part]:
    """Divide files into parts: of ``part_bytes`` each, where a format has lines."""
    ranges = (
        (file.url, start, min(start + part_bytes, file.size) if by_lines else file.size)
        for file in files
        for start in (range(0, file.size, part_bytes) if by_lines else (0,))
    )
    return [
        Part(index=index, url=url, start=start, end=end)
        for index, (url, start, end) in enumerate(ranges)
    ]


class PartRunner:
    """Runs parts of a job in this process.

    Parameters
    ----------
    fn : LiveFunction
        The function.
    options : PartOptions
        How.
    """

    def __init__(self, fn: LiveFunction, options: PartOptions) -> None:
        self._fn = fn
        self._options = options
        # By name: the function's module may have registered them.
        self._input = choose_format("-", options.format)
        self._output = choose_format("-", options.output_format, option="output_format")
        self._schema = given_schema(fn.spec, self._input, "input")

    def run(self, part: Part, guard: Path | None = None) -> PartDone:
        """Run a part and commit what came out.

        Parameters
        ----------
        part : Part
            Which.
        guard : Path, optional
            Where the function's package is: run it in another process, which a record may end.
        """
        output, folder = locate(self._options.output.rstrip("/"))
        name = f"{part.index:05}"
        with tempfile.TemporaryDirectory(prefix="mfimage-") as private, self._way(guard) as call:
            results, errors = Path(private, "results"), Path(private, "errors")
            with results.open("wb") as out, errors.open("wb") as bad:
                done = self._run(part, call, out, bad)
            output.write(f"{folder}/part-{name}{self._options.suffix}", results)
            output.write(f"{folder}/{PRIVATE}/errors/{name}.jsonl", errors)
        # Last: it says that the others are there.
        output.write(f"{folder}/{PRIVATE}/done/{name}.json", orjson.dumps(asdict(done)))
        return done

    @contextlib.contextmanager
    def _way(self, guard: Path | None) -> Iterator[Call]:
        if guard is None:
            yield functools.partial(call_many, self._fn)
            return
        with Guard(self._fn, guard) as call:
            yield call

    def _run(self, part: Part, call: Call, out: BinaryIO, bad: BinaryIO) -> PartDone:
        records = failed = 0
        with (
            _opened(part, self._input.is_lines) as file,
            open_sink(out, self._output, self._fn) as sink,
        ):
            source = RecordSource(file, part.url, self._input, self._schema)
            for batch in _batches(_payloads(source), self._options.batch_size):
                payloads = dict(batch)
                for number, error in write_results(_outcomes(call, batch), sink.append_json):
                    if error is not None:
                        failed += 1
                        bad.write(_failure(number, payloads[number], error) + b"\n")
                records += len(batch)
            return PartDone(records=records, failed=failed, lines=_lines_of(file, records))


def _outcomes(call: Call, batch: Sequence[Given]) -> Iterator[tuple[int, Outcome]]:
    called = iter(call([given for _, given in batch if isinstance(given, bytes)]))
    for number, given in batch:
        yield number, next(called) if isinstance(given, bytes) else given


class _Lines(io.BufferedReader):
    """The lines of a part, counted as they are read."""

    count = 0

    def __next__(self) -> bytes:
        line = super().__next__()
        self.count += 1
        return line


def _opened(part: Part, by_lines: bool) -> BinaryIO:
    store, key = locate(part.url)
    if not by_lines:
        return store.open(key)
    # From one byte before: when that ends a line, the first line is this part's.
    first = max(part.start - 1, 0)
    data = store.read(key, first, part.end)
    if part.start:
        data = data[data.find(b"\n") + 1 :] if b"\n" in data else b""
    if data and not data.endswith(b"\n"):
        data += _rest_of_line(part)
    return _Lines(io.BytesIO(data))


def _rest_of_line(part: Part) -> bytes:
    """Return the end of the line that begins in a part and ends in a later one."""
    store, key = locate(part.url)
    found = store.stat(key)
    size = found.size if found else part.end
    pieces, at, ahead = [b""], part.end, _AHEAD
    while at < size and b"\n" not in pieces[-1]:
        pieces.append(store.read(key, at, min(at + ahead, size)))
        at, ahead = at + ahead, 2 * ahead
    pieces[-1] = pieces[-1][: pieces[-1].find(b"\n") + 1] or pieces[-1]
    return b"".join(pieces)


def _lines_of(file: BinaryIO, records: int) -> int:
    return file.count if isinstance(file, _Lines) else records


def _payloads(source: RecordSource) -> Iterator[Given]:
    """Yield records as JSON bytes; in place of one that has no JSON form, as NaN, its error."""
    if source.unit == "line":
        yield from source.payloads()
        return
    for number, record in source.records():
        try:
            yield number, json_values.dumps(record, root=f"record {number}", error=InputError)
        except InputError as error:
            yield number, error


def _batches(numbered: Iterator[Given], size: int) -> Iterator[list[Given]]:
    while batch := list(itertools.islice(numbered, size)):
        yield batch


def _failure(number: int, payload: bytes | InputError, error: BaseException) -> bytes:
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
