"""The actors of a function: as many as there is work for, and none that is of no use."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import threading
import time
import weakref
from typing import Any

from mfimage.backends.ray.actors import Actor, Launcher, Ticket, decode, lost
from mfimage.backends.ray.cluster import check_room, free, import_ray, told
from mfimage.backends.ray.options import RayOptions
from mfimage.backends.ray.retries import Alone
from mfimage.errors import BackendError
from mfimage.runtime.worker.exceptions import rebuild
from mfimage.runtime.worker.frames import CALL, DIED, Frame

logger = logging.getLogger("mfimage")
_IDLE_SECONDS = 60.0
_TELL_SECONDS = 10.0
_GRACE_SECONDS = 2.0
_LOOK_SECONDS = 0.02


class Fleet:
    """Between ``min_actors`` and ``max_actors`` actors.

    They start at once and load the function while the caller goes on. Ray starts one again that
    dies.

    Parameters
    ----------
    name : str
        The function's.
    launcher : Launcher
        What starts them.
    options : RayOptions
        How many, and how patient to be.

    Attributes
    ----------
    lock : RLock
        Guards all that changes, in the actors too.
    ready : list of Actor
        Those that can be used.
    most : int
        How many there may be.
    data : str or None
        Name of the function's first parameter; None until it is loaded.
    """

    def __init__(self, name: str, launcher: Launcher, options: RayOptions) -> None:
        self._name = name
        self._launcher = launcher
        self._options = options
        fits = self._check_room(options.patience)
        fits = fits if math.isfinite(fits) else options.min_actors
        self.most = options.max_actors or max(options.min_actors, int(fits))
        self.data: str | None = None
        self.lock = threading.RLock()
        self.ready: list[Actor] = []
        self._starting: list[Actor] = []
        self._taken: list[Actor] = []
        self._closed = False
        self._looked = self._tell_at = 0.0
        self._ray = import_ray()
        self._grow(options.min_actors)

    def _check_room(self, patience: float) -> float:
        hint = None
        if self._options.placement == "image":
            hint = "start the cluster's nodes from the function's image, or leave out placement="
        options = self._options
        return check_room(self._name, self._launcher.asked(), options.min_actors, patience, hint)

    def wait_ready(self) -> str:
        """Return the name of the function's first parameter, once it is loaded."""
        began = time.monotonic()
        while self.data is None:
            with self.lock:
                self.look()
            if self.data is None:
                self.await_start(began)
        return self.data

    def take(self) -> Actor:
        """Return an actor for the caller alone."""
        began = time.monotonic()
        while True:
            with self.lock:
                self.look()
                if self.ready:
                    actor = min(self.ready, key=lambda each: len(each.pending))
                    self.ready.remove(actor)
                    self._taken.append(actor)
                    return actor
            self.await_start(began)

    def give_back(self, actor: Actor, *, whole: bool) -> None:
        """Give back what was taken; an actor that is not ``whole`` is of no use."""
        with self.lock:
            self._taken.remove(actor)
            if whole and not self._closed:
                actor.used = time.monotonic()
                self.ready.append(actor)
            else:
                actor.stop()

    def best(self, enough: int) -> Actor | None:
        """Return the actor with the least to do; have more of them when that is ``enough``."""
        if not self.ready:
            return None
        best = min(self.ready, key=lambda each: len(each.pending))
        if len(best.pending) >= enough:
            self._forget_abandoned(best)
            if len(best.pending) >= enough and not self._starting:
                self._grow(min(len(self.ready), self.most - len(self.ready)))
        return best

    def _forget_abandoned(self, actor: Actor) -> None:
        """Let go of answers that are there and that nobody may ask for any more."""
        refs = {ticket.ref: ticket for ticket in actor.pending}
        done, _ = self._ray.wait(list(refs), num_returns=len(refs), timeout=0, fetch_local=False)
        for ref in done:
            actor.pending.pop(refs[ref], None)

    def _grow(self, count: int) -> None:
        had = len(self.ready)
        for _ in range(count):
            self._starting.append(self._launcher.start())
        if had and count > 0:
            logger.info("%s: %d actors, and %d start", self._name, had, count)
            threading.Thread(
                target=_shrink_later, args=(weakref.ref(self),), name="mfimage-idle", daemon=True
            ).start()

    def start_again(self, actor: Actor) -> None:
        """Wait for an actor that died, or was killed, to be there again."""
        self.ready.remove(actor)
        self._starting.append(actor)
        actor.load_again()

    def look(self, *, now: bool = False) -> None:
        """Take those into use that have loaded the function.

        Raises
        ------
        Exception
            Why there is none, when none could load it.
        """
        if self._closed:
            raise BackendError(f"{self._name} was closed")
        if not self._ray.is_initialized():
            raise BackendError(
                f"{self._name}: this process has left the Ray cluster",
                hint="ray.shutdown() was called: close() the function, and it can be called again",
            )
        if not self._starting:
            if not self.ready and not self._taken:
                self._grow(self._options.min_actors)
            return
        if now or time.monotonic() - self._looked > _LOOK_SECONDS:
            self._looked = time.monotonic()
            for actor in list(self._starting):
                self._look_at(actor)

    def _look_at(self, actor: Actor) -> None:
        from ray.exceptions import GetTimeoutError, RayError

        try:
            answer = self._ray.get(actor.loading, timeout=0)
            data = self._launcher.loaded(answer)
        except GetTimeoutError:
            return
        except Exception as error:
            self._starting.remove(actor)
            actor.stop()
            if isinstance(error, RayError):
                text = " ".join(str(error).split())
                message = f"{self._name}: its actor died while it was imported: {text}"
                error = BackendError(message, hint="Ray's log on stderr may tell more")
            if self.ready:
                logger.warning("%s: one actor less: %s", self._name, error)
                return
            raise error from error.__cause__
        self._starting.remove(actor)
        if data is None:  # it cannot read the package, and now gets it sent
            actor.stop()
            self._starting.append(self._launcher.start())
            return
        self.data = data
        actor.loading = None
        actor.used = time.monotonic()
        self.ready.append(actor)

    def await_start(self, began: float) -> None:
        """Wait a little for an actor; sometimes say for what, and at last raise that."""
        with self.lock:
            loading = [actor.loading for actor in self._starting]
        if loading:
            self._ray.wait(loading, num_returns=1, timeout=1.0)
        else:  # somebody has it for himself
            time.sleep(_LOOK_SECONDS)
        with self.lock:
            self.look(now=True)
            if self.ready:
                return
        waited = time.monotonic() - began
        if waited > self._options.start_timeout + self._options.patience:
            raise BackendError(
                f"{self._name}: no actor was ready within {waited:.0f} s; each takes "
                f"{told(self._launcher.asked())}, and free is {free()}",
                hint="ask for less, wait for others to finish, or allow more with start_timeout=",
            )
        if time.monotonic() > self._tell_at and waited > _TELL_SECONDS:
            self._tell_at = time.monotonic() + _TELL_SECONDS
            # What was there when they were asked for may be gone.
            self._check_room(max(0.0, self._options.patience - waited))
            asked = told(self._launcher.asked())
            text = "%s waits for an actor since %.0f s; it takes %s, and free is %s"
            logger.warning(text, self._name, waited, asked, free())

    def shrink(self) -> bool:
        """End actors that are idle for long; return whether there are more than the least."""
        with self.lock:
            limit = time.monotonic() - _IDLE_SECONDS
            for actor in list(self.ready):
                if len(self.ready) > self._options.min_actors and actor.used < limit:
                    self._forget_abandoned(actor) if actor.pending else None
                    if not actor.pending:
                        self.ready.remove(actor)
                        actor.stop()
            return not self._closed and len(self.ready) > self._options.min_actors

    def close(self) -> None:
        """End the actors; calls that still run fail."""
        with self.lock:
            self._closed = True
            actors, self.ready = self.ready, []
            starting, self._starting = [*self._starting, *self._taken], []
        if not self._ray.is_initialized():
            return  # they ended with the connection
        with contextlib.suppress(Exception):  # the cluster may be gone
            # Those that are idle end by themselves, and run the function's exit hooks.
            idle = [each.handle.__ray_terminate__.remote() for each in actors if not each.pending]
            if idle:
                self._ray.wait(idle, num_returns=len(idle), timeout=_GRACE_SECONDS)
            for actor in [*actors, *starting]:
                actor.stop()


