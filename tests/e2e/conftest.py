"""The main job's fixtures: a trained flow, its functions' images, a server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import docker as support

EXAMPLE = Path(__file__).parents[2] / "examples" / "iris"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
# Needs no package, so that its image is made quickly.
SLOW = """
import time
from metaflow import json_function

@json_function
def slow(data: dict) -> dict:
    time.sleep(1)
    return data
"""
# Needs no package, so that its image is made quickly.
MANY = """
from metaflow import json_function

@json_function(batch=True)
def mean(records: list[dict]) -> list[float]:
    return [sum(record.values()) / len(record) for record in records]
"""
SETOSA = {
    "sepal length (cm)": 5.1,
    "sepal width (cm)": 3.5,
    "petal length (cm)": 1.4,
    "petal width (cm)": 0.2,
}


@dataclass(frozen=True)
class Project:
    """A folder in which examples/iris was trained."""

    folder: Path
    task: str

    def mfimage(
        self, *arguments: str, check: bool = True, stdin: str = "", env: Mapping[str, str] = {}
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(Path(sys.executable).with_name("mfimage")), *arguments],
            cwd=self.folder,
            env={**os.environ, **env},
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
        if check:
            assert done.returncode == 0, done.stderr
        return done

    def bind(self, function: str, *options: str) -> str:
        return self.mfimage("bind", function, "--task", self.task, *options).stdout.strip()


@dataclass(frozen=True)
class Server:
    """A container that serves, and how to ask it."""

    container: Any
    address: str

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        answer = httpx.request(method, f"http://{self.address}{path}", json=body, timeout=30)
        return answer.status_code, answer.json() if "json" in answer.headers.get(
            "content-type", ""
        ) else answer.text

    def post(self, path: str, body: object) -> tuple[int, Any]:
        return self.ask("POST", path, body)


@pytest.fixture(autouse=True)
def cache(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One cache for all of them, as users have: the same layers are made and compressed once."""
    monkeypatch.setenv("MFIMAGE_CACHE", str(shared_cache))
    monkeypatch.delenv("MFIMAGE_FUNCTIONS_ROOT", raising=False)
    return shared_cache


@pytest.fixture(scope="session")
def iris(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with ``python train.py run`` done, the local datastore, and nothing else."""
    folder = tmp_path_factory.mktemp("iris")
    for name in ("train.py", "predict.py"):
        shutil.copy(EXAMPLE / name, folder)
    # Before anything is bound: a function's code is its whole project.
    (folder / "slow.py").write_text(SLOW)
    (folder / "many.py").write_text(MANY)
    command = [sys.executable, "train.py", "run"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    run = (folder / ".metaflow" / "IrisFlow" / "latest_run").read_text().strip()
    return Project(folder=folder, task=f"IrisFlow/{run}/train")


@pytest.fixture(scope="session")
def predict(iris: Project) -> str:
    """The reference of examples/iris's ``predict``."""
    return iris.bind("predict.py:predict")


@pytest.fixture(scope="session")
def slow(iris: Project) -> str:
    """The reference of ``SLOW``."""
    return iris.bind("slow.py:slow")


@pytest.fixture(scope="session")
def base_image() -> str:
    """The base image of this Python's minor."""
    return support.ensure_base_image(PYTHON)


@pytest.fixture(scope="session")
def images() -> Iterator[list[str]]:
    """Names of images, removed at the end."""
    names: list[str] = []
    yield names
    subprocess.run(["docker", "rmi", "-f", *names], capture_output=True, check=False)


@pytest.fixture(scope="session")
def image(iris: Project, base_image: str, images: list[str]) -> str:
    """examples/iris's ``predict`` as an image, built by the command of the README."""
    built = iris.mfimage(
        "build", "predict.py:predict", "--task", iris.task, "-t", "mfimage-test-iris:1"
    )
    images.append("mfimage-test-iris:1")
    assert built.stdout == "mfimage-test-iris:1\n"
    return "mfimage-test-iris:1"


@contextmanager
def serving(image: str, **options: Any) -> Iterator[Server]:
    """Run an image until the block ends; it is ready when the block starts."""
    with support.container(image, ports=(8000,), **options) as running:
        server = Server(running, support.address(running, 8000))
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                if server.ask("GET", "/readyz")[0] == 200:
                    break
            except httpx.HTTPError:
                pass
            time.sleep(0.05)
        else:
            raise AssertionError(running.get_logs())
        yield server
