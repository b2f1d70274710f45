"""The life cycle of a server process.

The socket is open and ``/healthz`` answers before functions are loaded, in a thread. SIGTERM
makes the server not ready at once; what is in flight is answered; then the process ends with 0.
A second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from mfimage.runtime.calls.coroutines import new_loop
from mfimage.runtime.layout import MODEL_VARIABLE
from mfimage.runtime.loading.packages import shown
from mfimage.runtime.serving import logs
from mfimage.runtime.serving.apart import Apart, group
from mfimage.runtime.serving.app import App
from mfimage.runtime.serving.contract import routes
from mfimage.runtime.serving.http.server import Server, open_socket
from mfimage.runtime.serving.loads import Loads
from mfimage.runtime.serving.metrics import Metrics, counts_in_files
from mfimage.runtime.serving.served import Served
from mfimage.runtime.serving.service import Service
from mfimage.runtime.serving.services import Services
from mfimage.runtime.settings import Settings

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
        self, folder: Path, settings: Settings, *, name: str = "", patient: bool = False,
        on_ready: Callable[[], None] = lambda: None, on_leave: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._on_ready = on_ready
        self._on_leave = on_leave
        out = logs.configure(settings.log_level)
        self._code = 0
        self._loop = new_loop()
        self._loaded = asyncio.Event()
        self._signalled = False
        later = self._loop.call_later
        self._access = logs.AccessLog(out, later) if settings.access_log else None
        served = Served.in_folder(folder, settings.default_function).placed(settings)
        metrics = Metrics(several=served.several)
        self._services = Services(
            served=served, settings=settings, metrics=metrics, loop=self._loop
        )
        own, *others = group(folder)
        self._loads = Loads(folder, self._services, own, self._change)
        self._apart = [
            Apart(
                folder, self._services, names, changed=self._change, ended=self._on_end,
                identity=f"{name}.{number}" if name else "",
            )
            for number, names in enumerate(others)
        ]  # fmt: skip
        app = App(self._services, routes(served), access=self._access)
        self._server = Server(app, settings, self._loaded if patient else None)

    def run(self, sock: socket.socket, *, lifeline: int | None = None) -> int:
        """Serve until a signal, or until ``lifeline`` is readable; return the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        sys.setswitchinterval(_SWITCH)
        if lifeline is not None:
            self._loop.add_reader(lifeline, self._orphaned, lifeline)
        for apart in self._apart:
            self._loop.run_until_complete(apart.start())
        self._loads.start()
        if self._services.loaded:  # all on demand
            self._ready()
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

    def _call(self, callback: Callable[..., None], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(callback, *args)

    def _change(self, service: Service, error: BaseException | None) -> None:
        """See whether all functions are loaded, or one alone cannot be."""
        if error is not None and not self._services.served.several:
            self._code = FAILED
            self._server.abort()
        elif not self._loaded.is_set() and self._services.loaded:
            self._ready()

    def _ready(self) -> None:
        self._services.started()
        self._on_ready()
        self._loaded.set()
        if self._services.served.several:
            log.info("ready: %s", self._services.served.title)

    def _on_end(self, apart: Apart) -> None:
        log.error("the process of %s has ended", shown(list(apart.names)))
        self._code = FAILED
        self._server.abort()

    def _end(self) -> int:
        if self._server.cut:
            log.error("ended with %d requests unanswered", self._server.cut)
            self._code = FAILED
        if not (self._services.close() and self._loads.close()):
            # A thread still loads or computes: waiting for it may take forever, and ending
            # Python under it may crash.
            self._leave(self._code)
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
        self._on_leave()
        os._exit(code)


def note_ignored() -> None:
    """Log what the server does not use, though a platform sets it."""
    if os.environ.get(MODEL_VARIABLE):
        log.info("%s is ignored: the function's artifacts are in its package", MODEL_VARIABLE)


def serve(folder: Path, settings: Settings) -> int:
    """Serve what is in an image's folder; return the exit code."""
    with contextlib.ExitStack() as stack:
        if len(group(folder)) > 1:
            stack.enter_context(counts_in_files("functions with modules of one name"))
        process = Process(folder, settings, on_leave=stack.close)
        note_ignored()
        return process.run(open_socket(settings))
