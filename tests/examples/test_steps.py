"""The steps example: the commands of its README give what it says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.docker import Unavailable, ensure_base_image

pytestmark = [pytest.mark.docker, pytest.mark.e2e, pytest.mark.index]
EXAMPLE = Path(__file__).parents[2] / "examples" / "steps"


def test_a_flow_trains_in_a_container_and_scores_in_a_pool(tmp_path: Path) -> None:
    try:
        ensure_base_image("3.11")
    except Unavailable as reason:
        pytest.skip(str(reason))
    shutil.copy(EXAMPLE / "flow.py", tmp_path)
    folder = Path(sys.executable).parent
    env = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}

    def run(*command: str) -> tuple[str, str]:
        done = subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        assert not done.returncode, done.stdout + done.stderr
        return done.stdout, done.stderr

    command = ("python", "flow.py", "--environment=fast-bakery", "run", "--shards", "6")
    shown = "".join(run(*command))
    assert "{0: 59, 1: 71, 2: 48}" in shown
    images = {line.rpartition(" ")[2] for line in shown.splitlines() if ": image " in line}
    assert len(images) == 1, "both steps share it"
    run_id = (tmp_path / ".metaflow" / "WineFlow" / "latest_run").read_text()
    found = json.loads(run("mfimage", "inspect", f"WineFlow/{run_id}/train", "--json")[0])
    assert {found["step.image"]} == images
