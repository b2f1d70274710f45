"""The entrypoint of every image: ``python -m mfimage.runtime serve|call|check``."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from mfimage.errors import MfimageError
from mfimage.runtime.layout import FUNCTION_VARIABLE, function_folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit code."""
    options = _parser().parse_args(arguments)
    verb: Callable[[Path], int] = options.verb
    try:
        return verb(options.folder or function_folder())
    except MfimageError as error:
        if error.__cause__ is not None:
            traceback.print_exception(error.__cause__)
        sys.stderr.write(f"error: {error}\n")
        if error.hint:
            sys.stderr.write(f"hint: {error.hint}\n")
        return 1
    except BrokenPipeError:
        return 1  # whoever reads has had enough


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mfimage.runtime", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for verb, text in (
        (serve, "answer HTTP"),
        (call, "read records as JSON lines, write results as JSON lines"),
        (check, "load the function and run its recorded examples again"),
    ):
        sub = verbs.add_parser(verb.__name__, help=text, description=verb.__doc__)
        sub.add_argument(
            "--folder", type=Path, help=f"the function's package (default: ${FUNCTION_VARIABLE})"
        )
        sub.set_defaults(verb=verb)
    return parser


def serve(folder: Path) -> int:
    """Answer HTTP until SIGTERM; the variables in docs/serving.md say how."""
    # PID 1 has no default for these, and importing what follows takes a moment.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))
    from mfimage.runtime.settings import Settings

    settings = Settings.from_environ()
    if settings.workers > 1:
        from mfimage.runtime.supervisor import supervise

        return supervise(folder, settings)
    from mfimage.runtime.serving import serve as serve_until_told

    return serve_until_told(folder, settings)


def call(folder: Path) -> int:
    """Read one record a line from stdin, write one result a line to stdout.

    The first record that fails ends it with exit code 1; results before it are written.
    """
    from mfimage.runtime import records
    from mfimage.runtime.loader import load_folder

    with _stdout_for_results() as out:
        records.call(load_folder(folder), sys.stdin.buffer, out)
    return 0


def check(folder: Path) -> int:
    """Load the function, run its recorded examples again; exit code 1 if a result differs."""
    from mfimage.runtime import records
    from mfimage.runtime.loader import load_folder

    with _stdout_for_results() as out:
        fn = load_folder(folder)
        differences = list(records.replay(fn))
        out.write(records.report(fn, differences))
    for difference in differences:
        sys.stderr.write(f"{difference}\n")
    return 1 if differences else 0


@contextlib.contextmanager
def _stdout_for_results() -> Iterator[IO[bytes]]:
    """Give stdout; whatever else is printed, by the function say, goes to stderr meanwhile."""
    sys.stdout.flush()
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        if out is not sys.__stdout__:
            yield out.buffer
            return
        # Printing from C code goes past ``sys.stdout``.
        with os.fdopen(os.dup(1), "wb") as results:
            os.dup2(2, 1)
            try:
                yield results
            finally:
                results.flush()
                os.dup2(results.fileno(), 1)


if __name__ == "__main__":
    sys.exit(main())
