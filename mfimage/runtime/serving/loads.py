"""When functions are loaded: all before the server is ready, or each when it is first called."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfimage.errors import MfimageError
from mfimage.runtime.calls.queue import Dispatcher, Expired, Stopping
from mfimage.runtime.serving.content import MediaTypes
from mfimage.runtime.serving.service import Handler, Service, State
from mfimage.runtime.serving.services import Services

if TYPE_CHECKING:
    from mfimage.runtime.loading.loader import LiveFunction

# Functions that are loaded at once on demand: one that takes long delays no other.
_AT_ONCE = 4
_PAGE = os.sysconf("SC_PAGE_SIZE")

log = logging.getLogger("mfimage.serving")


class Loads:
    """Loads the functions of a process, some of those that ``services`` has, from ``folder``.

    ``changed`` is called on the loop with a service whose state has changed, and the error if it
    cannot be loaded.
    """

    def __init__(
        self, folder: Path, services: Services, names: Collection[str],
        changed: Callable[[Service, BaseException | None], None],
    ) -> None:  # fmt: skip
        self._folder = folder
        self._services = services
        self._names = names
        self._changed = changed
        self._loop = services.loop
        self._lazy = services.settings.load == "lazy"
        self._limit = services.settings.max_loaded
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._pending: dict[str, asyncio.Task[None]] = {}
        self._threads: set[threading.Thread] = set()
        # Those that are loaded, the least recently used first.
        self._functions: OrderedDict[str, LiveFunction] = OrderedDict()
        self._sizes: dict[str, int] = {}
        self._freed = False
        self._handlers: dict[Handler, Handler] = {}
        if self._lazy:
            for name in names:
                services.by_name[name].wrap = self._on_demand

    def start(self) -> None:
        """Begin to load, unless that is done on demand."""
        if not self._lazy:
            self._in_thread(self._load_all)

    def close(self) -> bool:
        """Return whether nothing is being loaded; if so, close what is loaded."""
        if any(thread.is_alive() for thread in self._threads):
            return False
        for fn in self._functions.values():
            fn.close()
        return True

    def _in_thread(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, name="mfimage-load", daemon=True)
        self._threads = {each for each in self._threads if each.is_alive()} | {thread}
        thread.start()

    def _load_all(self) -> None:
        """Load every function; in a thread."""
        # What is loaded stays: collecting garbage in it makes loading slower, and later, about
        # once a second under load, delayed every request by 70 ms, with scikit-learn imported.
        gc.disable()
        for name in self._names:
            self._call(self._settle, self._services.by_name[name], self._load(name))
        gc.collect()
        gc.freeze()
        gc.enable()

    def _call(self, callback: Callable[..., Any], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(callback, *args)

    def _load(self, name: str) -> _Loaded | BaseException:
        """Load a function; in a thread."""
        started = time.monotonic()
        if self._freed and self._limit is not None and self._limit.size:
            self._freed = False
            _give_back()
        before = resident()
        try:
            fn = load_whole(self._folder, name)
            media_types = MediaTypes.of(fn.spec, fn, data=fn.data)
        except BaseException as error:  # noqa: BLE001  (whatever it is, it cannot be served)
            return error
        return _Loaded(fn, media_types, time.monotonic() - started, resident() - before)

    def _settle(self, service: Service, loaded: _Loaded | BaseException) -> None:
        """Let a function be called, or remember why it cannot be."""
        name = service.name
        if isinstance(loaded, _Loaded):
            self._functions[name] = loaded.fn
            # What another function has given back grows nothing: its artifacts are the minimum,
            # and what it took the last time.
            self._sizes[name] = max(loaded.growth, loaded.fn.size, self._sizes.get(name, 0))
            service.start(loaded.fn, loaded.media_types)
            extra = {"digest": loaded.fn.digest, "seconds": round(loaded.seconds, 3)}
            message = "loaded %s" if self._services.served.several else "ready: POST /%s"
            log.info(message, name, extra={"function": name, **extra})
            self._changed(service, None)
        else:
            report(name, loaded)
            service.fail(str(loaded) or type(loaded).__name__)
            self._changed(service, loaded)

    # On demand

    def _on_demand(self, handler: Handler) -> Handler:
        """Return a handler that loads the function first; the same for all with one handler."""
        if handler not in self._handlers:
            wrap = self._loading if self._limit is None else self._counting
            self._handlers[handler] = wrap(handler)
        return self._handlers[handler]

    def _loading(self, handler: Handler) -> Handler:
        async def load(service: Service, request: Any) -> Any:
            await self._wait_for(service)
            return await handler(service, request)

        def handle(service: Service, request: Any) -> Awaitable[Any]:
            return (load if service.inflight is None else handler)(service, request)

        return handle

    def _counting(self, handler: Handler) -> Handler:
        """Keep what is in use, and what was used last."""

        async def handle(service: Service, request: Any) -> Any:
            service.using += 1
            try:
                if service.inflight is None:
                    await self._wait_for(service)
                return await handler(service, request)
            finally:
                service.using -= 1
                if service.name in self._functions:
                    self._functions.move_to_end(service.name)
                if not service.using:
                    self._make_room()

        return handle

    async def _wait_for(self, service: Service) -> None:
        """Wait until a function is loaded, by one of the requests for it."""
        if not service.failed:
            task = self._pending.get(service.name)
            if task is None:
                task = self._loop.create_task(self._load_on_demand(service))
                self._pending[service.name] = task
                self._services.loads.add(task)
                task.add_done_callback(self._services.loads.discard)
            patience = self._services.settings.timeout
            done, _ = await asyncio.wait((task,), timeout=patience or None)
            if not done:
                raise Expired(patience)
            if task.cancelled():
                raise Stopping
            task.result()
        if service.loading:
            raise service.unavailable()

    async def _load_on_demand(self, service: Service) -> None:
        try:
            async with self._slots:
                self._make_room(functions=1, size=self._sizes.get(service.name, 0))
                service.state = State.LOADING
                done: asyncio.Future[_Loaded | BaseException] = self._loop.create_future()

                def load() -> None:
                    self._call(done.set_result, self._load(service.name))

                self._in_thread(load)
                self._settle(service, await asyncio.shield(done))
        finally:
            del self._pending[service.name]
        self._make_room()

    def _make_room(self, *, functions: int = 0, size: int = 0) -> None:
        """Drop what was used least recently, until some more are below the limit."""
        if self._limit is None:
            return
        for name in list(self._functions):
            count = len(self._functions) + functions
            if self._limit.functions and count <= self._limit.functions:
                return
            total = sum(self._sizes[each] for each in self._functions) + size
            if self._limit.size and total <= self._limit.size:
                return
            service = self._services.by_name[name]
            if not service.using:
                self._drop(service)

    def _drop(self, service: Service) -> None:
        fn = self._functions.pop(service.name)
        dispatcher = service.unload()
        log.info("dropped %s", service.name, extra={"function": service.name})
        self._changed(service, None)
        self._loop.run_in_executor(None, _close, dispatcher, fn)
        self._freed = True


class _Loaded:
    """A function that was loaded: the seconds it took, and the bytes that the process grew."""

    def __init__(
        self, fn: LiveFunction, media_types: MediaTypes, seconds: float, growth: int
    ) -> None:
        self.fn = fn
        self.media_types = media_types
        self.seconds = seconds
        self.growth = growth


def _close(dispatcher: Dispatcher, fn: LiveFunction) -> None:
    # A call whose request has timed out may still run.
    if dispatcher.close():
        fn.close()


def resident() -> int:
    """Return the bytes of memory that this process occupies; 0 where the system does not say."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(pages) * _PAGE


def _give_back() -> None:
    """Give freed memory back to the system, so that what is loaded next is measured as it is."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def report(name: str, error: BaseException) -> None:
    """Log why a function cannot be loaded."""
    if isinstance(error, MfimageError):
        log.error("%s cannot be loaded: %s", name, error, extra={"hint": error.hint})
    else:
        log.error("%s cannot be loaded", name, exc_info=error)


def load_whole(folder: Path, name: str | None = None) -> LiveFunction:
    """Load a function and all that it will read, so that the first request need not."""
    from mfimage.runtime.loading.loader import load_folder

    fn = load_folder(folder, name)
    for part in fn.parts:
        for parameter in part.params:
            try:
                part.params[parameter]
            except Exception:
                if parameter in part.required:
                    raise
                message = "%s: artifact %r cannot be loaded"
                log.warning(message, part.name, parameter, exc_info=True)
    return fn
