"""The workers of one step: ``server.py OPTIONS``, the arguments of `PoolServer` as JSON.

A script for Python without site-packages. It takes items from `client` over a socket in a folder,
keeps up to so many workers and gives each item to one that is free, or to a new one. It ends, and
all workers with it, when its stdin does: a pipe whose other end is the process of the run.

With `Inside` it is process 1 of a container.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # last: the standard library comes first
    sys.path.append(__file__.rsplit("/", 4)[0])

from mfimage.steps.pool.protocol import SOCKET, TaskCommand, receive, send

# How often the server reports, how long an idle worker stays, and how long one may take to end.
REPORT, IDLE, PATIENCE = 30.0, 120.0, 5.0
# How long a client may take to send an item.
SLOW = 10.0


@dataclass(kw_only=True, eq=False)
class Waiting:
    """An item, and the client that waits for it."""

    client: socket.socket
    item: TaskCommand
    files: list[int]

    def close_files(self) -> None:
        """Close the item's stdin, stdout and stderr here: their readers wait for that."""
        while self.files:
            os.close(self.files.pop())


@dataclass(kw_only=True, eq=False)
class WorkerProcess:
    """A worker's process, which leads a process group."""

    number: int
    process: subprocess.Popen[bytes]
    channel: socket.socket
    current: Waiting | None = None
    items: int = 0
    since: float = field(default_factory=time.monotonic)
    killed: bool = False

    def has_exited(self) -> bool:
        """Return whether it has; its id stays its own until it is waited for."""
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self.process.pid, flags) is not None

    def signal(self, number: int) -> None:
        """Signal the worker and what it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


@dataclass(frozen=True, kw_only=True)
class Inside:
    """What differs in a container.

    Attributes
    ----------
    names : sequence of str
        Variables to take from an item, beside Metaflow's own, credentials and proxies.
    path : sequence of str
        Folders for ``PYTHONPATH``.
    config : str, optional
        The file to read in place of the one that ``--local-config-file`` names.
    """

    names: Sequence[str]
    path: Sequence[str]
    config: str | None

    @classmethod
    def make(cls, *, names: Sequence[str], path: Sequence[str], config: str | None) -> Inside:
        """Return it for a container with these folders behind the image's own."""
        from mfimage.steps.inside import python_path

        return cls(names=names, path=python_path(path), config=config)

    def translate(self, item: TaskCommand) -> TaskCommand:
        """Return the item with the container's Python and variables."""
        from mfimage.steps.docker import NAMES, PREFIXES

        argv = [b"python", *item.argv[1:]]
        if self.config and b"--local-config-file" in argv:
            argv[argv.index(b"--local-config-file") + 1] = os.fsencode(self.config)
        env = dict(os.environ)
        for each in item.env:
            name, _, value = os.fsdecode(each).partition("=")
            if name.startswith(PREFIXES) or name in NAMES or name in self.names:
                env[name] = value
        if self.path:
            env["PYTHONPATH"] = os.pathsep.join(self.path)
        return TaskCommand(item.cwd, argv, [os.fsencode(f"{k}={v}") for k, v in env.items()])


