"""The life cycle of a server process.

The socket is open and ``/healthz`` answers before the function is loaded, in a thread. SIGTERM
makes the server not ready at once; what is in flight is answered; then the process ends with 0.
A second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from mfimage.errors import MfimageError, OptionError
from mfimage.package.spec import FunctionSpec, parse_spec
from mfimage.runtime.calls.coroutines import new_loop
from mfimage.runtime.layout import FUNCTION_JSON
from mfimage.runtime.serving import logs
from mfimage.runtime.serving.app import App
from mfimage.runtime.serving.content import MediaTypes
from mfimage.runtime.serving.contract import routes
from mfimage.runtime.serving.metrics import Metrics
from mfimage.runtime.serving.served import Served
from mfimage.runtime.serving.server import Server, open_socket
from mfimage.runtime.serving.services import Services
from mfimage.runtime.settings import Settings

if TYPE_CHECKING:
    from mfimage.runtime.loading.loader import LiveFunction

FAILED = 1
# Threads that compute in Python give the server's loop a turn this often: the default, 5 ms,
# is too long when a response takes several turns.
_SWITCH = 0.001

log = logging.getLogger("mfimage.serving")


class Process:
    """One process that serves the function whose package is in ``folder``.

    A patient one opens its socket only when the function is loaded, because other processes serve
    it meanwhile.
    """

    def __init__(
        self, folder: Path, settings: Settings, *, patient: bool = False,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self._folder = folder
        self._settings = settings
        self._on_ready = on_ready
        out = logs.configure(settings.log_level)
        self._code = 0
        self._fn: LiveFunction | None = None
        self._loop = new_loop()
        self._loaded = asyncio.Event()
        self._signalled = False
        later = self._loop.call_later
        self._access = logs.AccessLog(out, later) if settings.access_log else None
        served = Served.alone(read_spec(folder))
        self._services = Services(
            served=served, settings=settings, metrics=Metrics(), loop=self._loop
        )
        app = App(self._services, routes(served), access=self._access)
        self._server = Server(app, settings, self._loaded if patient else None)

    def run(self, sock: socket.socket, *, lifeline: int | None = None) -> int:
        """Serve until a signal, or until ``lifeline`` is readable; return the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        sys.setswitchinterval(_SWITCH)
        if lifeline is not None:
            self._loop.add_reader(lifeline, self._orphaned, lifeline)
        threading.Thread(target=self._load, name="mfimage-load", daemon=True).start()
        self._loop.run_until_complete(self._server.serve(sockets=[sock]))
        return self._end()

    def _on_signal(self, number: int, frame: object) -> None:
        if self._signalled:
            self._leave(128 + number)
        self._signalled = True
        self._call(self._server.stop, number)

    def _orphaned(self, lifeline: int) -> None:
        self._loop.remove_reader(lifeline)
        self._server.stop()

    def _load(self) -> None:
        """Load the function; in a thread."""
        started = time.monotonic()
        # What is loaded stays: collecting garbage in it makes loading slower, and later, about
        # once a second under load, delayed every request by 70 ms, with scikit-learn imported.
        gc.disable()
        try:
            fn = load_whole(self._folder)
            media_types = MediaTypes.of(fn.spec, fn, data=fn.data)
            self._call(self._start, fn, media_types, round(time.monotonic() - started, 3))
            gc.collect()
            gc.freeze()
            gc.enable()
        except BaseException as error:  # noqa: BLE001  (whatever it is, nothing can be served)
            self._call(self._fail, error)

    def _call(self, callback: Callable[..., None], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(callback, *args)

    def _start(self, fn: LiveFunction, media_types: MediaTypes, seconds: float) -> None:
        self._fn = fn
        self._services.by_name[fn.name].start(fn, media_types)
        self._services.started()
        self._on_ready()
        self._loaded.set()
        extra = {"function": fn.name, "digest": fn.digest, "seconds": seconds}
        log.info("ready: POST /%s", fn.name, extra=extra)

    def _fail(self, error: BaseException) -> None:
        name = self._services.served.title
        if isinstance(error, MfimageError):
            log.error("%s cannot be loaded: %s", name, error, extra={"hint": error.hint})
        else:
            log.error("%s cannot be loaded", name, exc_info=error)
        self._code = FAILED
        self._server.abort()

    def _end(self) -> int:
        if self._server.cut:
            log.error("ended with %d requests unanswered", self._server.cut)
            self._code = FAILED
        if not self._services.close():
            # A thread still loads or computes: waiting for it may take forever, and ending
            # Python under it may crash.
            self._leave(self._code)
        if self._fn is not None:
            self._fn.close()
        self._loop.close()
        self._flush()
        return self._code

    def _flush(self) -> None:
        if self._access is not None:
            self._access.flush()
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()

    def _leave(self, code: int) -> NoReturn:
        log.info("exit %d", code)
        self._flush()
        os._exit(code)


def read_spec(folder: Path) -> FunctionSpec:
    """Read ``function.json``, which describes the function before it is loaded."""
    path = folder / FUNCTION_JSON
    try:
        data = path.read_bytes()
    except OSError as error:
        raise OptionError(
            f"{path}: {error.strerror}", hint="MFIMAGE_FUNCTION names the package's folder"
        ) from None
    return parse_spec(data, where=str(path))


def load_whole(folder: Path) -> LiveFunction:
    """Load a function and all that it will read, so that the first request need not."""
    from mfimage.runtime.loading.loader import load_folder

    fn = load_folder(folder)
    required = fn.spec.parameter_schema.get("required", ())
    for name in fn.params:
        try:
            fn.params[name]
        except Exception:
            if name in required:
                raise
            log.warning("%s: artifact %r cannot be loaded", fn.name, name, exc_info=True)
    return fn


def serve(folder: Path, settings: Settings) -> int:
    """Serve the function whose package is in ``folder``; return the exit code."""
    process = Process(folder, settings)
    return process.run(open_socket(settings))
