"""The table of ``calls.py``, each function in an interpreter of its own."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from mfimage.backends.process.backend import ProcessBackend
from mfimage.package.store import open_package
from tests.backends.calls import CALLS, PYTHON_CALLS, Call, Way, check
from tests.backends.process_support import Packages

pytestmark = pytest.mark.slow

pytest_plugins = ["tests.backends.process_fixtures"]
# What the table's functions import, and their model.
LIBRARIES = (
    *("cloudpickle", "joblib", "narwhals", "numpy", "scikit-learn", "scipy"),
    "threadpoolctl",
)
Backends = Mapping[str, ProcessBackend]


@pytest.fixture(scope="module")
def backends(bound_calls: Mapping[str, str], process_root: Path) -> Iterator[Backends]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MFIMAGE_CACHE", str(process_root / "cache"))
        patch.setenv("UV_CACHE_DIR", str(process_root / "uv"))
        patch.setenv("UV_OFFLINE", "1")
        started = {name: _start(reference) for name, reference in bound_calls.items()}
    yield started
    for backend in started.values():
        backend.close()


def _start(reference: str) -> ProcessBackend:
    """Start the same function, locked to what is installed here."""
    package = open_package(reference)
    packages = Packages(Path(reference).parents[3])
    environment = packages.environment(*LIBRARIES)
    spec = dataclasses.replace(package.spec, environment=environment)
    return ProcessBackend(open_package(packages.store.write(spec)))


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


@pytest.mark.parametrize("way", [by_call, by_map, by_acall])
@pytest.mark.parametrize("call", [*CALLS, *PYTHON_CALLS], ids=str)
def test_every_way(call: Call, way: Any, backends: Backends) -> None:
    check(call, way(backends))
