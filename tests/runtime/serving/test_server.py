"""uvicorn, whose internals the server overrides."""

from __future__ import annotations

import asyncio
import importlib.metadata
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from packaging.requirements import Requirement

from mfimage.runtime.serving.http.server import Server
from mfimage.runtime.settings import Settings
from tests.runtime.apps import served
from tests.runtime.packages import live

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = Path(__file__).parents[3] / "pyproject.toml"


def test_only_versions_of_uvicorn_that_were_tried_are_installed() -> None:
    extras = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"]
    assert set(extras["serve"]) <= set(extras["dev"])
    (uvicorn,) = (r for r in map(Requirement, extras["serve"]) if r.name == "uvicorn")
    assert any(each.operator == "<" for each in uvicorn.specifier)
    assert importlib.metadata.version("uvicorn") in uvicorn.specifier


class Connection:
    def __init__(self, cycle: Any) -> None:
        self.cycle = cycle
        self.closed = False

    def shutdown(self) -> None:
        self.closed = True


def test_a_request_in_flight_learns_nothing_of_the_shutdown() -> None:
    """Some versions of uvicorn report a disconnect to it."""

    def echo(data: int) -> int:
        return data

    async def run() -> None:
        async with served(live(echo)) as it:
            server = Server(it.app, Settings(), None)
            busy, idle, new = (
                Connection(SimpleNamespace(response_complete=False, keep_alive=True)),
                Connection(SimpleNamespace(response_complete=True, keep_alive=True)),
                Connection(None),
            )
            server.server_state.connections = {busy, idle, new}  # type: ignore[arg-type]
            await server._finish(time.monotonic() + 10)
            assert (busy.closed, idle.closed, new.closed) == (False, True, True)
            assert busy.cycle.keep_alive is False

    asyncio.run(run())
