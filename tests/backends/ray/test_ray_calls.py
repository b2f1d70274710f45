"""The table of ``calls.py`` in actors of a Ray cluster, for one function of each kind.

Every actor is a process that takes seconds to start. What the other functions add is the worker's
work, not Ray's: see ``test_process_calls``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from mfimage.backends.ray.backend import RayBackend
from mfimage.backends.ray.options import RayOptions
from mfimage.package.store import open_package
from tests.backends.calls import CALLS, PYTHON_CALLS, Call, check_backend
from tests.support.ray import marks

pytest_plugins = ["tests.backends.ray_fixtures"]
pytestmark = marks()
Backends = Mapping[str, RayBackend]
# Any JSON, artifacts, own types, exceptions, async, batches, Avro.
FUNCTIONS = ("echo", "predict", "make", "typed", "fails", "later", "doubled", "cut")


@pytest.fixture(scope="module")
def backends(bound_calls: Mapping[str, str], ray_cluster: Any) -> Iterator[Backends]:
    options = RayOptions(address=ray_cluster.address, num_cpus=0.05, max_actors=1)
    started = {name: RayBackend(open_package(bound_calls[name]), options) for name in FUNCTIONS}
    yield started
    for backend in started.values():
        backend.close()


def by_reference(backends: Backends, name: str, record: Any) -> Any:
    import ray

    try:
        return ray.get(backends[name].remote(record))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


@pytest.mark.parametrize(
    "call", [call for call in [*CALLS, *PYTHON_CALLS] if call.function in FUNCTIONS], ids=str
)
def test_calls(call: Call, backends: Backends) -> None:
    check_backend(call, backends, by_reference)
