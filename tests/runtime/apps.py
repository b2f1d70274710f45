"""The server's app in this process, with httpx before it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from mfimage.runtime.loading.loader import LiveFunction
from mfimage.runtime.serving.app import App
from mfimage.runtime.serving.content import MediaTypes
from mfimage.runtime.serving.contract import routes
from mfimage.runtime.serving.logs import AccessLog, Out
from mfimage.runtime.serving.metrics import Metrics
from mfimage.runtime.serving.served import Served as ServedFunctions
from mfimage.runtime.serving.services import Services
from mfimage.runtime.settings import Settings


class Lines:
    """Keeps what a log writes."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes, /) -> int:
        self.data += data
        return len(data)


def samples(metrics: Metrics) -> dict[tuple[str, str], float]:
    """Return what ``/metrics`` shows, by name and labels."""
    metrics.flush()
    text = metrics.render([{"name": "predict", "digest": "sha256:0"}])[0].decode()
    return {
        (sample.name, ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


class Served:
    """An app, and what it works with."""

    def __init__(self, fn: LiveFunction, settings: Settings) -> None:
        loop = asyncio.get_running_loop()
        self.metrics = Metrics()
        self.lines = Lines()
        self.access = AccessLog(Out(self.lines), loop.call_later)
        functions = ServedFunctions.alone(fn.spec).placed(settings)
        self.services = Services(
            served=functions, settings=settings, metrics=self.metrics, loop=loop
        )
        (self.service,) = self.services.by_name.values()
        self.app = App(self.services, routes(functions), access=self.access)
        transport = httpx.ASGITransport(self.app)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://test", timeout=30)

    async def post(self, path: str, content: Any, **headers: str) -> httpx.Response:
        return await self.client.post(path, content=content, headers=headers)

    def requests(self) -> dict[tuple[str, str], float]:
        """Return how many requests were counted, by endpoint and status."""
        found = {}
        for (name, labels), value in samples(self.metrics).items():
            if name == "mfimage_requests_total" and value:
                endpoint, status = (pair.partition("=")[2] for pair in labels.split(","))
                found[endpoint, status] = value
        return found

    def in_flight(self) -> float:
        return samples(self.metrics)["mfimage_requests_in_flight", ""]


@contextlib.asynccontextmanager
async def served(fn: LiveFunction, *, load: bool = True, **given: Any) -> AsyncIterator[Served]:
    """Serve a function; ``given`` are fields of ``Settings``."""
    settings = Settings(**given)
    it = Served(fn, settings)
    if load:
        it.service.start(fn, MediaTypes.of(fn.spec, fn, data=fn.data))
        it.services.started()
    try:
        yield it
    finally:
        await it.client.aclose()
        it.access.flush()
        it.service.close()
        fn.close()
