"""All functions of a server process."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from mfimage.runtime.serving.metrics import Metrics
from mfimage.runtime.serving.problems import STOPPING
from mfimage.runtime.serving.served import Served
from mfimage.runtime.serving.service import Bodies, Service
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

    def __post_init__(self) -> None:
        self.bodies = bodies = Bodies(self.settings.max_held)
        self.by_name = {
            name: Service(
                name=name, spec=spec, settings=self.settings, loop=self.loop, bodies=bodies,
                observe=self.metrics.batch_sizes(name).observe,
            )
            for name, spec in self.served.specs.items()
        }  # fmt: skip
        default = self.served.default
        self.default = None if default is None else self.by_name[default]

    @property
    def loading(self) -> str | None:
        """Why requests must wait until functions are loaded, if so."""
        return next((each.loading for each in self.by_name.values() if each.loading), None)

    def started(self) -> None:
        """Count this process as ready once every function is loaded."""
        self.metrics.ready.set(not (self.draining or self.loading))

    def close(self) -> bool:
        """End the dispatchers; return whether no call runs and no function is loading."""
        closed = [service.close() for service in self.by_name.values()]
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
        reasons = (service.not_ready() for service in self.by_name.values())
        return next(filter(None, reasons), None)

    def stop(self) -> int:
        """End every call and every body; return how many bodies had not arrived."""
        inflight = [each.inflight for each in self.by_name.values() if each.inflight is not None]
        arriving = sum(len(calls.arriving) for calls in inflight)
        for calls in inflight:
            calls.stop()
        return arriving
