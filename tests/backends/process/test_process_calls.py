"""The table of ``calls.py``, each function in an interpreter of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from mfimage.backends.process.backend import ProcessBackend
from mfimage.package.store import open_package
from tests.backends.calls import CALLS, PYTHON_CALLS, Call, check_backend
from tests.backends.process_support import Packages

pytestmark = pytest.mark.slow

pytest_plugins = ["tests.backends.process_fixtures"]
# What the table's functions import, and their model.
LIBRARIES = (
    *("cloudpickle", "fastavro", "joblib", "narwhals", "numpy", "scikit-learn", "scipy"),
    "threadpoolctl",
)
Backends = Mapping[str, ProcessBackend]


@pytest.fixture(scope="module")
def backends(bound_calls: Mapping[str, str], process_root: Path) -> Iterator[Backends]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MFIMAGE_CACHE", str(process_root / "cache"))
        patch.setenv("UV_CACHE_DIR", str(process_root / "uv"))
        patch.setenv("UV_OFFLINE", "1")
        # The same functions, locked to what is installed here; all packages have one root.
        packages = Packages(Path(bound_calls["echo"]).parents[3])
        environment = packages.environment(*LIBRARIES)
        started = {}
        for name, reference in bound_calls.items():
            spec = dataclasses.replace(open_package(reference).spec, environment=environment)
            started[name] = ProcessBackend(open_package(packages.store.write(spec)))
    yield started
    for backend in started.values():
        backend.close()


@pytest.mark.parametrize("call", [*CALLS, *PYTHON_CALLS], ids=str)
def test_calls(call: Call, backends: Backends) -> None:
    check_backend(call, backends)
