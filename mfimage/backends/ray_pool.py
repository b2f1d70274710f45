"""Requests and the actors that get them: who has which, and what happens when one dies."""

from __future__ import annotations

import contextlib
import itertools
import time
from typing import Any

from mfimage.backends.ray_actors import Launcher, Ticket, decode, lost
from mfimage.backends.ray_cluster import import_ray
from mfimage.backends.ray_fleet import Fleet
from mfimage.backends.ray_options import RayOptions
from mfimage.backends.ray_retries import Alone
from mfimage.errors import BackendError
from mfimage.runtime.frames import CALL, DIED, Frame
from mfimage.runtime.remote_errors import rebuild

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
