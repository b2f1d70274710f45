"""All functions of a server process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mfimage.runtime.calls.lane import Lane
from mfimage.runtime.loading.packages import shown
from mfimage.runtime.serving.metrics import Metrics
from mfimage.runtime.serving.problems import STOPPING
from mfimage.runtime.serving.served import Served
from mfimage.runtime.serving.service import Bodies, Service, State, Timer
from mfimage.runtime.settings import Settings


@dataclass(kw_only=True)
class Services:
    """The services of a server process, by the names of their functions."""

    served: Served
    settings: Settings
    metrics: Metrics
    loop: asyncio.AbstractEventLoop
    by_name: Mapping[str, Service] = field(init=False)
    default: Service | None = field(init=False)  # of a request that names no function
    bodies: Bodies = field(init=False)
    draining: bool = field(init=False, default=False)  # the server is about to end
    _lane: Lane | None = field(init=False)
    # What requests wait for that need a function to be loaded.
    loads: set[asyncio.Task[None]] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self.bodies = bodies = Bodies(self.settings.max_held)
        self._lane = Lane(self.loop) if self.served.several else None
        timer = Timer(self.loop, self.settings.timeout)
        self.by_name = {
            name: Service(
                name=name, spec=spec, settings=self.settings, loop=self.loop, bodies=bodies,
                observe=self._observe(name, spec.batch), timer=timer, lane=self._lane,
            )
            for name, spec in self.served.specs.items()
        }  # fmt: skip
        default = self.served.default
        self.default = None if default is None else self.by_name[default]

    def _observe(self, name: str, batch: bool) -> Callable[[int], None]:
        # Of several functions, only batch functions have series of their own.
        if self.served.several and not batch:
            return _ignore
        return self.metrics.batch_sizes(name).observe

    @property
    def loading(self) -> str | None:
        """Why the server's own routes must wait, if so: what they describe is not loaded."""
        if self.served.several:
            return None
        return next((each.loading for each in self.by_name.values() if each.must_load), None)

    @property
    def loaded(self) -> bool:
        """Whether every function that must be loaded is."""
        return not any(service.must_load for service in self.by_name.values())

    def started(self) -> None:
        """Count this process as ready once every function is loaded."""
        self.metrics.ready.set(self.loaded and not self.draining)

    def close(self) -> bool:
        """End the dispatchers; return whether no call runs and no function is loading."""
        closed = [service.close() for service in self.by_name.values()]
        if self._lane is not None:
            closed.append(self._lane.close())
        return all(closed)

    def drain(self) -> None:
        """Become not ready; every response now asks its client to connect elsewhere."""
        self.draining = True
        for service in self.by_name.values():
            service.draining = True
        self.metrics.ready.set(0)

    def not_ready(self) -> str | None:
        """Return why the server should get no requests, if so."""
        if self.draining:
            return STOPPING
        if not self.served.several:
            return next(service.not_ready() for service in self.by_name.values())
        # Of several functions, one that is slow takes no requests away from the others.
        services = self.by_name.values()
        failed = [service for service in services if service.state is State.FAILED]
        if failed:
            return f"{shown([each.name for each in failed])} cannot be loaded: {failed[0].failed}"
        waiting = [service.name for service in services if service.must_load]
        if waiting:
            count = f"{len(waiting)} of {len(services)}"
            return f"{count} functions are still loading: {shown(waiting)}"
        return None

    def stop(self) -> int:
        """End every call, body and wait; return how many bodies had not arrived."""
        for task in self.loads:
            task.cancel()
        inflight = [each.inflight for each in self.by_name.values() if each.inflight is not None]
        return sum(calls.stop() for calls in inflight)


def _ignore(size: int) -> None:
    pass
