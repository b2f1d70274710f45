"""The server's settings, and the table of variables that they are read from."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from mfimage.errors import OptionError
from mfimage.runtime.layout import FUNCTION, FUNCTION_VARIABLE
from mfimage.sizes import parse_size

_LEVELS = ("debug", "info", "warning", "error")
_YES = ("1", "true", "yes", "on")
_NO = ("0", "false", "no", "off")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The server's settings; each field is read from one of ``VARIABLES``."""

    host: str = "0.0.0.0"  # noqa: S104  (a container is reached from outside)
    port: int = 8000
    workers: int = 1
    threads: int | None = None
    max_body: int = 16 * 1024**2
    max_batch: int = 64
    batch_wait: float = 0.0
    max_waiting: int = 2048
    timeout: float = 60.0
    grace: float = 25.0
    drain: float = 1.0
    keep_alive: int = 75
    log_level: str = "info"
    access_log: bool = True

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read the variables; an empty one counts as not set.

        Raises
        ------
        OptionError
            Naming the variable, what was expected and its value.
        """
        environ = os.environ if environ is None else environ
        given = {
            variable.field: variable.read(environ[variable.name])
            for variable in VARIABLES
            if variable.field and environ.get(variable.name)
        }
        return cls(**given)


@dataclass(frozen=True, kw_only=True)
class Variable:
    """A variable.

    Attributes
    ----------
    name : str
        Its name.
    field : str
        Its field in ``Settings``; empty for one that is read elsewhere.
    default : str
        The default, as in the documentation.
    meaning : str
        Description for the documentation.
    parse : callable
        Text to value; raises ``ValueError``.
    wanted : str
        Description of a valid value, for the error.
    """

    name: str
    field: str
    default: str
    meaning: str
    parse: Callable[[str], Any] = str
    wanted: str = "text"

    def read(self, text: str) -> Any:
        """Return the value of a text, or raise an ``OptionError`` that names the variable."""
        try:
            return self.parse(text.strip())
        except ValueError:
            raise OptionError(
                f"{self.name}: expected {self.wanted}, got {text!r}",
                hint=f"the default is {self.default}",
            ) from None


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError
        return value

    return parse


def _seconds(text: str) -> float:
    value = float(text.removesuffix("s"))
    if not math.isfinite(value) or value < 0:
        raise ValueError
    return value


def _flag(text: str) -> bool:
    if text.lower() not in _YES + _NO:
        raise ValueError
    return text.lower() in _YES


def _level(text: str) -> str:
    if text.lower() not in _LEVELS:
        raise ValueError
    return text.lower()


_COUNT = "a whole number of at least 1"
_TIME = "seconds of at least 0, as 2.5"

VARIABLES: tuple[Variable, ...] = (
    Variable(
        name="PORT",
        field="port",
        default="8000",
        meaning="The port to listen on.",
        parse=_whole(0, 65535),
        wanted="a port from 0 to 65535",
    ),
    Variable(
        name="MFIMAGE_HOST",
        field="host",
        default="0.0.0.0",  # noqa: S104
        meaning="The address to listen on; `::` for IPv6.",
    ),
    Variable(
        name="MFIMAGE_WORKERS",
        field="workers",
        default="1",
        meaning="Processes, each with its own copy of the function. One that dies is replaced.",
        parse=_whole(1, 512),
        wanted="a whole number from 1 to 512",
    ),
    Variable(
        name="MFIMAGE_THREADS",
        field="threads",
        default="40; 1 for batch functions",
        meaning="Maximum number of concurrent calls of the function in a process. "
        "`1` is for models that are not thread-safe.",
        parse=_whole(1, 4096),
        wanted=_COUNT,
    ),
    Variable(
        name="MFIMAGE_MAX_BATCH",
        field="max_batch",
        default="64",
        meaning="Maximum number of records in one call of a batch function.",
        parse=_whole(1, 1_000_000),
        wanted=_COUNT,
    ),
    Variable(
        name="MFIMAGE_BATCH_WAIT",
        field="batch_wait",
        default="0",
        meaning="Seconds that a call of a batch function waits for more records.",
        parse=_seconds,
        wanted=_TIME,
    ),
    Variable(
        name="MFIMAGE_MAX_BODY",
        field="max_body",
        default="16MiB",
        meaning="Maximum size of a request body; a larger one gets 413.",
        parse=partial(parse_size, field="MFIMAGE_MAX_BODY"),
        wanted="a size, as 16777216 or 16MiB",
    ),
    Variable(
        name="MFIMAGE_MAX_WAITING",
        field="max_waiting",
        default="2048",
        meaning="Maximum number of records that wait or run in a process; more get 503.",
        parse=_whole(1, 10_000_000),
        wanted=_COUNT,
    ),
    Variable(
        name="MFIMAGE_TIMEOUT",
        field="timeout",
        default="60",
        meaning="Seconds until a request without an answer gets 504; `0` for never.",
        parse=_seconds,
        wanted=_TIME,
    ),
    Variable(
        name="MFIMAGE_GRACE",
        field="grace",
        default="25",
        meaning="Seconds after SIGTERM in which requests in flight can finish.",
        parse=_seconds,
        wanted=_TIME,
    ),
    Variable(
        name="MFIMAGE_DRAIN",
        field="drain",
        default="1",
        meaning="Seconds after SIGTERM in which new connections are still served, while load "
        "balancers learn of the shutdown.",
        parse=_seconds,
        wanted=_TIME,
    ),
    Variable(
        name="MFIMAGE_KEEP_ALIVE",
        field="keep_alive",
        default="75",
        meaning="Seconds that an idle connection stays open; must be longer than the load "
        "balancer's idle timeout, or clients see 502.",
        parse=_whole(1, 86400),
        wanted="a whole number of seconds",
    ),
    Variable(
        name="MFIMAGE_LOG_LEVEL",
        field="log_level",
        default="info",
        meaning="`debug`, `info`, `warning` or `error`.",
        parse=_level,
        wanted="one of debug, info, warning, error",
    ),
    Variable(
        name="MFIMAGE_ACCESS_LOG",
        field="access_log",
        default="1",
        meaning="`0` turns off the log line for each request.",
        parse=_flag,
        wanted="1 or 0",
    ),
    Variable(
        name=FUNCTION_VARIABLE,
        field="",
        default=FUNCTION,
        meaning="Folder of the function's package.",
    ),
)
