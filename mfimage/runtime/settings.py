"""The server's settings, and the variables that they are read from."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mfimage.errors import OptionError
from mfimage.runtime.layout import FUNCTION, FUNCTION_VARIABLE
from mfimage.sizes import parse_size

_LEVELS = ("debug", "info", "warning", "error")
_PREFIX = re.compile(r"(/[\w.~!$&'()*+,;=:@%-]+)*/?", re.ASCII)
_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^/\s,]+")
# SageMaker starts every image with `serve`, calls it at this port, and mounts this folder.
_SAGEMAKER_PORT = 8080
_SAGEMAKER_FOLDER = Path("/opt/ml/model")
_FLAGS = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}


@dataclass(frozen=True, kw_only=True)
class Variable:
    """An environment variable, as documented."""

    name: str
    field: str  # of ``Settings``; empty for one that is read elsewhere
    default: str
    meaning: str
    parse: Callable[[str], Any] = str
    wanted: str = "text"
    # Platforms' own names for it: those that outrank it, and those that it outranks.
    above: tuple[str, ...] = ()
    below: tuple[str, ...] = ()

    def find(self, environ: Mapping[str, str]) -> str | None:
        """Return the name by which it is set, if it is; an empty one counts as not set."""
        names = (*self.above, self.name, *self.below)
        return next((name for name in names if environ.get(name)), None)

    def put(self, text: str, environ: MutableMapping[str, str]) -> None:
        """Set it, over the names of a platform that outrank it."""
        for name in self.above:
            environ.pop(name, None)
        environ[self.name] = text

    def read(self, text: str, name: str | None = None) -> Any:
        """Return the value of a text, or raise an ``OptionError`` that names the variable."""
        try:
            return self.parse(text.strip())
        except ValueError:
            raise OptionError(
                f"{name or self.name}: expected {self.wanted}, got {text!r}",
                hint=f"the default is {self.default}",
            ) from None


def _is_sagemakers(name: str) -> bool:
    return name.startswith("SAGEMAKER_")


def _route(text: str) -> str | None:
    if text == "none":
        return None
    if not text.startswith("/"):
        raise ValueError
    return text


def _one_of(values: Mapping[str, Any], text: str) -> Any:
    if text.lower() not in values:
        raise ValueError
    return values[text.lower()]


def path_prefix(text: str) -> str:
    """Return a path prefix without its last slash; ``ValueError`` if it is not one."""
    if not _PREFIX.fullmatch(text):
        raise ValueError
    return text.rstrip("/")


def _origins(text: str) -> tuple[str, ...]:
    if text == "none":
        return ()
    origins = tuple(each.strip().rstrip("/") for each in text.split(",") if each.strip())
    if not origins or not all(map(_ORIGIN.fullmatch, origins)):
        raise ValueError
    return origins


def _setting(
    default: str,
    meaning: str,
    parse: Callable[[str], Any] = str,
    wanted: str = "text",
    *,
    name: str | None = None,
    value: Any = dataclasses.MISSING,
    **more: Any,
) -> Any:
    """Return a field with its variable; ``value`` is the default that has no text."""
    variable = {"default": default, "meaning": meaning, "parse": parse, "wanted": wanted, **more}
    value = parse(default) if value is dataclasses.MISSING else value
    return dataclasses.field(default=value, metadata={"name": name, "variable": variable})


def _whole(
    default: str, low: int, high: int, meaning: str, *, what: str = "a whole number", **more: Any
) -> Any:
    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError
        return value

    return _setting(default, meaning, parse, f"{what} from {low} to {high}", **more)


def _seconds(default: str, meaning: str) -> Any:
    def parse(text: str) -> float:
        value = float(text.removesuffix("s"))
        if not math.isfinite(value) or value < 0:
            raise ValueError
        return value

    return _setting(default, meaning, parse, "seconds of at least 0, as 2.5")


@dataclass(frozen=True, kw_only=True)
class MaxLoaded:
    """How many functions may be loaded at once, or how much memory they may take; one is None."""

    functions: int | None = None
    size: int | None = None


def _max_loaded(text: str) -> MaxLoaded | None:
    if text == "none":
        return None
    if text.isdecimal():
        found = MaxLoaded(functions=int(text))
    else:
        found = MaxLoaded(size=parse_size(text, field="MFIMAGE_MAX_LOADED"))
    if not (found.functions or found.size):
        raise ValueError
    return found


_LOADS = ("eager", "lazy")
_PAGES = ("1", "0", "frame")
_THE_ONLY_ONE = "the only one"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The server's settings; each is read from a variable, ``MFIMAGE_<FIELD>`` unless named."""

    port: int = _whole(
        "8000", 0, 65535,
        "The port to listen on; 8080 on SageMaker where it is not set. `AIP_HTTP_PORT` and "
        "`SAGEMAKER_BIND_TO_PORT`, which Vertex AI and SageMaker set, outrank it.",
        what="a port", name="PORT", above=("AIP_HTTP_PORT", "SAGEMAKER_BIND_TO_PORT"),
    )  # fmt: skip
    host: str = _setting(
        "0.0.0.0",  # noqa: S104  (a container is reached from outside)
        "The address to listen on; `::` for IPv6.",
    )
    workers: int = _whole(
        "1", 1, 512,
        "Processes, each with its own copy of the function. One that dies is replaced. "
        "`WEB_CONCURRENCY` counts where it is not set.",
        below=("WEB_CONCURRENCY",),
    )  # fmt: skip
    threads: int | None = _whole(
        "40; 1 for batch functions", 1, 4096,
        "Maximum number of concurrent calls of the function in a process. "
        "`1` is for models that are not thread-safe.",
        value=None,
    )  # fmt: skip
    max_batch: int = _whole(
        "64", 1, 1_000_000, "Maximum number of records in one call of a batch function."
    )
    batch_wait: float = _seconds(
        "0", "Seconds that a call of a batch function waits for more records."
    )
    max_body: int = _setting(
        "16MiB",
        "Maximum size of a request body; a larger one gets 413.",
        partial(parse_size, field="MFIMAGE_MAX_BODY"),
        "a size, as 16777216 or 16MiB",
    )
    max_waiting: int = _whole(
        "2048", 1, 10_000_000,
        "Maximum number of records that wait or run in a process; more get 503.",
    )  # fmt: skip
    timeout: float = _seconds(
        "60",
        "Seconds until a request without an answer gets 504; `0` for never. Headers and body "
        "must arrive as soon, else 408; with `0` within 60 seconds.",
    )
    grace: float = _seconds("25", "Seconds after SIGTERM in which requests in flight can finish.")
    drain: float = _seconds(
        "1",
        "Seconds after SIGTERM in which new connections are still served, while load "
        "balancers learn of the shutdown.",
    )
    keep_alive: int = _whole(
        "75", 1, 86400,
        "Seconds that an idle connection stays open; must be longer than the load "
        "balancer's idle timeout, or clients see 502.",
    )  # fmt: skip
    log_level: str = _setting(
        "info",
        "`debug`, `info`, `warning` or `error`.",
        partial(_one_of, {level: level for level in _LEVELS}),
        f"one of {', '.join(_LEVELS)}",
    )
    root_path: str = _setting(
        "/",
        "Path prefix under which a proxy publishes the server, as `/models/iris`. Requests "
        "are served with and without it; a proxy's `X-Forwarded-Prefix` outranks it in "
        "`/openapi.json`.",
        path_prefix,
        "a path, as /models/iris",
    )
    cors_origins: tuple[str, ...] = _setting(
        "none",
        "Origins whose pages may call the server, as `https://a.example,http://localhost:3000`, "
        "or `*` for all.",
        _origins,
        "origins separated by commas, as https://a.example, or * or none",
    )
    load: str = _setting(
        "eager",
        "`eager` loads every function before the server is ready; `lazy` loads each when it is "
        "first called.",
        partial(_one_of, {each: each for each in _LOADS}),
        f"one of {', '.join(_LOADS)}",
    )
    max_loaded: MaxLoaded | None = _setting(  # noqa: RUF009  (it is a field)
        "none",
        "Maximum number of functions that a process has loaded, as `50`, or their memory, as "
        "`2GiB`. Above it the least recently used is dropped; one in use never is. Needs "
        "`MFIMAGE_LOAD=lazy`.",
        _max_loaded,
        "a number of functions of at least 1, as 50, or a size, as 2GiB, or none",
    )
    default_function: str | None = _setting(
        _THE_ONLY_ONE,
        "Function of a request that names none, as those of some platforms.",
        lambda text: None if text == _THE_ONLY_ONE else text,
        "the name of a function",
    )
    access_log: bool = _setting(
        "1", "`0` turns off the log line for each request.", partial(_one_of, _FLAGS), "1 or 0"
    )
    page: str = _setting(
        "1",
        "`0` turns off the page that a browser gets from `/`; `frame` allows pages of any origin "
        "to embed it.",
        partial(_one_of, {each: each for each in _PAGES}),
        f"one of {', '.join(_PAGES)}",
    )

    health_route: str | None = _setting(
        "none",
        "Path that answers as `/readyz` does, as `/health`; Vertex AI sets it.",
        _route, "a path, as /health", name="AIP_HEALTH_ROUTE",
    )  # fmt: skip
    predict_route: str | None = _setting(
        "none",
        "Path that answers `instances` with `predictions`, as `/predict`; Vertex AI sets it.",
        _route, "a path, as /predict", name="AIP_PREDICT_ROUTE",
    )  # fmt: skip

    @property
    def max_held(self) -> int:
        """Maximum size of all request bodies that a process holds at once."""
        return 16 * max(self.max_body, type(self).max_body)

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read the variables; an empty one counts as not set."""
        mounted = environ is None and _SAGEMAKER_FOLDER.is_dir()
        environ = os.environ if environ is None else environ
        given = {
            variable.field: variable.read(environ[name], name)
            for variable in VARIABLES
            if variable.field and (name := variable.find(environ))
        }
        if "port" not in given and (mounted or any(map(_is_sagemakers, environ))):
            given["port"] = _SAGEMAKER_PORT
        settings = cls(**given)
        if settings.max_loaded is not None and settings.load == "eager":
            raise OptionError(
                "MFIMAGE_MAX_LOADED: functions are loaded only before the server is ready",
                hint="set MFIMAGE_LOAD=lazy, too",
            )
        return settings


VARIABLES: tuple[Variable, ...] = (
    *(
        Variable(
            name=field.metadata["name"] or f"MFIMAGE_{field.name.upper()}",
            field=field.name,
            **field.metadata["variable"],
        )
        for field in dataclasses.fields(Settings)
    ),
    Variable(
        name=FUNCTION_VARIABLE,
        field="",
        default=FUNCTION,
        meaning="Folder of the function's package.",
    ),
)
