"""The table of ``calls.py``, each function in an actor of a Ray cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from mfimage.backends.ray.backend import RayBackend
from mfimage.backends.ray.options import RayOptions
from mfimage.package.store import open_package
from tests.backends.calls import CALLS, PYTHON_CALLS, Call, Way, check
from tests.support.ray import marks

pytest_plugins = ["tests.backends.ray_fixtures"]
pytestmark = marks()
Backends = Mapping[str, RayBackend]


@pytest.fixture(scope="module")
def backends(bound_calls: Mapping[str, str], ray_cluster: Any) -> Iterator[Backends]:
    options = RayOptions(address=ray_cluster.address, num_cpus=0.05, max_actors=1)
    started = {
        name: RayBackend(open_package(reference), options)
        for name, reference in bound_calls.items()
    }
    yield started
    for backend in started.values():
        backend.close()


def by_call(backends: Backends) -> Way:
    return lambda name, record: backends[name](record)


def by_map(backends: Backends) -> Way:
    def way(name: str, record: Any) -> Any:
        (result,) = backends[name].map([record], batch_size=3, on_error="return")
        if isinstance(result, Exception):
            raise result
        return result

    return way


def by_acall(backends: Backends) -> Way:
    return lambda name, record: asyncio.run(backends[name].acall(record))


def by_reference(backends: Backends) -> Way:
    import ray

    def way(name: str, record: Any) -> Any:
        try:
            return ray.get(backends[name].remote(record))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None

    return way


@pytest.mark.parametrize("way", [by_call, by_map, by_acall, by_reference])
@pytest.mark.parametrize("call", [*CALLS, *PYTHON_CALLS], ids=str)
def test_every_way(call: Call, way: Any, backends: Backends) -> None:
    check(call, way(backends))
