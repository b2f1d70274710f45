"""The entrypoint of every image: ``python -m mfimage.runtime serve|call|check|batch``."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mfimage.errors import BackendError, MfimageError
from mfimage.runtime.layout import FUNCTION_VARIABLE, TARGET_VARIABLE, function_folder
from mfimage.runtime.worker.exceptions import traceback_text


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["ray"] and shutil.which("ray"):
        # As KubeRay's users type it: docker run IMAGE ray start --head --block
        os.execvp("ray", words)  # noqa: S606, S607  (no shell; the image's own)
    options = _parser(words).parse_args(words)
    verb: Callable[[argparse.Namespace], int] = options.verb
    try:
        return verb(options)
    except MfimageError as error:
        if error.__cause__ is not None and not isinstance(error.__cause__, MfimageError):
            sys.stderr.write(traceback_text(error.__cause__))
        sys.stderr.write(f"error: {error}\n")
        if error.hint:
            sys.stderr.write(f"hint: {error.hint}\n")
        return 1
    except BrokenPipeError:
        return 1  # the reader has closed the pipe
    except KeyboardInterrupt:
        return 130


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mfimage.runtime", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for verb, text in (
        (serve, "serve the function over HTTP"),
        (call, "read records as JSON lines, write results as JSON lines"),
        (check, "load the function and replay its recorded examples"),
        (batch, "run the function over files of records, on a Ray cluster"),
    ):
        sub = verbs.add_parser(verb.__name__, help=text, description=verb.__doc__)
        sub.add_argument(
            "--folder", type=Path, help=f"the function's package (default: ${FUNCTION_VARIABLE})"
        )
        if verb is not serve:
            sub.add_argument("--function", metavar="NAME", help="of an image of several functions")
        sub.set_defaults(verb=verb)
        add = sub.add_argument
        if verb is call:
            add("--input", default="-", metavar="FILE", help="file of records; - is stdin")
            add("--output", default="-", metavar="FILE", help="file of results; - is stdout")
            add("--format", metavar="NAME", help="of the input; by suffix, else json")
            add("--output-format", metavar="NAME", help="of the output; by suffix, else json")
        elif verb is check:
            add("--rtol", type=float, help="relative tolerance for floating-point numbers")
            add("--atol", type=float, help="absolute tolerance for floating-point numbers")
        elif verb is batch and "batch" in arguments[:1]:  # only this verb needs the import
            from mfimage.runtime.batch.command import add_arguments

            add_arguments(sub)
    return parser


def serve(options: argparse.Namespace) -> int:
    """Serve over HTTP until SIGTERM; docs/serving.md lists the settings."""
    # PID 1 has no default handlers, and the imports below take a moment.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))
    from mfimage.runtime.settings import Settings

    settings = Settings.from_environ()
    if os.getpid() == 1 and settings.workers == 1:
        _leave_pid_1()
    try:
        if os.environ.get(TARGET_VARIABLE) == "ray":
            from mfimage.runtime.ray.preflight import import_serve

            import_serve()
            from mfimage.runtime.ray.serve import run
        elif settings.workers > 1:
            from mfimage.runtime.serving.http.supervisor import supervise as run
        else:
            from mfimage.runtime.serving.http.process import serve as run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "mfimage":
            raise
        raise BackendError(
            f"serve: {error.name} is not installed here", hint="pip install 'mfimage[serve]'"
        ) from None
    return run(_folder(options), settings)


def _leave_pid_1() -> None:
    """Go on in a child process, and let PID 1 reap: orphans become its children.

    A process that reaped all its children itself would take exit codes away from ``subprocess``.
    """
    passed_on = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}
    signals = {*passed_on, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    child = os.fork()
    if not child:
        os.setpgid(0, 0)  # away from the terminal's signals, which PID 1 passes on
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        return
    while True:
        number = signal.sigwait(signals)
        if number in passed_on:
            os.kill(child, number)
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == child:
                code = os.waitstatus_to_exitcode(ended[1])
                os._exit(code if code >= 0 else 128 - code)


def call(options: argparse.Namespace) -> int:
    """Read records from a file, or lines of stdin, and write the result of each.

    The first record that fails ends it with exit code 1; on stdout, results before it are
    written. A file of results appears when it is complete.
    """
    from mfimage.runtime.loading.loader import load_folder
    from mfimage.runtime.records import run, streams
    from mfimage.runtime.records.files import open_sink, open_source
    from mfimage.runtime.records.formats import choose_format

    streams.refuse_same(input=options.input, output=options.output)
    with streams.ended_by_sigterm(), streams.results(options.output) as out:
        fn = load_folder(_folder(options), options.function)  # which may register formats
        form = choose_format(options.output, options.output_format, option="output_format")
        with (
            open_source(options.input, options.format, fn) as source,
            open_sink(out, form, fn) as sink,
        ):
            outcomes = run.invoke_each(fn, source.payloads())
            unit = source.unit
            run.stop_at_failure(outcomes, sink.append_json, sink.flush, name=fn.name, unit=unit)
    return 0


def check(options: argparse.Namespace) -> int:
    """Load the function and replay its recorded examples; exit code 1 if a result differs."""
    from mfimage.runtime.loading.loader import load_folder
    from mfimage.runtime.records import run, streams

    with streams.results(streams.STREAM) as out:
        fn = load_folder(_folder(options), options.function)
        given = {"relative": options.rtol, "absolute": options.atol}
        tolerance = run.Tolerance(**{k: v for k, v in given.items() if v is not None})
        differences = list(run.replay(fn, tolerance))
        out.write(run.report(fn, differences))
    for difference in differences:
        sys.stderr.write(f"{difference}\n")
    return 1 if differences else 0


def batch(options: argparse.Namespace) -> int:
    """Run the function over files of records and write the results to a folder, in parts.

    The same command again runs the parts that are left. Exit code 3: some records have no result;
    errors.jsonl lists them.
    """
    from mfimage.runtime.batch.command import run

    return run(_folder(options), options)


def _folder(options: argparse.Namespace) -> Path:
    return options.folder or function_folder()


if __name__ == "__main__":
    sys.exit(main())
