"""A loaded function over a file of records: one at a time, or as fast as it goes."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import orjson

from mfimage.errors import OptionError, RecordError
from mfimage.runtime.records.files import RecordSink, RecordSource, open_sink, open_source
from mfimage.runtime.records.formats import choose_format
from mfimage.runtime.records.run import failed, stop_at_failure, write_results
from mfimage.runtime.records.streams import (
    STREAM,
    ended_by_sigterm,
    output_file,
    refuse_same,
    results,
)

if TYPE_CHECKING:
    from mfimage.load import JsonFunction

_TICK_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Files:
    """What is read and written.

    Attributes
    ----------
    input, output : str
        Files of records; ``-`` is stdin and stdout.
    format, output_format : str or None
        Their formats; by suffix when None, JSON lines for streams.
    """

    input: str = STREAM
    output: str = STREAM
    format: str | None = None
    output_format: str | None = None


@dataclass(frozen=True, kw_only=True)
class Failing:
    """What happens to records that fail.

    Attributes
    ----------
    skip : bool
        Go on, without results for them; else stop at the first.
    errors : str or None
        JSON lines of their numbers and what was wrong.
    """

    skip: bool = False
    errors: str | None = None

    @classmethod
    def of(cls, on_error: str | None, errors: str | None) -> Failing:
        """Make it of what was said; a file for errors means to go on."""
        if on_error == "stop" and errors is not None:
            raise OptionError(
                "errors: there are none to write when the first one stops it",
                hint="leave out --on-error stop, or --errors",
            )
        return cls(skip=on_error == "skip" or errors is not None, errors=errors)


@dataclass(kw_only=True)
class FileProgress:
    """How far a run is.

    Attributes
    ----------
    records, failed : int
        How many were answered, and how many of them with an error.
    position, size : int
        Bytes read, and bytes that there are; 0 where that cannot be told.
    seconds : float
        Since the first record was read.
    """

    records: int = 0
    failed: int = 0
    position: int = 0
    size: int = 0
    seconds: float = 0.0


@contextlib.contextmanager
def _opened(
    files: Files, load: Callable[[], JsonFunction]
) -> Iterator[tuple[JsonFunction, RecordSource, RecordSink]]:
    with ended_by_sigterm(), results(files.output) as out, load() as fn:
        # Its module may have registered them.
        form = choose_format(files.output, files.output_format, option="output_format")
        with open_source(files.input, files.format, fn) as source, open_sink(out, form, fn) as sink:
            yield fn, source, sink


def map_files(
    load: Callable[[], JsonFunction],
    files: Files,
    failing: Failing = Failing(),
    *,
    on_progress: Callable[[FileProgress], None] = lambda progress: None,
    on_failure: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> FileProgress:
    """Run a function on every record of a file, by its ``map``.

    Parameters
    ----------
    load : callable
        Returns the function; what it prints meanwhile does not get among the results.
    files : Files
        What is read and written.
    failing : Failing
        What happens to records that fail.
    on_progress : callable
        Told now and then how far it is.
    on_failure : callable
        Told of each record that is skipped, when they are not written to a file.
    **options
        For ``map``: ``batch_size``, ``max_in_flight``.

    Raises
    ------
    RecordError
        At the first record that fails, unless they are skipped; when the input is damaged.
    """
    refuse_same(input=files.input, output=files.output, errors=failing.errors)
    with _opened(files, load) as (fn, source, sink), _failures(failing, on_failure) as tell:
        progress = FileProgress(size=source.size)
        start = due = time.monotonic()
        for number, error in write_results(_mapped(fn, source, options), sink.append):
            progress.records += 1
            if error is not None:
                progress.failed += 1
                told = failed(fn.name, f"{source.unit} {number}", error)
                if not failing.skip:
                    told.hint = told.hint or "to go on past it: --errors FILE, or --on-error skip"
                    raise told from error
                tell(told, {source.unit: number, **_described(error)})
            if (now := time.monotonic()) >= due:
                due = now + _TICK_SECONDS
                sink.flush()
                progress.seconds, progress.position = now - start, source.position()
                on_progress(progress)
        progress.seconds = time.monotonic() - start
    return progress


def _mapped(
    fn: JsonFunction, source: RecordSource, options: Mapping[str, Any]
) -> Iterator[tuple[int, Any]]:
    """Yield the number and the outcome of each record."""
    numbers: deque[int] = deque()
    unread: dict[int, RecordError] = {}

    def records() -> Iterator[Any]:
        for number, record in source.records():
            numbers.append(number)
            if isinstance(record, RecordError):
                unread[number] = record  # the function refuses it; this says why
            yield record

    for result in fn.map(records(), on_error="return", **options):
        number = numbers.popleft()
        failed = isinstance(result, Exception)
        yield number, unread.pop(number, result) if failed else result


def _described(error: BaseException) -> dict[str, str]:
    return {"error": type(error).__name__, "message": str(error)}


@contextlib.contextmanager
def _failures(
    failing: Failing, on_failure: Callable[[str], None]
) -> Iterator[Callable[[RecordError, Mapping[str, Any]], object]]:
    if failing.errors is None:
        yield lambda error, _: on_failure(str(error))
        return
    with output_file(failing.errors) as file:
        yield lambda _, failure: file.write(orjson.dumps(failure) + b"\n")


def call_files(load: Callable[[], JsonFunction], files: Files, *, ahead: int = 1) -> None:
    """Call a function with each record of a file, one by one: each result is given at once.

    Parameters
    ----------
    load : callable
        Returns the function.
    files : Files
        What is read and written.
    ahead : int
        How many records may be under way at once.

    Raises
    ------
    RecordError
        At the first record that fails; on stdout, all results before it are written.
    """
    refuse_same(input=files.input, output=files.output)
    with _opened(files, load) as (fn, source, sink):
        outcomes = _called(fn, source) if ahead == 1 else _called_ahead(fn, source, ahead)
        stop_at_failure(outcomes, sink.append, sink.flush, name=fn.name, unit=source.unit)


def _called(fn: JsonFunction, source: RecordSource) -> Iterator[tuple[int, Any]]:
    for number, record in source.records():
        yield number, record if isinstance(record, RecordError) else _outcome(fn, record)


def _outcome(call: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except Exception as error:  # noqa: BLE001  (it takes the result's place)
        return error


def _called_ahead(fn: JsonFunction, source: RecordSource, limit: int) -> Iterator[tuple[int, Any]]:
    """Read in a thread: results are written while the next record is awaited."""
    started: SimpleQueue[tuple[int, Any] | BaseException | None] = SimpleQueue()
    free = threading.Semaphore(limit)
    wanted = True

    def start() -> None:
        try:
            for number, record in source.records():
                free.acquire()
                if not wanted:
                    return
                bad = isinstance(record, RecordError)
                started.put((number, record if bad else fn.submit(record)))
            started.put(None)
        except BaseException as error:  # noqa: BLE001  (it is raised where results are taken)
            started.put(error)

    # A daemon: it may wait for a line that never comes.
    threading.Thread(target=start, name="mfimage-records", daemon=True).start()
    try:
        while item := started.get():
            if isinstance(item, BaseException):
                raise item
            number, call = item
            yield number, call if isinstance(call, RecordError) else _outcome(call.result)
            free.release()
    finally:
        wanted = False
