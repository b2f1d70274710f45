"""Real Ray clusters on this machine, with nodes that are processes."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

# Ray's own: it leaves pipes and log files to the garbage collector.
IGNORED = (
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore:.*:DeprecationWarning:ray.*",
    "ignore:.*:FutureWarning:ray.*",
)
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    # Restarts are waited for in tests.
    "RAY_health_check_period_ms": "1000",
}
_STORE_BYTES = 100 * 2**20


def marks() -> list[Any]:
    """Return what each module with a cluster is marked with."""
    return [pytest.mark.ray, *(pytest.mark.filterwarnings(text) for text in IGNORED)]


@contextlib.contextmanager
def cluster(cpus: int = 2, **environment: str) -> Iterator[Any]:
    """Start a cluster of one node; ``address`` and ``add_node`` are Ray's own."""
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        for name, value in (SETTINGS | environment).items():
            patch.setenv(name, value)
        import ray
        from ray.cluster_utils import Cluster

        node = {
            "num_cpus": cpus,
            "object_store_memory": _STORE_BYTES,
            "include_dashboard": False,
        }
        started = Cluster()
        try:  # from here on: a head that does not come up in time leaves processes, too
            started.add_node(**node)
            yield started
        finally:
            ray.shutdown()
            started.shutdown()


def add_node(started: Any, *, cpus: int = 1, environment: Any = None, **resources: float) -> Any:
    """Add a node with some environment variables and custom resources."""
    before = dict(os.environ)
    os.environ.update(environment or {})
    try:
        return started.add_node(
            num_cpus=cpus, object_store_memory=_STORE_BYTES, resources=resources
        )
    finally:
        os.environ.clear()
        os.environ.update(before)


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for a condition."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.05)
