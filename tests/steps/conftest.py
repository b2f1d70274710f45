"""Fixtures for tests of steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import metaflow
import pytest

from tests.steps.running import Flows, build_step_image
from tests.support.docker import Unavailable


@pytest.fixture(scope="session")
def step_image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image with Metaflow in it."""
    try:
        return build_step_image(tmp_path_factory.mktemp("step-image"))
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture
def flows(tmp_path: Path) -> Iterator[Flows]:
    """A folder for a flow, with a datastore of its own."""
    (tmp_path / "flows").mkdir()
    yield Flows(folder=tmp_path / "flows")
    metaflow.namespace(None)
    metaflow.default_metadata()
