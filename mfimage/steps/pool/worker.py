"""A warm worker: ``worker.py CHANNEL LIFELINE MODE -- flow.py ... step ...``.

A script for the flow's own Python. It executes the flow's file as ``__main__``, as Python does,
until that starts Metaflow's command line; there it waits for items and runs that command line once
for each: in a child ("fork"), or in this process ("loop").

The item that the worker was started for comes first, so what importing the flow prints, or fails
with, stands in that item's log.
"""

from __future__ import annotations

import atexit
import functools
import gc
import mmap
import os
import signal
import sys
import threading
import traceback
import warnings
from _socket import socket
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

if __name__ == "__main__":
    sys.path.insert(0, __file__.rsplit("/", 4)[0])
    worker = import_module("mfimage.steps.pool.worker")
    del sys.path[0]
    worker.start(sys.argv[1:])

from mfimage.runtime.worker.lifeline import die_with
from mfimage.steps.pool.protocol import TaskCommand, receive, send

REFUSED = 202
# A CUDA context does not survive a fork, and holds one of these.
DEVICES = "/dev/nvidia"


def start(arguments: list[str]) -> NoReturn:
    """Execute the flow's file; return from it only as a child that has run an item."""
    channel, lifeline, mode, _, *argv = arguments
    die_with(int(lifeline))
    for file in (int(channel), int(lifeline)):
        os.set_inheritable(file, False)
    worker = TaskLoop(socket(fileno=int(channel)), int(lifeline), fork=mode == "fork")
    sys.meta_path.insert(0, worker.hook())
    sys.argv = argv
    path = str(Path(argv[0]).absolute())
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = str(Path(path).resolve().parent)
    main = sys.modules["__main__"].__dict__
    loader = main["__loader__"]
    main.clear()
    main.update(
        __name__="__main__",
        __file__=path,
        __builtins__=__builtins__,
        __loader__=loader,
        __package__=None,
        __spec__=None,
        __cached__=None,
        __doc__=None,
    )
    code = compile(Path(path).read_bytes(), path, "exec")
    worker.end(run(lambda: exec(code, main)))  # noqa: S102  (the user's own file)


