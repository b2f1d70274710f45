"""The process of a worker: how it starts, how it ends, what is said of its end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

_BOOT = (
    "import sys; sys.path.insert(0, sys.argv[3])\n"
    "from mfimage.runtime.worker.lifeline import die_with\n"
    "die_with(int(sys.argv[2]))\n"
    "from mfimage.runtime.worker.process import main\n"
    "main(int(sys.argv[1]))"
)
# Of the caller's interpreter, not of the worker's.
_NOT_INHERITED = ("PYTHONHOME", "PYTHONSTARTUP", "PYTHONEXECUTABLE", "__PYVENV_LAUNCHER__")
_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)
_LOOK = os.WEXITED | os.WNOHANG | os.WNOWAIT
_LOOK_SECONDS = 0.002

# Held while a worker starts, and while this process forks: a child would keep ends of pipes that
# are not known yet, and a worker lives as long as anybody has the end of its pipe.
STARTING = threading.RLock()


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What a worker needs to start.

    Attributes
    ----------
    name : str
        The function's.
    python : Path
        Interpreter of its environment.
    runtime : Path
        Folder with mfimage's runtime.
    start : bytes
        What the worker is to load; the payload of ``START``.
    timeout : float or None
        Seconds that one record may take.
    start_timeout : float
        Seconds until the function must be imported.
    """

    name: str
    python: Path
    runtime: Path
    start: bytes
    timeout: float | None
    start_timeout: float


class WorkerProcess:
    """A running worker.

    Attributes
    ----------
    sock : socket
        The way to it.
    told_to_stop : bool
        Whether it ended, or will, because this process wants it so.
    """

    def __init__(self, launch: Launch) -> None:
        self.told_to_stop = False
        self._owner = os.getpid()
        self._process: subprocess.Popen[bytes] | None = None
        with STARTING, contextlib.ExitStack() as stack:
            self.sock, theirs = socket.socketpair()
            stack.callback(theirs.close)
            lifeline, self._lifeline = os.pipe()
            stack.callback(os.close, lifeline)
            self._process = _spawn(launch, theirs, lifeline)

    def __del__(self) -> None:
        # Of one whose start failed or was interrupted; others were finished.
        if getattr(self, "_lifeline", -1) >= 0 and self._owner == os.getpid():
            self.finish(0)

    def stop(self) -> None:
        """End it, whatever it does, and what it has started; any thread may do that."""
        self.told_to_stop = True
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            # Before it is reaped: until then nobody else has its number. Others get SIGTERM:
            # the resource tracker of multiprocessing ignores it, and has to clean up.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGTERM)
            process.kill()
        process.wait()

    def finish(self, seconds: float) -> int | None:
        """Let it end by itself for so long, then end it.

        Returns
        -------
        int or None
            Its exit code if it ended by itself, negative for a signal.
        """
        limit = time.monotonic() + seconds
        ended = self._look()
        while ended is None and time.monotonic() < limit:
            time.sleep(_LOOK_SECONDS)
            ended = self._look()
        self.stop()
        self._close_files()
        return ended

    def forget(self) -> None:
        """Let go of a process that belongs to the one that this one was forked from."""
        if self._process is not None:
            self._process.returncode = 0  # it is not ours to wait for
        self._close_files()

    def _look(self) -> int | None:
        """Return how it ended, if it did, and leave it to be reaped."""
        if self._process is None:
            return None
        try:
            found = os.waitid(os.P_PID, self._process.pid, _LOOK)
        except ChildProcessError:
            return self._process.returncode
        if found is None:
            return None
        return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status

    def _close_files(self) -> None:
        self.sock.close()
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1


def _spawn(launch: Launch, control: socket.socket, lifeline: int) -> subprocess.Popen[bytes]:
    passed = (control.fileno(), lifeline)
    return subprocess.Popen(
        [launch.python, "-I", "-c", _BOOT, *map(str, passed), launch.runtime],
        stdin=subprocess.DEVNULL,
        stdout=_stderr(),
        env=_environment(launch),
        pass_fds=passed,
        # Ctrl-C is for the caller; and what the worker starts can be ended with it.
        start_new_session=True,
    )


def _stderr() -> int:
    """Return where the function's output goes: this process's stderr, if it has one."""
    try:
        os.fstat(2)
    except OSError:
        return subprocess.DEVNULL
    return 2


def _environment(launch: Launch) -> dict[str, str]:
    result = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    folder = launch.python.parent
    # The worker itself looks at none of these; Python processes that the function starts do.
    result["PYTHONPATH"] = str(launch.runtime)
    result["PYTHONNOUSERSITE"] = "1"
    result["VIRTUAL_ENV"] = str(folder.parent)
    result["PATH"] = os.pathsep.join([str(folder), result.get("PATH", os.defpath)])
    return result


def describe_end(ended: int | None) -> tuple[str, str | None]:
    """Return what happened to a process that ended unasked, and a hint.

    Parameters
    ----------
    ended : int or None
        Its exit code, negative for a signal; None when it had not ended.
    """
    if ended is None:
        return "hung up", None
    if ended >= 0:
        return f"ended with exit status {ended}", None
    hint = None
    if ended == -signal.SIGKILL:
        hint = "the kernel does that when memory runs out: use fewer workers, or more memory"
    elif -ended in _CRASHES:
        hint = "compiled code crashed; the traceback is on stderr"
    return f"was killed by {_signal_name(-ended)} ({signal.strsignal(-ended)})", hint


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
