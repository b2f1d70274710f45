"""What Metaflow itself resolved by ``@pypi`` and ``@conda``: its own manifest, made by its code."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mfimage.capture.environment.sources.resolution import find_resolution
from mfimage.capture.task.task import TaskInfo, describe_task
from mfimage.errors import LockError
from tests.capture import micromamba
from tests.capture.projects import describe, versions
from tests.capture.wheelhouse import Index, Interpreter, make_interpreter, serve_index, wheel

pytestmark = pytest.mark.slow

_FLOW = """
from metaflow import FlowSpec, conda, pypi, step

class OwnFlow(FlowSpec):
    @step
    def start(self):
        self.next(self.solve)

    @pypi(packages={"learn-kit": "1.0"}, python="PYTHON")
    @step
    def solve(self):
        import learn
        self.next(self.end)

    @conda(packages={"numeric": "1.0", "odd-tool": "3.1"})
    @step
    def end(self):
        pass

if __name__ == "__main__":
    OwnFlow()
"""


class Own(NamedTuple):
    """A run in environments of its own, and the index that they came from."""

    folder: Path
    index: Index

    @contextmanager
    def client(self) -> Iterator[Any]:
        """Metaflow's client, looking at the run's datastore."""
        import metaflow

        metaflow.metadata(f"local@{self.folder}")
        metaflow.namespace(None)
        yield metaflow
        metaflow.default_namespace()
        metaflow.default_metadata()

    def task(self, step: str, **metadata: str | None) -> TaskInfo:
        with self.client() as metaflow:
            found = describe_task(next(iter(metaflow.Flow("OwnFlow")))[step].task)
        changed = {k: v for k, v in {**found.metadata, **metadata}.items() if v is not None}
        return dataclasses.replace(found, metadata=changed)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Own]:
    folder = tmp_path_factory.mktemp("own")
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("UV_", "PIP_"))}
    variables |= micromamba.install(tmp_path_factory.mktemp("conda") / "bin")
    (folder / "flow.py").write_text(_FLOW.replace("PYTHON", platform.python_version()))
    with serve_index() as index:
        index.add(
            wheel("learn-kit", requires=["numeric>=1"], files={"learn.py": ""}),
            wheel("numeric"),
            wheel("requests", "2.32.0", files={"requests/__init__.py": micromamba.REQUESTS}),
        )
        variables |= {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": index.url}
        variables |= {"NO_PROXY": "127.0.0.1", "METAFLOW_USER": "alice"}
        variables |= {"METAFLOW_FEAT_ALWAYS_UPLOAD_CODE_PACKAGE": "true"}
        command = [sys.executable, "flow.py", "--quiet", "--no-pylint", "--environment=pypi", "run"]
        done = subprocess.run(
            command, cwd=folder, env=variables, capture_output=True, text=True, check=False
        )
        assert not done.returncode, done.stdout + done.stderr
        # What has come since is none of the task's business.
        index.add(wheel("learn-kit", "2.0"), wheel("numeric", "2.0"), wheel("metaflow"))
        index.add(wheel("pydantic", "2.11"), wheel("orjson", "3.11", requires=["numeric"]))
        yield Own(folder, index)


@pytest.fixture
def asked(own: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    """The run's index, as the only one that uv asks."""
    for name in [name for name in os.environ if name.startswith("UV_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("UV_DEFAULT_INDEX", own.index.url)
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    own.index.requests.clear()
    return own.index


@pytest.fixture
def empty(tmp_path: Path) -> Interpreter:
    return make_interpreter(tmp_path / "empty")


def test_the_wheels_of_a_step_are_locked_as_they_are(
    own: Own, asked: Index, empty: Interpreter, project: Path
) -> None:
    found = find_resolution(own.task("solve"), platform="linux/amd64")
    assert found is not None
    described = describe(empty, project, resolution=found)
    assert described.source == "pypi"
    assert described.python == platform.python_version()
    assert versions(described) == {
        "learn-kit": "1.0",
        "metaflow": "1.0",
        "numeric": "1.0",
        "orjson": "3.11",
        "pydantic": "2.11",
        "requests": "2.32.0",
    }
    locked = {package.name: package.files for package in described.lock.packages}
    base = asked.url.removesuffix("/simple")
    for name in ("learn_kit-1.0", "numeric-1.0", "requests-2.32.0"):
        (file,) = locked[name.rpartition("-")[0].replace("_", "-")]
        assert file.url == f"{base}/files/{name}-py3-none-any.whl"
        assert file.sha256 == hashlib.sha256(asked.files[file.name]).hexdigest()
    assert described.reasons["numeric"] == "required by learn-kit"
    assert described.reasons["requests"] == "resolved by @pypi"


def test_the_manifest_beside_the_datastore_does_as_well(own: Own, asked: Index) -> None:
    packaged = find_resolution(own.task("solve"), platform="linux/amd64")
    beside = find_resolution(own.task("solve", **{"code-package": None}), platform="linux/amd64")
    assert packaged == beside
    gone = {"code-package": own.task("solve").metadata["code-package"].replace("data", "gone")}
    assert find_resolution(own.task("solve", **gone), platform="linux/amd64") == packaged


def test_a_task_without_an_environment_of_its_own_has_no_resolution(own: Own) -> None:
    assert find_resolution(own.task("start", conda_env_prefix=None), platform="linux/amd64") is None


def test_an_environment_that_no_manifest_knows(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    task = own.task("solve", conda_env_prefix="metaflow/linux-64/0123")
    with pytest.raises(LockError, match=r"OwnFlow/\d+/solve/\d+ ran in the environment 0123 of"):
        find_resolution(task, platform="linux/amd64")
    manifest = own.folder / ".metaflow" / "OwnFlow" / "conda.manifest"
    kept = manifest.read_bytes()
    manifest.write_text('{"0123": {"linux-64": {}}}')
    with pytest.raises(LockError, match="not as Metaflow writes it"):
        find_resolution(task, platform="linux/amd64")
    manifest.write_bytes(kept)


def test_conda_packages_become_the_wheels_of_their_versions(
    own: Own, asked: Index, empty: Interpreter, project: Path
) -> None:
    (project / "predict.py").write_text("import numeric\n")
    task = own.task("end")
    found = find_resolution(task, platform="linux/amd64")
    assert found is not None
    with pytest.raises(
        LockError, match=r"(?m)@conda has packages that have no wheel: odd-tool 3\.1$"
    ):
        describe(empty, project, resolution=found)
    asked.add(wheel("odd-tool", "3.1"))
    described = describe(empty, project, resolution=found)
    del asked.files["odd_tool-3.1-py3-none-any.whl"]
    assert described.source == "conda"
    assert versions(described) == {
        "odd-tool": "3.1",
        "numeric": "1.0",
        "orjson": "3.11",
        "pydantic": "2.11",
    }


def test_a_package_that_a_step_names_counts(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    task = own.task("end")
    graph: dict[str, Any] = {
        "steps": {"end": {"decorators": [{"name": "conda", "attributes": {"packages": None}}]}},
        "decorators": [{"name": "conda_base", "attributes": {"packages": {"openssl": "3.5.0"}}}],
    }
    plain = find_resolution(task, platform="linux/amd64")
    monkeypatch.setattr(task.store, "constant", lambda _: graph)
    named = find_resolution(task, platform="linux/amd64")
    assert plain is not None
    assert named is not None
    assert {str(each) for each in set(named.packages) - set(plain.packages)} == {"openssl 3.5.0"}


def test_what_the_function_imports_beside_its_step(
    own: Own, asked: Index, empty: Interpreter, project: Path
) -> None:
    (project / "predict.py").write_text("import learn, pytest\n")
    found = find_resolution(own.task("solve"), platform="linux/amd64")
    with pytest.raises(LockError, match=r"^the step's @pypi lacks .*: pytest \(") as caught:
        describe(empty, project, resolution=found)
    assert caught.value.hint == "add what provides pytest to it, and run the flow again"


def test_what_is_declared_comes_before_the_task(
    own: Own, asked: Index, empty: Interpreter, project: Path
) -> None:
    (project / "requirements.txt").write_text("learn-kit\n")
    (project / "predict.py").write_text("import learn_kit\n")
    found = find_resolution(own.task("solve"), platform="linux/amd64")
    described = describe(empty, project, "requirements.txt", resolution=found)
    assert (described.source, versions(described)["learn-kit"]) == ("requirements", "2.0")