class TaskLoop:
    """Runs items, one after the other."""

    def __init__(self, channel: socket, lifeline: int, *, fork: bool) -> None:
        self._channel = channel
        self._lifeline = lifeline
        self._fork = fork
        # Set by a child that has come to its end, whatever its exit status.
        self._ended = mmap.mmap(-1, 1)
        self._idle = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._before = dict(os.environb), Path.cwd()

    def hook(self) -> Any:
        """Return an import hook that makes `serve` of Metaflow's command line."""
        # Metaflow imports it for the flow that starts it, and no earlier.
        worker = self

        class Hook(PathFinder):
            @classmethod
            def find_spec(
                cls, fullname: str, path: Any = None, target: ModuleType | None = None
            ) -> ModuleSpec | None:
                if fullname != "metaflow.cli":
                    return None
                spec = super().find_spec(fullname, path, target)
                if spec is not None and spec.loader is not None:
                    execute = spec.loader.exec_module

                    def exec_module(module: ModuleType) -> None:
                        execute(module)
                        module.main = functools.partial(worker.serve, module.main)  # type: ignore[attr-defined]

                    spec.loader.exec_module = exec_module  # type: ignore[method-assign]
                return spec

        return Hook

    def serve(self, main: Callable[..., None], flow: Any, *args: Any, **options: Any) -> None:
        """Run items until the server has no more; return only in a child."""
        self._interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
        variables, folder = self._before
        # What the flow itself sets on import, each item finds set.
        self._set = dict(os.environb.items() - variables.items())
        self._unset = variables.keys() - os.environb.keys()
        self._folder = Path.cwd() if Path.cwd() != folder else None
        if self._fork:
            warm(flow)
            gc.collect()
            gc.freeze()  # what is never looked at again stays shared with the children
        else:
            from mfimage.steps.pool.state import remember

            restore = remember(flow)
        while (message := receive(self._channel)) is not None:
            fields, files = message
            item = TaskCommand.unpack(fields)
            if not self._fork:
                self._enter(item, files)
                status = run(lambda: main(type(flow)(use_cli=False), *args, **options))
                flush()
                self._leave()
                restore()
                send(self._channel, [str(status).encode(), b"1", b""])
                continue
            flush()
            self._stdio([self._idle] * 3)
            if problem := unsafe():
                refusal = f"error: mode='fork' cannot fork: {problem}\n".encode()
                for file in files:
                    os.close(file)
                send(self._channel, [str(REFUSED).encode(), b"1", refusal])
                continue
            self._ended[0] = 0
            if (child := fork()) == 0:
                self._be_child()
                self._enter(item, files)
                main(flow, *args, **options)
                return
            for file in files:
                os.close(file)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            send(self._channel, [str(status).encode(), b"%d" % self._ended[0], b""])
        self.end(0)

    def end(self, status: int) -> NoReturn:
        """Exit, as Python does, but for taking modules apart."""

        def functions() -> None:
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()

        functions_status = run(functions)
        flush()
        self._ended[0] = 1
        os._exit(status or functions_status)

    def _be_child(self) -> None:
        """Keep nothing of the worker that is not the item's."""
        self._channel.close()
        # Signals belong to an open file, and the worker's are its own.
        die_with(os.open(f"/proc/self/fd/{self._lifeline}", os.O_RDONLY | os.O_CLOEXEC))
        os.close(self._lifeline)
        # Temporary folders and the like that belong to the worker.
        from weakref import finalize

        atexit._clear()
        finalize._registry.clear()  # type: ignore[attr-defined]
        finalize._registered_with_atexit = False  # type: ignore[attr-defined]
        # Python gives its own generator a new seed after a fork, NumPy does not.
        if numpy := sys.modules.get("numpy.random"):
            numpy.seed()

    def _enter(self, item: TaskCommand, files: list[int]) -> None:
        """Take on an item's files, variables, folder and command line."""
        self._stdio(files)
        for file in files:
            os.close(file)
        variables = dict(each.split(b"=", 1) for each in item.env) | self._set
        for name in (os.environb.keys() - variables.keys()) | self._unset:
            os.environb.pop(name, None)
        os.environb.update({k: v for k, v in variables.items() if k not in self._unset})
        os.chdir(self._folder or item.cwd)
        sys.argv = [os.fsdecode(each) for each in item.argv[1:]]
        self._signals = [(each, signal.getsignal(each)) for each in CAUGHT]
        signal.signal(signal.SIGINT, self._interrupt)

    def _leave(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)  # @timeout leaves it on when a step fails
        for number, handler in self._signals:
            if handler is not None:
                signal.signal(number, handler)
        self._stdio([self._idle] * 3)

    def _stdio(self, files: list[int]) -> None:
        for file, number in zip(files, (0, 1, 2), strict=True):
            os.dup2(file, number)


CAUGHT = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})


def run(function: Callable[[], object]) -> int:
    """Call a function; return what would be the exit status of a process."""
    try:
        function()
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return (error.code or 0) & 0xFF
        sys.stderr.write(f"{error.code}\n")
        return 1
    except KeyboardInterrupt:
        traceback.print_exc()
        return 128 + signal.SIGINT
    except BaseException:  # noqa: BLE001 - whatever it is, this process reports it
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def flush() -> None:
    """Write what stdout and stderr still hold."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # none, or closed
            stream.flush()


def fork() -> int:
    """Fork, without Python's warning: what runs beside us here are BLAS's threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def unsafe(files: str = "/proc/self/fd") -> str | None:
    """Return why this process must not be forked, and what to do."""
    threads = [each.name for each in threading.enumerate() if each is not threading.main_thread()]
    if threads:
        return (
            f"importing the flow has started threads ({', '.join(threads)})\n"
            "hint: start them in the step, or use @worker_pool(mode='loop')"
        )
    for file in Path(files).iterdir():
        try:
            target = str(file.readlink())
        except OSError:  # that of the listing itself
            continue
        if target.startswith(DEVICES):
            return (
                f"importing the flow has initialized CUDA ({target} is open)\n"
                "hint: use the GPU in the step only, or use @worker_pool(mode='loop')"
            )
    return None


def warm(flow: Any) -> None:
    """Do what Metaflow does alike for each task, and keeps: children find it done."""
    import metaflow.cli_components.step_cmd  # noqa: F401
    from metaflow import metaflow_version
    from metaflow.metaflow_environment import MetaflowEnvironment

    # Both ask git.
    metaflow_version.get_version(public=True)
    MetaflowEnvironment(flow).get_environment_info()
