"""Several server processes for one function, and the parent that keeps them running.

The parent loads nothing. It forks the workers, which share the port (the kernel spreads
connections over them), reaps children, replaces workers, and passes on the signal to end. As
PID 1 it reaps orphans, too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import mmap
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from mfimage.errors import OptionError
from mfimage.runtime.serving import logs
from mfimage.runtime.serving.http.process import FAILED, Process, note_ignored
from mfimage.runtime.serving.http.server import open_socket
from mfimage.runtime.serving.metrics import count_as, counts_in_files, forget, worker_name
from mfimage.runtime.serving.served import Served
from mfimage.runtime.settings import Settings

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
# What a worker may need beyond the grace period to report what it cut off.
_SLACK = 3.0
_MAX_PAUSE = 30.0
_HEALTHY_AFTER = 10.0

log = logging.getLogger("mfimage.supervisor")


@dataclasses.dataclass(kw_only=True)
class _Worker:
    """A worker: its process, and when the next may be started."""

    index: int
    pid: int = 0
    born: float = 0.0
    pause: float = 0.0
    due: float = 0.0


class Supervisor:
    """The parent of all workers; they count requests in files in the folder ``counts``."""

    def __init__(self, folder: Path, settings: Settings, counts: Path) -> None:
        self._folder = folder
        self._counts = counts
        # Reserves the port, and finds one when it is 0; only the workers' own sockets listen.
        self._reserved = open_socket(settings, shared=True)
        port = self._reserved.getsockname()[1]
        self._settings = dataclasses.replace(settings, port=port)
        self._workers = [_Worker(index=index) for index in range(settings.workers)]
        # One byte a worker, shared with them: whether it has loaded the function.
        self._ready = mmap.mmap(-1, settings.workers)
        self._lifeline, self._held = os.pipe()
        self._ever_ready = False
        self._code = 0

    def run(self) -> int:
        """Keep the workers running until a signal; return the exit code."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        self._replace()
        while not self._code:
            number = self._wait(1.0)
            if number in (signal.SIGTERM, signal.SIGINT):
                return self._end(number)
            self._ever_ready = self._ever_ready or self._any_ready()
            self._reap()
            self._replace()
        self._end(signal.SIGINT)
        return self._code

    def _wait(self, seconds: float) -> int:
        found = signal.sigtimedwait(_SIGNALS, seconds)
        return found.si_signo if found else 0

    def _any_ready(self) -> bool:
        return any(self._ready[worker.index] for worker in self._workers if worker.pid)

    def _fork(self, worker: _Worker) -> None:
        # While others serve, a worker that is still loading would only answer 503.
        patient = self._any_ready() or (not self._ever_ready and worker.index > 0)
        sys.stdout.flush()
        worker.born = time.monotonic()
        worker.pid = os.fork()
        if not worker.pid:
            self._become(worker, patient=patient)

    def _become(self, worker: _Worker, *, patient: bool) -> None:
        """Be a worker, in the child; never return."""
        code = FAILED
        try:
            # Away from the terminal's signals: the parent passes one on, and a second forces.
            os.setpgid(0, 0)
            os.close(self._held)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: os._exit(0))
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            name = worker_name(worker.index)
            count_as(name)
            process = Process(
                self._folder, self._settings, name=name, patient=patient,
                on_ready=lambda: self._ready.__setitem__(worker.index, 1),
            )  # fmt: skip
            sock = open_socket(self._settings, shared=True)
            self._reserved.close()
            code = process.run(sock, lifeline=self._lifeline)
        except BaseException:
            log.exception("worker %d failed", worker.index)
        finally:
            os._exit(code)

    def _reap(self) -> None:
        for worker, code in self._ended():
            log.error("worker %d ended with %d", worker.index, code, extra={"pid": worker.pid})
            self._ready[worker.index] = 0
            forget(worker_name(worker.index), self._counts)
            worker.pid = 0
            now = time.monotonic()
            healthy = now - worker.born > _HEALTHY_AFTER
            worker.pause = 0.0 if healthy else min(worker.pause * 2 + 0.5, _MAX_PAUSE)
            worker.due = now + worker.pause
            if not self._ever_ready:
                log.error("no worker could load the function")
                self._code = FAILED

    def _ended(self) -> Iterator[tuple[_Worker, int]]:
        """Reap every child that has ended, orphans included; yield the workers, with exit codes."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                for worker in self._workers:
                    if worker.pid == ended[0]:
                        yield worker, os.waitstatus_to_exitcode(ended[1])

    def _replace(self) -> None:
        for worker in self._workers:
            if not worker.pid and not self._code and time.monotonic() >= worker.due:
                self._fork(worker)

    def _end(self, number: int) -> int:
        """Let every worker finish; return the exit code."""
        self._kill(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)
        deadline = time.monotonic() + self._settings.grace + _SLACK
        code = 0
        while any(worker.pid for worker in self._workers):
            again = self._wait(max(0.0, min(1.0, deadline - time.monotonic())))
            for worker, status in self._ended():
                worker.pid = 0
                code = code or status
            if again in (signal.SIGTERM, signal.SIGINT) or time.monotonic() > deadline:
                self._kill(signal.SIGKILL)
                return 128 + (again or signal.SIGKILL)
        return FAILED if code else 0

    def _kill(self, number: int) -> None:
        for worker in self._workers:
            if worker.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, number)


def supervise(folder: Path, settings: Settings) -> int:
    """Serve with several processes; return the exit code."""
    if sys.platform != "linux":
        raise OptionError(
            f"MFIMAGE_WORKERS: {settings.workers} processes share a port on Linux only",
            hint="set MFIMAGE_WORKERS=1",
        )
    logs.configure(settings.log_level)
    note_ignored()
    Served.in_folder(folder, settings.default_function)  # which says what is wrong with it
    with counts_in_files(f"MFIMAGE_WORKERS: {settings.workers} processes") as counts:
        return Supervisor(folder, settings, counts).run()
