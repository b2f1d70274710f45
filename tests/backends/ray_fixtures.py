"""Fixtures of the Ray backend's tests, as a plugin: for ``pytest_plugins``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mfimage.backends.ray.backend import RayBackend
from mfimage.backends.ray.options import RayOptions
from mfimage.package.store import Package
from tests.backends.process_support import Packages
from tests.support import ray as clusters


@pytest.fixture(scope="session")
def ray_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ray")


# Of a module, not of the session: other tests must not have its nodes' environment.
@pytest.fixture(scope="module")
def ray_cluster(ray_root: Path) -> Iterator[Any]:
    """A cluster with two CPUs for all these tests; its nodes have a cache of their own."""
    settings = {
        "MFIMAGE_CACHE": str(ray_root / "cache"),
        "UV_CACHE_DIR": str(ray_root / "uv"),
        "UV_OFFLINE": "1",
    }
    with clusters.cluster(**settings) as started:
        yield started


@pytest.fixture
def ray_packages(ray_root: Path) -> Packages:
    return Packages(ray_root / "root")


Start = Callable[..., RayBackend]


@pytest.fixture
def run_ray(
    ray_cluster: Any, ray_packages: Packages, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Start]:
    """Start a backend on a function's source, or on a package; all are closed afterwards."""
    monkeypatch.setattr("mfimage.backends.ray.cluster._LAST_LINES_SECONDS", 0)
    started: list[RayBackend] = []

    def start(source: str | Package, *, batch: bool = False, **options: Any) -> RayBackend:
        package = ray_packages.write(source, batch=batch) if isinstance(source, str) else source
        given = {"address": ray_cluster.address, "max_actors": 1, **options}
        started.append(RayBackend(package, RayOptions(**given)))
        return started[-1]

    yield start
    for backend in started:
        backend.close()
