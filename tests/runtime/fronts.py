"""The server's front in this process, with httpx before it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx

from mfimage.runtime.loading.loader import LiveFunction
from mfimage.runtime.serving.app import Front
from mfimage.runtime.serving.content import Speech
from mfimage.runtime.serving.logs import AccessLog, Out
from mfimage.runtime.serving.metrics import Board, Metrics
from mfimage.runtime.serving.openapi import build_pages
from mfimage.runtime.serving.process import dispatcher_for
from mfimage.runtime.settings import Settings


class Lines:
    """Keeps what a log writes."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes, /) -> int:
        self.data += data
        return len(data)


class Served:
    """A front, and what stands around it."""

    def __init__(self, fn: LiveFunction, settings: Settings) -> None:
        loop = asyncio.get_running_loop()
        self.board = Board()
        self.metrics = Metrics(self.board)
        self.lines = Lines()
        self.access = AccessLog(Out(self.lines), loop.call_later)
        self.front = Front(
            spec=fn.spec, settings=settings, metrics=self.metrics, access=self.access, loop=loop
        )
        transport = httpx.ASGITransport(self.front)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://test", timeout=30)

    async def post(self, path: str, content: Any, **headers: str) -> httpx.Response:
        return await self.client.post(path, content=content, headers=headers)


@contextlib.asynccontextmanager
async def served(fn: LiveFunction, *, load: bool = True, **given: Any) -> AsyncIterator[Served]:
    """Serve a function; ``given`` are fields of ``Settings``."""
    settings = Settings(**given)
    it = Served(fn, settings)
    dispatcher = None
    if load:
        loop = asyncio.get_running_loop()
        dispatcher = dispatcher_for(fn, settings, loop=loop, on_batch=it.metrics.count_batch)
        wires = fn.speaks()
        it.front.start(dispatcher, Speech.of(fn, wires))
        it.front.show(build_pages(fn.spec, it.board, wires))
    try:
        yield it
    finally:
        await it.client.aclose()
        it.access.flush()
        if dispatcher is not None:
            dispatcher.close()
        fn.close()