def _shrink_later(reference: weakref.ref[Fleet]) -> None:
    more = True
    while more:
        time.sleep(_IDLE_SECONDS / 2)
        pool = reference()
        more = pool is not None and pool.shrink()
        del pool


# Requests and the actors that get them: who has which, and what happens when one dies.

AHEAD = 4


class RayPool:
    """Actors of one function; any thread may use them.

    Parameters
    ----------
    name : str
        The function's.
    launcher : Launcher
        What starts them.
    options : RayOptions
        How many, and how often to try again.
    """

    def __init__(self, name: str, launcher: Launcher, options: RayOptions) -> None:
        self._name = name
        self._launcher = launcher
        self._options = options
        self._turn = itertools.count()
        self._ray = import_ray()
        self.fleet = Fleet(name, launcher, options)
        self._lock = self.fleet.lock

    def call(self, payload: bytes) -> Frame:
        """Return the answer to one record.

        Raises
        ------
        Exception
            When there is none: its actor died each time, or the function cannot be loaded.
        """
        ticket = Ticket(CALL, payload, 1)
        self._send(ticket)
        self.collect(ticket)
        if isinstance(ticket.answer, Exception):
            raise ticket.answer
        assert ticket.answer is not None
        return ticket.answer

    def post(
        self, kind: int, payload: bytes, records: int, *, size: int, wait: bool, ahead: int
    ) -> Ticket | None:
        """Send a batch, and leave the answer for later.

        Parameters
        ----------
        size : int
            How many the function gets at a time; 0: all.
        wait : bool
            Whether to send it even when all actors have ``ahead`` requests; else return None.
        """
        ticket = Ticket(kind, payload, records, size)
        return ticket if self._send(ticket, wait=wait, ahead=ahead) else None

    def collect(self, ticket: Ticket) -> None:
        """Wait until a ticket has its answer."""
        from ray.exceptions import RayError, RayTaskError

        while ticket.answer is None:
            ref = ticket.ref
            try:
                if ref is not None:
                    self._answered(ticket, decode(self._ray.get(ref)))
                elif ticket.deaths:
                    self._retry(ticket)
                else:
                    self._send(ticket)
            except RayTaskError as error:
                self._drop(ticket)
                ticket.answer = BackendError(f"{self._name}: its actor failed: {error}")
            except RayError as error:
                self._died(ticket, ref, error)
            except Exception:
                self._drop(ticket)
                raise
            except BaseException:  # Ctrl-C: what runs there may run for ever
                self._interrupted(ticket)
                raise

    def remote(self, record: Any, *, is_json: bool) -> Any:
        """Return Ray's reference to the result for one record; actors take turns."""
        began = time.monotonic()
        while True:
            with self._lock:
                self.fleet.look()
                if self.fleet.ready:
                    actor = self.fleet.ready[next(self._turn) % len(self.fleet.ready)]
                    actor.used = time.monotonic()
                    # Ray itself sees to these.
                    method = actor.handle.value.options(max_task_retries=self._options.max_retries)
                    return method.remote(record, is_json, actor.luggage)
            self.fleet.await_start(began)

    def _send(self, ticket: Ticket, *, wait: bool = True, ahead: int = AHEAD) -> bool:
        began = 0.0
        while True:
            with self._lock:
                self.fleet.look()
                actor = self.fleet.best(1 if ticket.kind == CALL else ahead)
                if actor is not None and (wait or len(actor.pending) < ahead):
                    actor.send(ticket)
                    return True
                if not wait:
                    return False
            began = began or time.monotonic()
            self.fleet.await_start(began)

    def _answered(self, ticket: Ticket, frame: Frame) -> None:
        with self._lock:
            self._drop(ticket)
            if frame.kind != DIED:
                ticket.answer = frame
                return
            self._count_death(ticket, rebuild(frame.payload))

    def _drop(self, ticket: Ticket) -> None:
        with self._lock:
            if ticket.actor is not None:
                ticket.actor.pending.pop(ticket, None)

    def _count_death(self, ticket: Ticket, error: Exception) -> None:
        ticket.ref = None
        ticket.deaths += 1
        if ticket.deaths > self._options.max_retries:
            ticket.answer = error

    def _died(self, ticket: Ticket, ref: Any, error: Exception) -> None:
        """Have an actor started again; what it had is tried again by whoever waits for it."""
        with self._lock:
            actor = ticket.actor
            if actor is None or ticket.ref is not ref:
                return  # another thread was here
            if actor in self.fleet.ready:
                self.fleet.start_again(actor)
            for each in list(actor.pending):
                if not self._has_answer(each):
                    self._count_death(each, lost(self._name, error))
            actor.pending.clear()
            if ticket.ref is ref and ticket.answer is None:
                self._count_death(ticket, lost(self._name, error))

    def _retry(self, ticket: Ticket) -> None:
        """Try again what an actor died with, on one that does nothing else meanwhile."""
        actor = self.fleet.take()
        whole = False
        try:
            alone = Alone(self._name, actor, self._launcher, self._options.start_timeout)
            ticket.answer = alone.retry(ticket, self._options.max_retries)
            whole = True
        finally:
            self.fleet.give_back(actor, whole=whole)

    def _has_answer(self, ticket: Ticket) -> bool:
        from ray.exceptions import RayError

        try:
            self._answered(ticket, decode(self._ray.get(ticket.ref, timeout=0)))
        except RayError:
            return False
        return True

    def _interrupted(self, ticket: Ticket) -> None:
        """End the actor that runs what nobody waits for any more; its other requests are kept."""
        with self._lock, contextlib.suppress(Exception):
            actor, ticket.answer = ticket.actor, BackendError(f"{self._name} was interrupted")
            if actor is None or ticket not in actor.pending:
                return
            for each in actor.pending:
                each.ref = None
            actor.pending.clear()
            if actor in self.fleet.ready:
                self._ray.kill(actor.handle, no_restart=False)
                self.fleet.start_again(actor)
