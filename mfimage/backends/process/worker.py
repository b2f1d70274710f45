"""One worker: its process, from start to end, and the requests sent to it.

One thread uses a worker at a time. The worker replies in order, so a request may stay with it while
another thread takes over: the next thread to read also gets the replies to earlier requests, and
stores each in its request.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from mfimage.backends.calls import Resend, invalid_reply, remote_error
from mfimage.errors import BackendError
from mfimage.runtime.worker import BOOT, frames

# These configure the caller's interpreter, not the worker's.
_NOT_INHERITED = ("PYTHONHOME", "PYTHONSTARTUP", "PYTHONEXECUTABLE", "__PYVENV_LAUNCHER__")
_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)
_POLL_SECONDS = 0.002
_BUFFER = 1 << 20
_DYING_SECONDS = 1.0

# Held while a worker starts and while this process forks. Else a child could inherit an end of a
# pipe that is not registered yet, and a worker lives as long as any process holds its pipe.
STARTING = threading.RLock()


@dataclass(frozen=True, kw_only=True)
class WorkerLaunch:
    """What a worker needs to start."""

    name: str  # the function's
    python: Path  # interpreter of its environment
    runtime: Path | None  # folder with mfimage's runtime; None if it is installed
    start: bytes  # what the worker loads: the payload of frames.START
    timeout: float | None  # seconds that one record may take
    start_timeout: float  # seconds until the function must be imported


def _spawn(launch: WorkerLaunch, control: socket.socket, lifeline: int) -> subprocess.Popen[bytes]:
    environment = {name: text for name, text in os.environ.items() if name not in _NOT_INHERITED}
    folder = launch.python.parent
    # The worker itself reads none of these; Python processes that the function starts do.
    runtime = [str(launch.runtime)] if launch.runtime else []
    environment["PYTHONPATH"] = os.pathsep.join(runtime)
    environment["PYTHONNOUSERSITE"] = "1"
    environment["VIRTUAL_ENV"] = str(folder.parent)
    environment["PATH"] = os.pathsep.join([str(folder), environment.get("PATH", os.defpath)])
    output = 2  # the function's output goes to this process's stderr, if it has one
    try:
        os.fstat(output)
    except OSError:
        output = subprocess.DEVNULL
    passed = (control.fileno(), lifeline)
    return subprocess.Popen(
        [launch.python, "-I", "-c", BOOT, *map(str, passed), *runtime],
        stdin=subprocess.DEVNULL,
        stdout=output,
        env=environment,
        pass_fds=passed,
        # Ctrl-C is for the caller; and what the worker starts can be ended with it.
        start_new_session=True,
    )


def _describe_end(ended: int | None) -> tuple[str, str | None]:
    """Return what happened to a process that ended unasked, and a hint; None: it has not ended."""
    if ended is None:
        return "closed its connection", None
    if ended >= 0:
        return f"ended with exit status {ended}", None
    hint = None
    if ended == -signal.SIGKILL:
        hint = "the kernel does that when memory runs out: use fewer workers, or more memory"
    elif -ended in _CRASHES:
        hint = "compiled code crashed; the traceback is on stderr"
    try:
        name = signal.Signals(-ended).name
    except ValueError:
        name = f"signal {-ended}"
    return f"was killed by {name} ({signal.strsignal(-ended)})", hint


@dataclass(eq=False, slots=True)
class WorkerRequest:
    """A request that was sent, and its reply once it has arrived."""

    worker: Worker
    records: int
    reply: frames.Frame | Exception | None = None


class Worker:
    """A worker, for one thread at a time; ``stop`` alone is for any thread."""

    def __init__(self, launch: WorkerLaunch) -> None:
        self._launch = launch
        self._owner = os.getpid()
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False  # by this process, which has ended it or is about to
        self._limit = 0.0
        # Name of the function's first parameter; None until the function is imported.
        self.data: str | None = None
        self.pending: deque[WorkerRequest] = deque()  # without a reply, in order
        self.alive = True
        self.user = 0  # the thread that uses it; 0 for none
        with STARTING, contextlib.ExitStack() as stack:
            self._sock, theirs = socket.socketpair()
            stack.callback(theirs.close)
            lifeline, self._lifeline = os.pipe()
            stack.callback(os.close, lifeline)
            self._process = _spawn(launch, theirs, lifeline)
        for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            self._sock.setsockopt(socket.SOL_SOCKET, buffer, _BUFFER)
        self._set_timeout(launch.start_timeout)
        with contextlib.suppress(OSError):  # wait_ready raises it
            self._send(frames.START, launch.start)

    def __del__(self) -> None:
        # For one whose start failed or was interrupted; all others were finished.
        if getattr(self, "_lifeline", -1) >= 0 and self._owner == os.getpid():
            self._finish(0)

    def is_ready(self) -> bool:
        """Return whether ``wait_ready`` would return at once."""
        if self.data is not None:
            return True
        try:
            self._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            pass  # it is gone, which wait_ready raises
        return True

    def wait_ready(self) -> None:
        """Wait until the function is imported; raise why it cannot be."""
        if self.data is not None:
            return
        try:
            frame = frames.receive_frame(self._sock)
        except (EOFError, OSError) as error:
            raise self._lost(error) from None
        if frame.kind == frames.FAILURE:
            raise remote_error(self._launch.name, frame.payload)
        if frame.kind != frames.READY:
            raise self._lost(frames.ProtocolError())
        self._set_timeout(self._launch.timeout or 0.0)
        self.data = str(json.loads(frame.payload)["data"])

    def post(self, kind: int, payload: bytes, records: int = 1) -> WorkerRequest:
        """Send a request; raise ``Resend`` when the worker is gone."""
        request = WorkerRequest(self, records)
        try:
            self._send(kind, payload)
        except (EOFError, OSError) as error:
            # Replies that the worker sent before it ended count.
            self._sock.setblocking(False)
            with contextlib.suppress(EOFError, OSError):
                while self.pending:
                    self._receive_next()
            self._fail(self._lost(error))
            raise Resend from None
        self.pending.append(request)
        return request

    def collect(self, request: WorkerRequest) -> None:
        """Wait until a request has its reply."""
        while request.reply is None:
            try:
                self._receive_next()
            except (EOFError, OSError) as error:
                self._fail(self._lost(error))

    def drop(self, error: Exception, seconds: float = 0) -> None:
        """End the worker, which gets some seconds to end by itself."""
        # The request that it may have begun gets ``error`` as its reply; the others can be resent.
        self._fail(error)
        self._finish(seconds)

    def stop(self) -> None:
        """Kill it and what it has started; thread-safe."""
        self._stopped = True
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            # Before it is reaped: until then its number is not reused. The group gets SIGTERM,
            # which multiprocessing's resource tracker ignores: it has to clean up.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGTERM)
            process.kill()
        process.wait()

    def hang_up(self) -> None:
        """Close the connection, so that the worker ends by itself."""
        self._sock.close()

    def forget(self) -> None:
        """Release a worker that belongs to the parent of this forked process."""
        if self._process is not None:
            self._process.returncode = 0  # it is not ours to wait for
        self._close_files()
        self._fail(Resend())

    def _send(self, kind: int, payload: bytes) -> None:
        """Send all of a message, and read replies meanwhile: else both sides may block writing."""
        rest: memoryview | None = None
        while rest is None or rest:
            busy = bool(self.pending)
            flags = socket.MSG_NOSIGNAL | (socket.MSG_DONTWAIT if busy else 0)
            try:
                if rest is None:
                    rest = frames.send_frame(self._sock, kind, payload, flags=flags)
                else:
                    rest = rest[self._sock.send(rest, flags) :]
            except BlockingIOError:
                if not busy:
                    raise
                self._receive_next()

    def _receive_next(self) -> None:
        request = self.pending[0]
        if self._launch.timeout:
            self._set_timeout(self._launch.timeout * request.records)
        request.reply = frames.receive_frame(self._sock)
        self.pending.popleft()

    def _set_timeout(self, seconds: float) -> None:
        """Limit each read and write, 0 for no limit; the kernel keeps the time."""
        if seconds != self._limit:
            self._limit = seconds
            micros = max(1, int(seconds * 1e6)) if seconds else 0
            limit = struct.pack("ll", *divmod(micros, 1_000_000))
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def _fail(self, error: Exception) -> None:
        self.alive = False
        while self.pending:
            self.pending.popleft().reply = error
            error = Resend()  # only the first can have been begun

    def _lost(self, error: Exception) -> BackendError:
        """Return why the reply is missing, and end what is left of the worker."""
        name, stopped = self._launch.name, self._stopped
        doing = "ran" if self.data is not None else "was imported"
        invalid, slow = isinstance(error, frames.ProtocolError), isinstance(error, BlockingIOError)
        ended = self._finish(0 if stopped or invalid or slow else _DYING_SECONDS)
        if stopped:
            return BackendError(f"{name} was closed while it {doing}")
        if invalid:
            return invalid_reply(name)
        if slow:
            return BackendError(
                f"{name} took longer than {self._limit:g} s; its worker was stopped",
                hint="allow more with timeout=" if self.data is not None else None,
            )
        how, hint = _describe_end(ended)
        return BackendError(f"{name}: its worker {how} while it {doing}", hint=hint)

    def _finish(self, seconds: float) -> int | None:
        """Let it end by itself, then kill it; return its own exit code (-N: signal N)."""
        limit = time.monotonic() + seconds
        ended = self._poll()
        while ended is None and time.monotonic() < limit:
            time.sleep(_POLL_SECONDS)
            ended = self._poll()
        self.stop()
        self._close_files()
        return ended

    def _poll(self) -> int | None:
        """Return its exit code if it ended, without reaping it."""
        if self._process is None:
            return None
        try:
            found = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return self._process.returncode
        if found is None:
            return None
        return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status

    def _close_files(self) -> None:
        self._sock.close()
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1


def start_worker(launch: WorkerLaunch) -> Worker:
    """Start a worker, from a new thread."""
    # Ctrl-C interrupts the main thread only. There it could arrive between the start of a process
    # and the assignment of its number, and the process would never be reaped.
    future: Future[Worker] = Future()

    def run() -> None:
        try:
            future.set_result(Worker(launch))
        except BaseException as error:  # noqa: BLE001  (raised in the calling thread)
            future.set_exception(error)

    try:
        threading.Thread(target=run, name="mfimage-start", daemon=True).start()
        return future.result()
    except (OSError, RuntimeError) as error:
        raise BackendError(f"{launch.name}: cannot start a worker: {error}") from error
