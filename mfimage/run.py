"""Runs a function on this machine: on a file of records, or as its image would."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import orjson

from mfimage.backends.satisfies import difference
from mfimage.errors import LockError, OptionError, RecordError
from mfimage.image.plan.names import check_names
from mfimage.image.plan.pipeline import pipeline_source
from mfimage.image.plan.several import functions_source, open_packages
from mfimage.image.plan.subject import FUNCTIONS, BuildSource, function_source
from mfimage.image.targets import DEFAULT_TARGET
from mfimage.package.platforms import this_platform
from mfimage.package.store import Package, Pipeline, open_any
from mfimage.runtime.layout import FUNCTION_VARIABLE
from mfimage.runtime.records import streams
from mfimage.runtime.records.files import RecordSink, RecordSource, open_sink, open_source
from mfimage.runtime.records.formats import choose_format
from mfimage.runtime.records.run import failed, stop_at_failure, write_results

if TYPE_CHECKING:
    from mfimage.load import JsonFunction

_TICK_SECONDS = 0.1
# Waits until every process that has the pipe's other end has ended.
_REMOVE = "import os, shutil, sys; os.read(0, 1); shutil.rmtree(sys.argv[1], ignore_errors=True)"
_RUN = (
    "import sys; sys.path.insert(0, sys.argv.pop(1))\n"
    "from mfimage.runtime.__main__ import main; sys.exit(main())"
)


@dataclass(frozen=True, kw_only=True)
class RecordFiles:
    """The files of a run: ``-`` is stdin or stdout; formats are chosen by suffix when None."""

    input: str = streams.STREAM
    output: str = streams.STREAM
    format: str | None = None
    output_format: str | None = None


@dataclass(kw_only=True)
class FileProgress:
    """The progress of a run: ``position`` and ``size`` are in bytes, and 0 if unknown."""

    records: int = 0
    failed: int = 0
    position: int = 0
    size: int = 0
    seconds: float = 0.0


@contextlib.contextmanager
def _opened(
    files: RecordFiles, load: Callable[[], JsonFunction]
) -> Iterator[tuple[JsonFunction, RecordSource, RecordSink]]:
    with streams.ended_by_sigterm(), streams.results(files.output) as out, load() as fn:
        # After loading: the function's module may register formats.
        form = choose_format(files.output, files.output_format, option="output_format")
        with open_source(files.input, files.format, fn) as source, open_sink(out, form, fn) as sink:
            yield fn, source, sink


def map_files(
    load: Callable[[], JsonFunction],
    files: RecordFiles,
    *,
    on_error: Literal["stop", "skip"] | None = None,
    errors: str | None = None,
    on_progress: Callable[[FileProgress], None] = lambda progress: None,
    on_failure: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> FileProgress:
    """Run a function on every record of a file, by its ``map``, which gets ``options``.

    ``load`` returns the function; what it prints meanwhile goes to stderr. ``on_error`` is ``stop``
    (at the first record that fails: ``RecordError``) or ``skip``, the default if there is a file
    for errors. ``errors`` gets the numbers and errors of records that fail, as JSON lines; else
    ``on_failure`` gets each error. ``on_progress`` is called from time to time.
    """
    if on_error == "stop" and errors is not None:
        raise OptionError(
            "errors: nothing to write if the run stops at the first one",
            hint="omit --on-error stop, or --errors",
        )
    streams.refuse_same(input=files.input, output=files.output, errors=errors)
    with _opened(files, load) as (fn, source, sink), _failures(errors, on_failure) as report:
        progress = FileProgress(size=source.size)
        start = due = time.monotonic()
        for number, error in write_results(_mapped(fn, source, options), sink.append):
            progress.records += 1
            if error is not None:
                progress.failed += 1
                failure = failed(fn.name, f"{source.unit} {number}", error)
                if on_error != "skip" and errors is None:
                    failure.hint = failure.hint or "to skip it: --errors FILE, or --on-error skip"
                    raise failure from error
                described = {"error": type(error).__name__, "message": str(error)}
                report(failure, {source.unit: number, **described})
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
                unread[number] = record  # the function rejects it; this is the reason
            yield record

    for result in fn.map(records(), on_error="return", **options):
        number = numbers.popleft()
        yield number, unread.pop(number, result) if isinstance(result, Exception) else result


@contextlib.contextmanager
def _failures(
    errors: str | None, on_failure: Callable[[str], None]
) -> Iterator[Callable[[RecordError, Mapping[str, Any]], object]]:
    if errors is None:
        yield lambda error, _: on_failure(str(error))
        return
    with streams.output_file(errors) as file:
        yield lambda _, failure: file.write(orjson.dumps(failure) + b"\n")


def call_files(load: Callable[[], JsonFunction], files: RecordFiles, *, ahead: int = 1) -> None:
    """Call a function, at most ``ahead`` times at once, on each record; write each result at once.

    ``RecordError`` at the first record that fails; on stdout, the results before it are written.
    """
    streams.refuse_same(input=files.input, output=files.output)
    with _opened(files, load) as (fn, source, sink):
        outcomes = _called(fn, source) if ahead == 1 else _called_ahead(fn, source, ahead)
        stop_at_failure(outcomes, sink.append, sink.flush, name=fn.name, unit=source.unit)


def _called(fn: JsonFunction, source: RecordSource) -> Iterator[tuple[int, Any]]:
    for number, record in source.records():
        yield number, record if isinstance(record, RecordError) else _outcome(fn, record)


def _outcome(call: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except Exception as error:  # noqa: BLE001  (it replaces the result)
        return error


def _called_ahead(fn: JsonFunction, source: RecordSource, limit: int) -> Iterator[tuple[int, Any]]:
    """Read in a thread, so that results are written while the next record is awaited."""
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

    # A daemon: it may wait forever for a line.
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


def run_entrypoint(
    references: str | Sequence[str], command: Sequence[str], note: Callable[[str], None]
) -> int:
    """Run an image's command on a package, or on several; return the exit code.

    It runs in this process if this interpreter satisfies each function's lock. Else this process
    becomes one of the environment that the image would have; ``note`` gets the reason.
    """
    source, packages = _source([references] if isinstance(references, str) else references)
    with _folder() as (folder, pipe):
        source.unpack(folder)
        os.environ[FUNCTION_VARIABLE] = str(folder)
        try:
            reason = next(filter(None, map(difference, packages)), None)
        except LockError:
            reason = None  # as a function that is loaded
        if reason is not None:
            runs = "run in their" if source.subject.kind == FUNCTIONS else "runs in its"
            note(f"{source.subject.name} {runs} own environment: {reason}")
            os.set_inheritable(pipe, True)
            _become(source, command, note)
        from mfimage.runtime.__main__ import main

        return main(command)


def _source(references: Sequence[str]) -> tuple[BuildSource, Sequence[Package]]:
    """Return what an image of the packages would be built from, and the packages."""
    if len(references) == 1:
        found = open_any(references[0])
        if isinstance(found, Pipeline):
            return pipeline_source(found, target=DEFAULT_TARGET), found.parts
        return function_source(found), [found]
    packages = open_packages(references)
    check_names({name: package.spec for name, package in packages.items()})
    return functions_source(packages), list(packages.values())


@contextlib.contextmanager
def _folder() -> Iterator[tuple[Path, int]]:
    """Make a folder that is removed at the end of the block, or when this process ends.

    The process may end without Python's help, or become another program; what it yields beside the
    folder is the pipe that must then stay open.
    """
    folder = Path(tempfile.mkdtemp(prefix="mfimage-"))
    reader, writer = os.pipe()
    cleaner = None
    try:
        cleaner = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _REMOVE, folder], stdin=reader,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        os.close(reader)
        yield folder, writer
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(writer)
        if cleaner is not None:
            cleaner.kill()
            cleaner.wait()


def _become(source: BuildSource, command: Sequence[str], note: Callable[[str], None]) -> NoReturn:
    from mfimage.backends.process.environments import make_environment, runtime_folder

    lock = source.lock
    if command[0] == "serve":
        from mfimage.image.plan.lock import target_lock
        from mfimage.image.plan.options import BuildOptions

        lock = target_lock(source, BuildOptions(), this_platform(), note)
    subject, runtime = source.subject, str(runtime_folder())
    python = make_environment(subject.name, subject.environment, source, lock)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONHOME"} | {
        "PYTHONPATH": runtime,
        "PYTHONNOUSERSITE": "1",
        "VIRTUAL_ENV": str(python.parent.parent),
        "PATH": os.pathsep.join([str(python.parent), os.environ.get("PATH", os.defpath)]),
    }
    arguments = [str(python), "-I", "-c", _RUN, runtime, *command]
    os.execve(python, arguments, environment)  # noqa: S606  (without a shell)
