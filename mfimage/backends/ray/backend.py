"""The Ray backend: calls and batches to actors.

The replies of a process are lost when it dies, so of several requests that it had, it is unknown
which killed it. Each is retried on an actor that has nothing else to do.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from functools import partial
from typing import Any

from mfimage.backends.calls import RemoteBackend
from mfimage.backends.map import MapOptions, MapStream
from mfimage.backends.ray.actors import Actor, ActorRequest, ActorSet, decode_reply
from mfimage.backends.ray.cluster import import_ray, join, leave
from mfimage.backends.ray.options import RayOptions
from mfimage.errors import BackendError, InputError
from mfimage.function import json as json_values
from mfimage.package.store import Package
from mfimage.runtime.worker.exceptions import describe, rebuild
from mfimage.runtime.worker.frames import CALL, DIED, FAILURE, MIXED, Frame
from mfimage.terminal import is_terminal, text_bar

# How many requests an actor gets ahead, so that it need not wait for the next.
_AHEAD = 4
# A batch costs a round trip of about a millisecond.
_BATCH_SECONDS = 0.05
# How many short batches of a batch function may share a round trip.
_TOGETHER = 4
_MAX_THREADS = 64
# Shorter maps show no progress bar.
_BAR_AFTER_SECONDS = 1.0
_BAR_EVERY_SECONDS = 0.1
# One bar at a time: a second map may run inside the first one's loop.
_BAR_LOCK = threading.Lock()


class RayBackend(RemoteBackend):
    """Runs a package's function in actors of a Ray cluster; thread-safe."""

    def __init__(self, package: Package, options: RayOptions) -> None:
        self._batch = package.spec.batch
        self._progress = options.progress
        self._pid = os.getpid()
        join(options.address)
        try:
            self._pool = ActorPool(package, options)
        except BaseException:
            leave()
            raise
        super().__init__(
            package.spec.name,
            call=self._pool.call,
            close=partial(_close, self._pool, self._pid),
            max_threads=min(_MAX_THREADS, _AHEAD * self._pool.actors.maximum),
        )

    def _root(self) -> str:
        if self._pid != os.getpid():
            raise BackendError(
                f"{self._name}: a forked process has no connection to the Ray cluster",
                hint="load the function there, or start processes with 'spawn'",
            )
        actors = self._pool.actors
        return actors.data or actors.when_ready(lambda: actors.data)

    def remote(self, record: Any) -> Any:
        """Start a call on a JSON value or an ``ObjectRef`` to one; return an ``ObjectRef``."""
        root = self._root()
        if isinstance(record, import_ray().ObjectRef):
            return self._pool.remote(record, is_json=False)
        payload = json_values.dumps(record, root=root, error=InputError)
        return self._pool.remote(payload, is_json=True)

    def map(
        self, records: Iterable[Any], *, batch_size: int, on_error: str, max_in_flight: int = 0
    ) -> Iterator[Any]:
        """Yield results in order; batches go to all actors, some ahead."""
        # By default each actor has four requests of one batch each, or of up to four short batches
        # of a batch function.
        actors = self._pool.actors.maximum
        in_flight = max_in_flight or _AHEAD * actors * (_TOGETHER if self._batch else 1)
        together = max(1, min(_TOGETHER, in_flight // (2 * actors)))
        options = MapOptions(
            post=partial(
                self._pool.post,
                size=batch_size if self._batch else 0,
                ahead=max(_AHEAD, -(-in_flight // (actors * together))),
            ),
            collect=self._pool.collect,
            root=self._root(),
            batch_size=batch_size,
            exact=self._batch,
            max_in_flight=in_flight,
            raises=on_error == "raise",
            seconds=_BATCH_SECONDS,
            together=together,
        )
        results = MapStream(self._name, records, options).results()
        if self._progress:
            total = len(records) if isinstance(records, Sized) else None
            results = with_progress(self._name, results, total)
        yield from results


def _close(pool: ActorPool, pid: int) -> None:
    if pid == os.getpid():
        pool.actors.close()
        leave()


def with_progress(name: str, results: Iterator[Any], total: int | None) -> Iterator[Any]:
    """Yield results, and show their number, of ``total``, on stderr if that is a terminal."""
    if not is_terminal() or not _BAR_LOCK.acquire(blocking=False):
        yield from results
        return
    bar = None
    began = time.monotonic()
    draw_at = began + _BAR_AFTER_SECONDS
    try:
        for count, result in enumerate(results, 1):
            yield result
            if (now := time.monotonic()) < draw_at:
                continue
            draw_at = now + _BAR_EVERY_SECONDS
            text = f"{name}: {count:,} done, {count / (now - began):,.0f}/s"
            if bar is None:
                # Without its own thread, which would draw while the process ends.
                bar = text_bar(refresh=False)
                task = bar.add_task(text, total=total)
                bar.start()
                bar.console.show_cursor()  # a killed process could not show it again
            bar.update(task, description=text, completed=count, refresh=True)
    finally:
        if bar is not None:
            bar.stop()
        _BAR_LOCK.release()


class ActorPool:
    """The actors of one function, for any number of threads."""

    def __init__(self, package: Package, options: RayOptions) -> None:
        self._name = package.spec.name
        self._options = options
        self._turn = itertools.count()
        self._ray = import_ray()
        self.actors = ActorSet(package, options)
        self._lock = self.actors.lock

    def call(self, payload: bytes) -> Frame:
        """Return the reply to one record; raise why there is none."""
        request = ActorRequest(CALL, payload, 1)
        self._send(request)
        self.collect(request)
        if isinstance(request.reply, Exception):
            raise request.reply
        assert request.reply is not None
        return request.reply

    def post(
        self, kind: int, payload: bytes, records: int, *, size: int, wait: bool, ahead: int
    ) -> ActorRequest | None:
        """Send a batch; None when all actors have ``ahead`` requests and ``wait`` is false."""
        request = ActorRequest(kind, payload, records, size)
        return request if self._send(request, wait=wait, ahead=ahead) else None

    def collect(self, request: ActorRequest) -> None:
        """Wait until a request has its reply."""
        from ray.exceptions import RayError, RayTaskError

        while request.reply is None:
            ref = request.ref
            try:
                if ref is not None:
                    self._received(request, decode_reply(self._ray.get(ref)))
                elif request.deaths:
                    self._retry(request)
                else:
                    self._send(request)
            except RayTaskError as error:
                self._release(request)
                request.reply = BackendError(f"{self._name}: its actor failed: {error}")
            except RayError as error:
                self._died(request, ref, error)
            except Exception:
                self._release(request)
                raise
            except BaseException:  # Ctrl-C: the call may run forever
                self._interrupted(request)
                raise

    def remote(self, record: Any, *, is_json: bool) -> Any:
        """Return Ray's reference to the result for one record; actors take turns."""

        def send() -> Any:
            ready = self.actors.ready
            if not ready:
                return None
            actor = ready[next(self._turn) % len(ready)]
            actor.used = time.monotonic()
            # Ray itself retries these.
            method = actor.handle.value.options(max_task_retries=self._options.max_retries)
            return method.remote(record, is_json, actor.luggage)

        return self.actors.when_ready(send)

    def _send(self, request: ActorRequest, *, wait: bool = True, ahead: int = _AHEAD) -> bool:
        def send() -> bool | None:
            actor = self.actors.least_busy(1 if request.kind == CALL else ahead)
            if actor is None or not (wait or len(actor.pending) < ahead):
                return None if wait else False
            actor.send(request)
            return True

        return self.actors.when_ready(send)

    def _received(self, request: ActorRequest, frame: Frame) -> None:
        with self._lock:
            self._release(request)
            if frame.kind == DIED:
                self._count_death(request, rebuild(frame.payload))
            else:
                request.reply = frame

    def _release(self, request: ActorRequest) -> None:
        with self._lock:
            if request.actor is not None:
                request.actor.pending.pop(request, None)

    def _count_death(self, request: ActorRequest, error: Exception) -> None:
        request.ref = None
        request.deaths += 1
        if request.deaths > self._options.max_retries:
            request.reply = error

    def _died(self, request: ActorRequest, ref: Any, error: Exception) -> None:
        """Have an actor restarted; each thread that waits for one of its requests retries it."""
        from ray.exceptions import RayError

        with self._lock:
            actor = request.actor
            if actor is None or request.ref is not ref:
                return  # another thread has done this
            if actor in self.actors.ready:
                self.actors.start_again(actor)
            for each in list(actor.pending):
                try:  # it may have replied before
                    self._received(each, decode_reply(self._ray.get(each.ref, timeout=0)))
                except RayError:
                    self._count_death(each, self._lost(error))
            actor.pending.clear()
            if request.ref is ref and request.reply is None:
                self._count_death(request, self._lost(error))

    def _interrupted(self, request: ActorRequest) -> None:
        """Kill the actor of a call that was interrupted; its other requests are sent again."""
        with self._lock, contextlib.suppress(Exception):
            actor, request.reply = request.actor, BackendError(f"{self._name} was interrupted")
            if actor is None or request not in actor.pending:
                return
            for each in actor.pending:
                each.ref = None
            actor.pending.clear()
            if actor in self.actors.ready:
                self._ray.kill(actor.handle, no_restart=False)
                self.actors.start_again(actor)

    def _retry(self, request: ActorRequest) -> None:
        """Retry a request whose actor died, alone on an actor; the last time record by record."""
        retries = self._options.max_retries
        with self.actors.taken() as actor:
            refs = [each.ref for each in actor.pending if each.ref is not None]
            if refs:
                self._ray.wait(refs, num_returns=len(refs), fetch_local=False)
            self._reload(actor)
            reply: Frame | Exception = self._lost()
            for attempt in range(request.deaths, retries + 1):
                if attempt == retries and request.records > 1:
                    reply = self._run_each(actor, request)
                else:
                    reply = self._run(actor, request.kind, request.payload, request.size)
                if isinstance(reply, Frame):
                    break
            request.reply = reply

    def _run_each(self, actor: Actor, request: ActorRequest) -> Frame:
        lines = []
        for record in request.payload.split(b"\n"):
            reply = self._run(actor, CALL, record)
            if isinstance(reply, Exception):
                lines.append(b"-" + describe(reply))
            else:
                lines.append((b"-" if reply.kind == FAILURE else b"+") + reply.payload)
        return Frame(MIXED, b"\n".join(lines))

    def _run(self, actor: Actor, kind: int, payload: bytes, size: int = 0) -> Frame | Exception:
        from ray.exceptions import RayError

        try:
            frame = decode_reply(self._ray.get(actor.ask(kind, payload, size)))
        except RayError as error:
            self._reload(actor)
            return self._lost(error)
        return rebuild(frame.payload) if frame.kind == DIED else frame

    def _reload(self, actor: Actor) -> None:
        """Wait until an actor that may have died has loaded the function again."""
        from ray.exceptions import GetTimeoutError, RayError

        actor.load_again()
        seconds = self._options.start_timeout
        try:
            reply = self._ray.get(actor.loading, timeout=seconds)
        except GetTimeoutError:
            raise BackendError(
                f"{self._name}: an actor that died was not restarted within {seconds:g} s",
                hint="has the cluster lost nodes? allow more with start_timeout=",
            ) from None
        except RayError as error:
            raise self._lost(error, "was imported") from None
        if self.actors.loaded(reply) is None:
            raise BackendError(f"{self._name}: a restarted actor cannot read the package")
        actor.loading = None

    def _lost(self, error: Exception | str = "", doing: str = "ran") -> BackendError:
        text = str(error)
        if "OOM" in text and "memory usage threshold" in " ".join(text.split()):
            hint = "its node ran out of memory: use fewer actors, or set memory= to what each needs"
        else:
            hint = "compiled code may have crashed, or memory run out; see Ray's log on stderr"
        return BackendError(f"{self._name}: its actor died while it {doing}", hint=hint)
