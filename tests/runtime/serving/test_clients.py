"""Clients of others against a real server: load generators, Java's, and schemathesis."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runtime.packages import make_folder
from tests.runtime.servers import Server, running

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("clients")]

SOURCE = """
from typing import TypedDict

class Flower(TypedDict):
    length: float
    names: list[str]

@json_function
def predict(flower: Flower) -> dict:
    return {"length": flower["length"], "names": len(flower["names"])}
"""
RECORD = '{"length": 5.1, "names": ["a"]}'
RESULT = '{"length":5.1,"names":1}'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = make_folder(tmp_path_factory.mktemp("clients") / "fn", SOURCE)
    with running(folder) as started:
        yield started.until_ready()


@pytest.fixture
def record(tmp_path: Path) -> Path:
    path = tmp_path / "record.json"
    path.write_text(RECORD)
    return path


def run(*command: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    if (program := shutil.which(command[0], path=path)) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(
        [program, *command[1:]], capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("keep_alive", [["-k"], []])
def test_ab(server: Server, record: Path, keep_alive: list[str]) -> None:
    out = run(
        "ab", *keep_alive, "-n", "2000", "-c", "64", "-p", str(record), "-T", "application/json",
        f"{server.url}/predict",
    )  # fmt: skip
    assert re.search(r"Complete requests: +2000\n", out), out
    assert re.search(r"Failed requests: +0\n", out), out
    assert "Non-2xx" not in out


@pytest.mark.parametrize("pipelined", ["1", "10"])
def test_h2load(server: Server, record: Path, pipelined: str) -> None:
    out = run(
        "h2load", "--h1", "-n", "2000", "-c", "64", "-m", pipelined, "-d", str(record),
        "-H", "content-type: application/json", f"{server.url}/predict",
    )  # fmt: skip
    assert "2000 succeeded, 0 failed, 0 errored, 0 timeout" in out, out
    assert "2000 2xx, 0 3xx, 0 4xx, 0 5xx" in out, out


def test_java(server: Server) -> None:
    out = run("java", str(Path(__file__).with_name("Post.java")), f"{server.url}/predict", RECORD)
    assert out.splitlines() == [f"200 {RESULT}"] * 3


@pytest.mark.parametrize(
    "options",
    [
        ["--exclude-path", "/predict/batch"],
        # In a list, what is wrong with a record is its own result.
        ["--include-path", "/predict/batch", "--exclude-checks", "negative_data_rejection"],
    ],
)
def test_schemathesis(server: Server, options: list[str]) -> None:
    """What /openapi.json says is what the server does, for what fits it and for what does not."""
    out = run(
        "schemathesis", "run", f"{server.url}/openapi.json", "--max-examples", "30",
        "--seed", "1", "--no-color", *options,
    )  # fmt: skip
    assert "No issues found" in out, out
