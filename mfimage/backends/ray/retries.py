"""Trying again what an actor died with.

Of several requests that an actor has, nobody can tell which one killed it: answers get lost with
the process. So each is tried again on an actor that has nothing else to do.
"""

from __future__ import annotations

from typing import Any

from mfimage.backends.ray.actors import Actor, Launcher, Ticket, decode, lost
from mfimage.backends.ray.cluster import import_ray
from mfimage.errors import BackendError
from mfimage.runtime.worker.exceptions import describe, rebuild
from mfimage.runtime.worker.frames import CALL, DIED, FAILURE, MIXED, Frame


class Alone:
    """An actor for one request at a time.

    Parameters
    ----------
    name : str
        The function's.
    actor : Actor
        Nobody else may send it anything.
    launcher : Launcher
        What started it.
    seconds : float
        How long it may take to load the function.
    """

    def __init__(self, name: str, actor: Actor, launcher: Launcher, seconds: float) -> None:
        self._name = name
        self._actor = actor
        self._launcher = launcher
        self._seconds = seconds
        self._ray: Any = import_ray()

    def retry(self, ticket: Ticket, most: int) -> Frame | Exception:
        """Return a request's answer.

        Parameters
        ----------
        ticket : Ticket
            What some actor died with.
        most : int
            How often it may be tried again; the last time record by record.

        Raises
        ------
        Exception
            When the actor cannot be used any more.
        """
        self._clear()
        answer = ticket.answer or lost(self._name, "")
        while ticket.deaths <= most:
            if ticket.deaths == most and ticket.records > 1:
                return self._one_by_one(ticket)
            found = self._run(ticket.kind, ticket.payload, ticket.size)
            if isinstance(found, Frame):
                return found
            answer = found
            ticket.deaths += 1
        return answer

    def _clear(self) -> None:
        """Wait until the actor is through with what it had, and has the function."""
        refs = [ticket.ref for ticket in self._actor.pending if ticket.ref is not None]
        if refs:
            self._ray.wait(refs, num_returns=len(refs), fetch_local=False)
        self._load()

    def _load(self) -> None:
        from ray.exceptions import GetTimeoutError, RayError

        self._actor.load_again()
        try:
            answer = self._ray.get(self._actor.loading, timeout=self._seconds)
        except GetTimeoutError:
            raise BackendError(
                f"{self._name}: an actor that died was not there again within {self._seconds:g} s",
                hint="has the cluster lost nodes? allow more with start_timeout=",
            ) from None
        except RayError as error:
            raise lost(self._name, error, "was imported") from None
        if self._launcher.loaded(answer) is None:
            raise BackendError(f"{self._name}: an actor that died cannot read the package again")
        self._actor.loading = None

    def _run(self, kind: int, payload: bytes, size: int = 0) -> Frame | Exception:
        from ray.exceptions import RayError

        try:
            frame = decode(self._ray.get(self._actor.ask(kind, payload, size)))
        except RayError as error:
            self._load()
            return lost(self._name, error)
        return rebuild(frame.payload) if frame.kind == DIED else frame

    def _one_by_one(self, ticket: Ticket) -> Frame:
        lines = []
        for record in ticket.payload.split(b"\n"):
            answer = self._run(CALL, record)
            if isinstance(answer, Exception):
                lines.append(b"-" + describe(answer))
            else:
                lines.append((b"-" if answer.kind == FAILURE else b"+") + answer.payload)
        return Frame(MIXED, b"\n".join(lines))
