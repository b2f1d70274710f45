"""Flows for tests of steps: a folder with a datastore of its own, and what its runs left behind."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import metaflow

from tests.support.docker import ensure_base_image

ROOT = Path(__file__).parents[2]
IMAGE = "mfimage-test-step:1"
DOCKERFILE = """
FROM python:3.11-slim
COPY site /opt/site
RUN python -m compileall -q /opt/site || true
ENV PYTHONPATH=/opt/site
"""


def build_step_image(folder: Path) -> str:
    """Build an image with Metaflow and what its S3 datastore needs, and nothing of ours."""
    ensure_base_image("3.11")
    if not subprocess.run(
        ["docker", "image", "inspect", IMAGE], capture_output=True, check=False
    ).returncode:
        return IMAGE
    subprocess.run(
        [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python-version", "3.11",
         "--target", str(folder / "site"), "metaflow>=2.19", "boto3"],
        check=True, capture_output=True,
    )  # fmt: skip
    (folder / "Dockerfile").write_text(DOCKERFILE)
    subprocess.run(
        ["docker", "build", "--quiet", "--tag", IMAGE, str(folder)], check=True, capture_output=True
    )
    return IMAGE


@dataclass(frozen=True, kw_only=True)
class Flows:
    """A folder with a flow, and where its runs are kept."""

    folder: Path
    env: dict[str, str] = field(default_factory=dict)

    @property
    def environ(self) -> dict[str, str]:
        """The variables that a run starts with."""
        own = {
            "METAFLOW_USER": "alice",
            "METAFLOW_HOME": str(self.folder / "home"),
            "METAFLOW_DATASTORE_SYSROOT_LOCAL": str(self.folder),
            "PYTHONPATH": "",
        }
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("METAFLOW_", "MFIMAGE_"))}
        return {**kept, **own, **self.env}

    def write(self, source: str, name: str = "flow.py") -> Path:
        """Write the flow's file."""
        self.folder.mkdir(exist_ok=True, parents=True)
        path = self.folder / name
        path.write_text(source)
        return path

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of the flow."""
        return [sys.executable, "flow.py", *arguments]

    def start(self, *arguments: str, **env: str) -> subprocess.Popen[str]:
        """Start it."""
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.folder,
            env={**self.environ, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, fails: bool = False, **env: str) -> str:
        """Run it to its end; return what it printed."""
        process = self.start(*(arguments or ("run",)), **env)
        printed, _ = process.communicate(timeout=200)
        assert bool(process.returncode) is fails, printed
        return printed

    def latest(self, flow: str = "F") -> Any:
        """Return the latest run, as Metaflow's client has it."""
        metaflow.metadata(f"local@{self.folder}")
        metaflow.namespace(None)
        return metaflow.Flow(flow).latest_run

    def tasks(self, step: str, flow: str = "F") -> list[Any]:
        """Return the tasks of a step of the latest run, in the order they were started."""
        return sorted(self.latest(flow)[step], key=lambda task: int(task.id))

    def remove(self) -> None:
        """Forget it all."""
        shutil.rmtree(self.folder, ignore_errors=True)


def metadata_of(task: Any) -> dict[str, str]:
    """Return a task's metadata."""
    return {each.name: each.value for each in task.metadata}


def containers(pathspec: str) -> list[str]:
    """Return the names of all containers, running or not, whose task begins with a pathspec."""
    found = subprocess.run(
        ["docker", "ps", "--all", "--format", '{{.Names}} {{.Label "io.mfimage.task"}}'],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return re.findall(rf"^(\S+) {re.escape(pathspec)}", found.stdout, re.MULTILINE)
