"""Tests of one module run in one process."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
TESTS = """
import pytest

@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("number", range(6))
def test_it(number, worker_id):
    with open("workers", "a") as file:
        print(worker_id, file=file)
"""


def test_pytest_xdist_keeps_groups_together(tmp_path: Path) -> None:
    """It does not with every release of pytest, and says nothing."""
    (tmp_path / "test_it.py").write_text(TESTS)
    words = ["-m", "pytest", "-q", "-n2", "--dist", "loadgroup", "-p", "no:cacheprovider"]
    subprocess.run([sys.executable, *words], cwd=tmp_path, check=True, capture_output=True)
    workers = (tmp_path / "workers").read_text().split()
    assert len(workers) == 6
    assert len({*workers}) == 1


def test_ray_starts_quickly() -> None:
    """jsonschema imports it where it is, Ray imports jsonschema in each process: 1.4 s of CPU."""
    assert find_spec("rfc3987_syntax") is None, "which extra of [dev] has brought it?"
