"""The part of ``wget`` that KubeRay's probes use, for base images without it."""

from __future__ import annotations

import argparse
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import IO

# wget's own exit codes: a network failure, and an error response.
_NETWORK, _STATUS = 4, 8


def main(arguments: Sequence[str]) -> int:
    """Fetch a URL; return wget's exit code."""
    options = _parser().parse_args(arguments)
    problem, code = "", _NETWORK
    for _ in range(max(options.tries, 1)):
        try:
            with urllib.request.urlopen(options.url, timeout=options.timeout) as response:  # noqa: S310  (checked)
                _save(response, options.output)
            return 0
        except urllib.error.HTTPError as error:
            problem, code = f"server returned {error.code} {error.reason}", _STATUS
            break
        except OSError as error:
            problem, code = str(getattr(error, "reason", error)), _NETWORK
    if not options.quiet:
        sys.stderr.write(f"wget: {options.url}: {problem}\n")
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="wget",
        description=__doc__,
        epilog="For the full wget: mfimage build --apt wget.",
        allow_abbrev=False,
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="do not print errors")
    parser.add_argument("-t", "--tries", type=int, default=1, metavar="N")
    parser.add_argument("-T", "--timeout", type=float, default=60, metavar="SECONDS")
    parser.add_argument("-O", "--output-document", dest="output", required=True, metavar="FILE",
                        help="where to write; - is stdout")  # fmt: skip
    parser.add_argument("url", type=_url)
    return parser


def _url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"expected an http:// or https:// URL, got {text!r}")
    return text


def _save(response: IO[bytes], path: str) -> None:
    if path == "-":
        shutil.copyfileobj(response, sys.stdout.buffer)
        sys.stdout.flush()
        return
    with open(path, "wb") as file:  # noqa: PTH123  (pathlib is slow to import)
        shutil.copyfileobj(response, file)
