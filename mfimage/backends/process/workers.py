"""One worker and what was sent to it.

Whoever uses a worker has it alone for that time. It answers in order, so a request may stay with
it while somebody else goes on: who reads next gets the answers to earlier requests too, and leaves
them on their tickets.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections import deque
from concurrent.futures import Future

from mfimage.backends.process.process import Launch, WorkerProcess, describe_end
from mfimage.errors import BackendError
from mfimage.runtime.worker.exceptions import rebuild
from mfimage.runtime.worker.frames import (
    FAILURE,
    READY,
    START,
    Frame,
    ProtocolError,
    receive_frame,
    send_frame,
)

_BUFFER = 1 << 20
_DYING_SECONDS = 1.0


class Resend(Exception):
    """The worker is gone and had not begun with a request: another one may have it."""


class Ticket:
    """A request that was sent, and its answer once it is there.

    Attributes
    ----------
    worker : Worker
        Who has it.
    records : int
        How many records it is.
    answer : Frame, Exception or None
        ``Resend`` when the worker never began with it.
    """

    __slots__ = ("answer", "records", "worker")

    def __init__(self, worker: Worker, records: int) -> None:
        self.worker = worker
        self.records = records
        self.answer: Frame | Exception | None = None


class Worker:
    """A worker.

    Attributes
    ----------
    data : str or None
        Name of the function's first parameter; None until the function is imported.
    pending : deque of Ticket
        Requests without an answer, in order.
    alive : bool
        Whether it can be used.
    user : int
        The thread that has it; 0 for none.
    """

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        self._limit = 0.0
        self.data: str | None = None
        self.pending: deque[Ticket] = deque()
        self.alive = True
        self.user = 0
        self.process = WorkerProcess(launch)
        self._sock = self.process.sock
        for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            self._sock.setsockopt(socket.SOL_SOCKET, buffer, _BUFFER)
        self._allow(launch.start_timeout)
        with contextlib.suppress(OSError):  # whoever waits for it is told
            self._send(START, launch.start)

    def is_ready(self) -> bool:
        """Tell whether ``wait_ready`` would return at once."""
        if self.data is not None:
            return True
        try:
            self._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            pass  # it is gone, and that is soon told
        return True

    def wait_ready(self) -> None:
        """Wait until the function is imported.

        Raises
        ------
        Exception
            What went wrong there; then the worker is of no use.
        """
        if self.data is not None:
            return
        try:
            frame = receive_frame(self._sock)
        except (EOFError, OSError) as error:
            raise self._lost(error) from None
        if frame.kind == FAILURE:
            raise told(self._launch.name, frame.payload)
        if frame.kind != READY:
            raise self._lost(ProtocolError())
        self._allow(self._launch.timeout or 0.0)
        self.data = str(json.loads(frame.payload)["data"])

    def post(self, kind: int, payload: bytes, records: int = 1) -> Ticket:
        """Send a request.

        Raises
        ------
        Resend
            When the worker is gone.
        """
        ticket = Ticket(self, records)
        try:
            self._send(kind, payload)
        except (EOFError, OSError) as error:
            self._read_what_is_there()
            self._fail(self._lost(error))
            raise Resend from None
        self.pending.append(ticket)
        return ticket

    def collect(self, ticket: Ticket) -> None:
        """Wait until a ticket has its answer."""
        while ticket.answer is None:
            try:
                self._receive_next()
            except (EOFError, OSError) as error:
                self._fail(self._lost(error))

    def drop(self, error: Exception, seconds: float = 0) -> None:
        """End the worker; give its requests ``error`` for an answer.

        Parameters
        ----------
        error : Exception
            For the request that it may have begun with; the others can be sent again.
        seconds : float
            How long it may take to end by itself.
        """
        self._fail(error)
        self.process.finish(seconds)

    def forget(self) -> None:
        """Let go of a worker that belongs to the process that this one was forked from."""
        self.process.forget()
        self._fail(Resend())

    def _send(self, kind: int, payload: bytes) -> None:
        """Send all of a message; read answers meanwhile, or both sides may wait to be read."""
        rest: memoryview | None = None
        while rest is None or rest:
            busy = bool(self.pending)
            flags = socket.MSG_NOSIGNAL | (socket.MSG_DONTWAIT if busy else 0)
            try:
                if rest is None:
                    rest = send_frame(self._sock, kind, payload, flags=flags)
                else:
                    rest = rest[self._sock.send(rest, flags) :]
            except BlockingIOError:
                if not busy:
                    raise
                self._receive_next()

    def _receive_next(self) -> None:
        ticket = self.pending[0]
        if self._launch.timeout:
            self._allow(self._launch.timeout * ticket.records)
        ticket.answer = receive_frame(self._sock)
        self.pending.popleft()

    def _read_what_is_there(self) -> None:
        """Take the answers that a worker gave before it ended."""
        self._sock.setblocking(False)
        with contextlib.suppress(EOFError, OSError):
            while self.pending:
                self._receive_next()

    def _allow(self, seconds: float) -> None:
        """Let reading and writing wait that long, 0 for ever: the kernel counts, not each call."""
        if seconds != self._limit:
            self._limit = seconds
            micros = max(1, int(seconds * 1e6)) if seconds else 0
            limit = struct.pack("ll", *divmod(micros, 1_000_000))
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def _fail(self, error: Exception) -> None:
        self.alive = False
        while self.pending:
            self.pending.popleft().answer = error
            error = Resend()  # only the first can have been begun

    def _lost(self, error: Exception) -> BackendError:
        """Return why there is no answer, and end what may be left of the worker."""
        name, stopped = self._launch.name, self.process.told_to_stop
        ran = "ran" if self.data is not None else "was imported"
        if stopped:
            self.process.finish(0)
            return BackendError(f"{name} was closed while it {ran}")
        if isinstance(error, ProtocolError):
            self.process.finish(0)
            return confused(name)
        if isinstance(error, BlockingIOError):
            self.process.finish(0)
            return BackendError(
                f"{name} took longer than {self._limit:g} s; its worker was stopped",
                hint="allow more with timeout=" if self.data is not None else None,
            )
        how, hint = describe_end(self.process.finish(_DYING_SECONDS))
        return BackendError(f"{name}: its worker {how} while it {ran}", hint=hint)


def start_worker(launch: Launch) -> Worker:
    """Start a worker, in a thread of its own.

    Ctrl-C comes to the main thread only. There it could come between the start of a process and
    its number, and nobody could ever wait for that process.

    Raises
    ------
    BackendError
        When there can be no more processes or threads.
    """
    future: Future[Worker] = Future()

    def run() -> None:
        try:
            future.set_result(Worker(launch))
        except BaseException as error:  # noqa: BLE001  (it is raised where it was asked for)
            future.set_exception(error)

    try:
        threading.Thread(target=run, name="mfimage-start", daemon=True).start()
        return future.result()
    except (OSError, RuntimeError) as error:
        raise BackendError(f"{launch.name}: no worker can be started: {error}") from error


def told(name: str, payload: bytes) -> Exception:
    """Return the exception that a worker of the function ``name`` tells of."""
    try:
        return rebuild(payload)
    except ValueError:
        return confused(name)


def confused(name: str) -> BackendError:
    """Return the error for an answer that is none."""
    return BackendError(
        f"{name}: its worker answered what no worker does",
        hint="does the function write to files that it did not open?",
    )
