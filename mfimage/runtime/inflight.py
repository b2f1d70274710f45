"""The requests that wait for the function: their timeouts, and clients that leave."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from mfimage.runtime.dispatch import Crossing, Dispatcher, Expired, Gone, Job, Outcome, Stopping

Receive = Callable[[], Awaitable[Any]]

_TICK = 0.05
# Watching for a client's leave costs a task; quick requests do without.
_PATIENCE = 0.1


class InFlight:
    """Submits jobs and waits for them.

    One timer looks after all of them: a timer and a task for each request would cost more than
    the rest of its way through here.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop
        The server's.
    dispatcher : Dispatcher
        Runs the jobs.
    timeout : float
        Seconds from the request to ``Expired``; 0 for never.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, dispatcher: Dispatcher, timeout: float
    ) -> None:
        self._loop = loop
        self._dispatcher = dispatcher
        self._timeout = timeout
        self._tick = max(0.001, min(_TICK, timeout / 10)) if timeout else _TICK
        self._jobs: dict[Job, None] = {}
        self._ticking = False
        self._submit = dispatcher.submit

    def __len__(self) -> int:
        return len(self._jobs)

    async def run(
        self, payload: bytes, receive: Receive, started: float, crossing: Crossing | None = None
    ) -> Outcome:
        """Return the outcome of one record.

        Parameters
        ----------
        payload : bytes
            The record.
        receive : callable
            The request's; it tells when the client leaves.
        started : float
            ``time.monotonic()`` when the request came.
        crossing : Crossing, optional
            How the record comes in and its result goes out, if not as JSON.
        """
        job = self._start(payload, started, crossing)
        job.receive = receive
        try:
            return await job.future
        finally:
            self._forget(job)

    async def run_many(
        self, payloads: Sequence[bytes], receive: Receive, started: float, *, at_once: int
    ) -> list[Outcome]:
        """Return the outcomes of the records of one request, in order; see ``run``.

        Only ``at_once`` of them stand in the queue together, so that other requests get a turn.

        Raises
        ------
        Gone
            When the client left.
        """
        gone = self._loop.create_task(_until_gone(receive))
        outcomes: list[Outcome] = []
        try:
            for start in range(0, len(payloads), at_once):
                chunk = payloads[start : start + at_once]
                outcomes += await self._run_chunk(chunk, gone, started)
        finally:
            gone.cancel()
        return outcomes

    async def _run_chunk(
        self, payloads: Sequence[bytes], gone: asyncio.Task[None], started: float
    ) -> list[Outcome]:
        jobs = [self._start(payload, started) for payload in payloads]
        try:
            everything = asyncio.gather(*(job.future for job in jobs))
            await asyncio.wait((everything, gone), return_when=asyncio.FIRST_COMPLETED)
            if everything.done():
                return everything.result()
            everything.cancel()
            raise Gone
        finally:
            for job in jobs:
                self._forget(job)

    def stop(self) -> None:
        """Answer everything that still waits with ``Stopping``."""
        for job in self._jobs:
            self._end(job, Stopping())

    def _start(self, payload: bytes, started: float, crossing: Crossing | None = None) -> Job:
        job = Job(payload, self._loop.create_future(), started, crossing)
        self._jobs[job] = None
        if not self._ticking:
            self._ticking = True
            self._loop.call_later(self._tick, self._look)
        self._submit(job)
        return job

    def _forget(self, job: Job) -> None:
        del self._jobs[job]
        if job.watcher is not None:
            job.watcher.cancel()
        if job.future.cancelled():
            self._dispatcher.abandon(job)

    def _end(self, job: Job, outcome: Outcome) -> None:
        if not job.future.done():
            job.future.set_result(outcome)
            self._dispatcher.abandon(job)

    def _look(self) -> None:
        now = time.monotonic()
        for job in self._jobs:
            age = now - job.started
            if self._timeout and age >= self._timeout:
                self._end(job, Expired(self._timeout))
            elif age >= _PATIENCE and job.receive is not None and job.watcher is None:
                job.watcher = self._loop.create_task(self._watch(job, job.receive))
        self._ticking = bool(self._jobs)
        if self._ticking:
            self._loop.call_later(self._tick, self._look)

    async def _watch(self, job: Job, receive: Receive) -> None:
        await _until_gone(receive)
        self._end(job, Gone())


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