class PoolServer:
    """One loop over the sockets of clients and workers."""

    def __init__(
        self,
        *,
        folder: str,
        title: str,
        size: int,
        mode: str,
        max_items: int | None,
        inside: Mapping[str, Any] | None = None,
    ) -> None:
        self._folder = Path(folder)
        self._title, self._mode = title, mode
        self._size, self._max_items = size, max_items
        self._inside = Inside.make(**inside) if inside else None
        self._script = str(Path(__file__).with_name("worker.py"))
        self._selector = selectors.DefaultSelector()
        self._queue: deque[Waiting] = deque()
        self._workers: list[WorkerProcess] = []
        self._leaving: list[WorkerProcess] = []
        self._number = self._done = self._failed = self._reported = 0
        self._first = self._last = self._next_report = 0.0
        self._kills = out_of_memory()
        # Workers end when this process does, however it ends.
        self._lifeline, self._held = os.pipe()
        self._running = True

    def run(self) -> None:
        """Serve until stdin ends."""
        folder = os.open(self._folder, os.O_PATH)
        (self._folder / f"{SOCKET}.new").unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"/proc/self/fd/{folder}/{SOCKET}.new")
        listener.listen(4096)
        os.rename(f"{SOCKET}.new", SOCKET, src_dir_fd=folder, dst_dir_fd=folder)
        self._watch_children()
        self._watch(0, self._stdin)
        self._watch(listener, lambda: self._accept(listener))
        while self._running:
            for key, _ in self._selector.select(timeout=self._tick()):
                if key.fileobj in self._selector.get_map():  # not closed by one before it
                    key.data()
        self._stop()

    def _watch(self, file: Any, call: Callable[[], None]) -> None:
        self._selector.register(file, selectors.EVENT_READ, call)

    def _watch_children(self) -> None:
        reader, writer = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._wakeup = reader, writer
        self._watch(reader, self._reap)

    def _stdin(self) -> None:
        self._running = bool(os.read(0, 4096))

    def _accept(self, listener: socket.socket) -> None:
        client, _ = listener.accept()
        client.settimeout(SLOW)
        if (message := receive(client)) is None:
            client.close()
            return
        client.setblocking(True)
        fields, files = message
        item = TaskCommand.unpack(fields)
        if self._inside:
            item = self._inside.translate(item)
        waiting = Waiting(client=client, item=item, files=files)
        self._first = self._first or time.monotonic()
        self._queue.append(waiting)
        self._watch(client, lambda: self._from_client(waiting))
        self._dispatch()

    def _dispatch(self) -> None:
        while self._queue:
            free = next((each for each in reversed(self._workers) if each.current is None), None)
            if free is None and len(self._workers) >= self._size:
                return
            waiting = self._queue.popleft()
            if free is None:
                try:
                    free = self._start(waiting)
                except OSError as error:
                    waiting.close_files()
                    self._answer(waiting, 1, f"error: the worker cannot start: {error}\n")
                    continue
            self._give(free, waiting)

    def _start(self, waiting: Waiting) -> WorkerProcess:
        """Start a worker for an item; what it writes before it runs the item is the item's."""
        ours, theirs = socket.socketpair()
        item = waiting.item
        self._number += 1
        python, *argv = map(os.fsdecode, item.argv)
        passed = (theirs.fileno(), self._lifeline)
        command = [python, self._script, *map(str, passed), self._mode, "--", *argv]
        stdin, stdout, stderr = waiting.files
        try:
            process = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                env=dict(each.split(b"=", 1) for each in item.env),
                cwd=item.cwd,
                pass_fds=passed,
                start_new_session=True,
            )
        finally:
            theirs.close()
        worker = WorkerProcess(number=self._number, process=process, channel=ours)
        self._workers.append(worker)
        self._watch(ours, lambda: self._from_worker(worker))
        return worker

    def _give(self, worker: WorkerProcess, waiting: Waiting) -> None:
        worker.current, worker.items = waiting, worker.items + 1
        place = {
            "EXECUTOR": "pool",
            "POOL": f"{self._mode}, {self._size}",
            "WORKER": f"{worker.number}, pid {worker.process.pid}",
        }
        known = dict(each.split(b"=", 1) for each in waiting.item.env)
        if b"MFIMAGE_STEP_EXECUTOR" in known:  # that of the container
            del place["EXECUTOR"]
        env = [f"MFIMAGE_STEP_{name}={value}".encode() for name, value in place.items()]
        item = waiting.item
        item = TaskCommand(item.cwd, item.argv, [*item.env, *env])
        with suppress(OSError):  # it has died, which is noticed like any other death
            send(worker.channel, item.pack(), waiting.files)
        waiting.close_files()

    def _from_client(self, waiting: Waiting) -> None:
        """Pass on a signal; without its client, an item has no one to report to, and ends."""
        try:
            data = waiting.client.recv(16)
        except OSError:
            data = b""
        worker = next((each for each in self._workers if each.current is waiting), None)
        if waiting in self._queue:
            self._queue.remove(waiting)
            waiting.close_files()
            self._answer(waiting, 128 + (data[0] if data else signal.SIGKILL), "")
        elif worker:
            worker.killed = True
            worker.signal(data[0] if data else signal.SIGKILL)
            if not data:
                self._selector.unregister(waiting.client)

    def _from_worker(self, worker: WorkerProcess) -> None:
        message = receive(worker.channel)
        waiting = worker.current
        if message is None or waiting is None:
            worker.signal(signal.SIGKILL)  # if it is not dead yet
            self._close(worker)
            return
        (status, ended, text), _ = message
        if text or ended == b"1":
            self._answer(waiting, int(status), os.fsdecode(text))
        else:
            self._answer(waiting, *self._death(int(status), worker.killed))
        worker.current, worker.since, worker.killed = None, time.monotonic(), False
        if worker.items == self._max_items:
            self._retire(worker)
        self._dispatch()

    def _death(self, status: int, killed: bool) -> tuple[int, str]:
        """Return the exit status and the message for a process that did not end by itself."""
        if status >= 0:
            text = f"the item's process exited with status {status} before the step had ended"
            return status or 1, f"error: {text}\n"
        if killed:
            return 128 - status, ""
        if status == -signal.SIGKILL and (kills := out_of_memory()) > self._kills:
            self._kills = kills
            return 128 - status, (
                "error: killed: out of memory\n"
                "hint: run fewer at once, @worker_pool(size=...) or --max-workers, or give them "
                "more memory\n"
            )
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = f"signal {-status}"
        return 128 - status, f"error: the item's process was killed by {name}\n"

    def _answer(self, waiting: Waiting, status: int, text: str) -> None:
        self._done, self._failed = self._done + (status == 0), self._failed + (status != 0)
        self._last = time.monotonic()
        with suppress(KeyError, ValueError):
            self._selector.unregister(waiting.client)
        with suppress(OSError):  # it may be gone
            send(waiting.client, [str(status).encode(), os.fsencode(text)])
        waiting.client.close()

    def _retire(self, worker: WorkerProcess) -> None:
        self._workers.remove(worker)
        self._leaving.append(worker)
        worker.since = time.monotonic()
        self._selector.unregister(worker.channel)
        worker.channel.close()

    def _close(self, worker: WorkerProcess) -> None:
        with suppress(KeyError, ValueError):
            self._selector.unregister(worker.channel)
        worker.channel.close()

    def _reap(self) -> None:
        with suppress(BlockingIOError):
            self._wakeup[0].recv(4096)
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            worker = next(
                (e for e in self._workers + self._leaving if e.process.pid == found.si_pid), None
            )
            if worker:
                self._drain(worker)
                worker.signal(signal.SIGKILL)  # what it leaves behind
            status = os.waitstatus_to_exitcode(os.waitpid(found.si_pid, 0)[1])
            if worker:
                worker.process.returncode = status
                self._lost(worker, status)

    def _drain(self, worker: WorkerProcess) -> None:
        """Read the report of an item that had ended before its worker died."""
        if worker in self._workers and worker.current and worker.channel.fileno() >= 0:
            worker.channel.setblocking(False)
            with suppress(OSError):
                if worker.channel.recv(1, socket.MSG_PEEK):
                    worker.channel.setblocking(True)
                    self._from_worker(worker)

    def _lost(self, worker: WorkerProcess, status: int) -> None:
        if worker in self._leaving:
            self._leaving.remove(worker)
            return
        self._workers.remove(worker)
        self._close(worker)
        if waiting := worker.current:
            self._answer(waiting, *self._death(status, worker.killed))
        self._dispatch()

    def _tick(self) -> float:
        """End what has been idle for too long, and report; return when to do so again."""
        now = time.monotonic()
        for worker in [*self._workers]:
            if worker.current is None and now - worker.since > IDLE:
                self._retire(worker)
        for worker in self._leaving:
            if now - worker.since > PATIENCE:
                worker.signal(signal.SIGKILL)
        if now > self._next_report:
            if self._next_report:
                self._report()
            self._next_report = now + REPORT
        return 1.0 if self._leaving else REPORT

    def _report(self) -> None:
        count = self._done + self._failed
        if count == self._reported:
            return
        self._reported = count
        rate = count / max(self._last - self._first, 1e-3)
        failed = f", {self._failed} failed" if self._failed else ""
        stamp = datetime.now().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
        line = f"{stamp} [{self._title}] {self._done} items done{failed}, {rate:.1f} a second"
        with suppress(OSError):
            os.write(2, f"{line}, {len(self._workers)} workers\n".encode())

    def _stop(self) -> None:
        self._report()
        (self._folder / SOCKET).unlink(missing_ok=True)
        workers = self._workers + self._leaving
        for worker in workers:
            if worker.current:
                worker.signal(signal.SIGKILL)
            worker.channel.close()  # an idle one ends itself
        deadline = time.monotonic() + PATIENCE
        while workers:
            late = time.monotonic() > deadline
            for worker in [*workers]:
                if late or worker.has_exited():
                    worker.signal(signal.SIGKILL)  # with what it leaves behind
                    worker.process.wait()
                    workers.remove(worker)
            time.sleep(0.005)


def out_of_memory(groups: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> int:
    """Return how many processes of this control group the kernel has killed for memory."""
    with suppress(OSError, ValueError):
        path = next(
            line.split(":", 2)[2].strip("/\n")
            for line in Path(own).read_text().splitlines()
            if line.startswith(("0::", *(f"{n}:memory:" for n in range(64))))
        )
        for file in (f"{path}/memory.events", f"memory/{path}/memory.oom_control"):
            with suppress(OSError):
                counts = Path(groups, file).read_text().split()
                return int(counts[counts.index("oom_kill") + 1])
    return 0


if __name__ == "__main__":
    PoolServer(**json.loads(sys.argv[1])).run()
