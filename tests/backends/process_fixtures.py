"""Fixtures of the process backend's tests, as a plugin: for ``pytest_plugins``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mfimage.backends.process.backend import ProcessBackend, ProcessOptions
from tests.backends.process_support import Packages


@pytest.fixture(scope="session")
def process_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for all these tests: the environment in its cache is made once."""
    return tmp_path_factory.mktemp("process")


@pytest.fixture
def process_packages(process_root: Path, monkeypatch: pytest.MonkeyPatch) -> Packages:
    monkeypatch.setenv("MFIMAGE_CACHE", str(process_root / "cache"))
    monkeypatch.setenv("UV_CACHE_DIR", str(process_root / "uv"))
    monkeypatch.setenv("UV_OFFLINE", "1")
    return Packages(process_root / "root")


@pytest.fixture
def run_process(process_packages: Packages) -> Iterator[Callable[..., ProcessBackend]]:
    """Start a backend on a function's source; all are closed afterwards."""
    started: list[ProcessBackend] = []

    def start(
        source: str, *, workers: int = 1, timeout: float | None = None, **package: Any
    ) -> ProcessBackend:
        options = ProcessOptions(workers=workers, timeout=timeout, start_timeout=60)
        started.append(ProcessBackend(process_packages.write(source, **package), options))
        return started[-1]

    yield start
    for backend in started:
        backend.close()
