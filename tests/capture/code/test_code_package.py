"""Binding from the code package of a run whose files are not here."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import metaflow
import pytest

from mfimage.bind import BindOptions, bind
from mfimage.capture.code.named import find_function
from mfimage.capture.environment.sources.project import find_uv_lock
from mfimage.errors import CaptureError, PackageError, TaskError
from tests.conftest import Run
from tests.support.projects import python, write

pytestmark = pytest.mark.slow

MFIMAGE = str(Path(sys.executable).with_name("mfimage"))
FLOW = """
from metaflow import FlowSpec, FunctionParameters, json_function, step
from helpers.scale import scale

@json_function
def predict(data: dict, params: FunctionParameters) -> dict:
    return {"y": scale(params.model * data["x"])}

class PackagedFlow(FlowSpec):
    @step
    def start(self):
        self.model = 3
        self.next(self.end)
    @step
    def end(self):
        pass

if __name__ == "__main__":
    PackagedFlow()
"""
SCALE = """
from metaflow import json_function

def scale(x):
    return 2 * x

@json_function
def double(data: dict) -> dict:
    return {"y": scale(data["x"])}
"""


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with a code package, and its project in a repository."""
    folder = tmp_path_factory.mktemp("packaged")
    files = {"flow.py": FLOW, "helpers/__init__.py": "", "helpers/scale.py": SCALE}
    write(folder, {**files, "notes.txt": "not code"})
    me = ["-c", "user.name=alice", "-c", "user.email=alice@example.org"]
    for command in (["init", "-q"], ["add", "."], [*me, "commit", "-qm", "flow"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    env = {"METAFLOW_FEAT_ALWAYS_UPLOAD_CODE_PACKAGE": "true"}
    command = ["flow.py", "--quiet", "--no-pylint", "run", "--run-id-file", "id"]
    python(command, folder=folder, env=env)
    return Run(flow="PackagedFlow", run=(folder / "id").read_text(), folder=folder)


@pytest.fixture
def client(packaged: Run, unlocked: None) -> Iterator[Any]:
    metaflow.metadata(f"local@{packaged.folder}")
    metaflow.namespace("user:alice")
    yield metaflow
    metaflow.namespace(None)
    metaflow.default_metadata()


@pytest.fixture
def copied(packaged: Run, client: Any, tmp_path: Path) -> Iterator[Path]:
    """The datastore in another place, to be damaged."""
    shutil.copytree(packaged.folder / ".metaflow", tmp_path / ".metaflow")
    for path in (tmp_path / ".metaflow").rglob("*ds-root*.json"):
        said = json.loads(path.read_text())
        path.write_text(json.dumps({**said, "value": str(tmp_path / ".metaflow")}))
    client.metadata(f"local@{tmp_path}")
    yield tmp_path / ".metaflow" / "PackagedFlow"


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No folder, no entry of ``sys.path``, no module."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    before = list(sys.path)
    yield
    assert list((tmp_path / "temporary").iterdir()) == []
    assert {"flow", "helpers", "helpers.scale"} & sys.modules.keys() == set()
    assert sys.path == before


def run_bind(run: Run, folder: Path, *arguments: str) -> tuple[str, list[str]]:
    command = [MFIMAGE, "bind", *arguments, "--task", f"PackagedFlow/{run.run}"]
    done = python(command, folder=folder, env=run.env)
    return done.stdout.strip(), done.stderr.splitlines()


@pytest.mark.parametrize(
    ("here", "there"),
    [("flow.py:predict", "../that/project/flow.py:predict"), ("helpers.scale:double",) * 2],
)
def test_it_is_what_is_bound_at_the_source(
    here: str, there: str, packaged: Run, tmp_path: Path
) -> None:
    reference, said = run_bind(packaged, packaged.folder, here)
    assert len(said) == 1
    assert json.loads(Path(reference).read_bytes())["lineage"]["git_commit"]
    again, said = run_bind(packaged, tmp_path / "elsewhere", there)
    assert again == reference
    task = f"PackagedFlow/{packaged.run}/end/2"
    assert said[0] == f"{there} is taken from the code package of {task}"


def test_which_one_it_is_when_there_are_two(packaged: Run, tmp_path: Path) -> None:
    """The file that is here, unless the other is asked for."""
    project = tmp_path / "project"
    shutil.copytree(packaged.folder, project, ignore=shutil.ignore_patterns(".m*"))
    flow = project / "flow.py"
    flow.write_text(flow.read_text().replace("params.model *", "params.model +"))
    here, _ = run_bind(packaged, project, "flow.py:predict")
    assert run_bind(packaged, project, "flow.py:predict", "--code", "here")[0] == here
    there, said = run_bind(packaged, project, "flow.py:predict", "--code", "task")
    assert there != here
    assert said[0].startswith("flow.py:predict is taken from the code package of")
    assert there == run_bind(packaged, tmp_path, "flow.py:predict")[0]


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (
            "nope.py:predict",
            "no file 'nope.py' here, and none in the code package of PackagedFlow/",
            "it has: flow.py, helpers/__init__.py, helpers/scale.py",
        ),
        (
            "flow.py:nope",
            "has no function 'nope'",
            "its decorated functions: predict",
        ),
        ("nope.py", "'nope.py' does not name a function", "write file.py:function"),
        ("absent_module:f", "importing absent_module failed", "install"),
    ],
)
def test_what_is_not_there_is_told(
    text: str, message: str, hint: str, packaged: Run, client: Any
) -> None:
    with (
        pytest.raises(CaptureError, match=message) as caught,
        find_function(text, task=f"PackagedFlow/{packaged.run}"),
    ):
        pass
    assert hint in str(caught.value.hint)


def test_a_module_that_is_here_is_not_taken_for_the_task_s(packaged: Run, client: Any) -> None:
    with (
        pytest.raises(CaptureError, match="json is not in the code package, but at"),
        find_function("json:dumps", task=f"PackagedFlow/{packaged.run}", code="task"),
    ):
        pass


@pytest.mark.parametrize(
    ("code", "start"), [(None, "there is no predict.py here, and run "), ("task", "run ")]
)
def test_a_run_without_a_code_package(
    code: str | None, start: str, iris_run: Run, metaflow_client: Any
) -> None:
    with (
        pytest.raises(TaskError) as caught,
        find_function("predict.py:predict", task=iris_run.pathspec, code=code),
    ):
        pass
    assert caught.value.message.startswith(f"{start}{iris_run.pathspec} has no code package")
    assert "METAFLOW_FEAT_ALWAYS_UPLOAD_CODE_PACKAGE=true" in str(caught.value.hint)


def blob(store: Path) -> Path:
    about = next(store.rglob("*code-package*.json"))
    key = json.loads(json.loads(about.read_text())["value"])["sha"]
    return store / "data" / key[:2] / key


def find(run: Run) -> None:
    with find_function("flow.py:predict", task=f"PackagedFlow/{run.run}") as found:
        bind(found.function, f"PackagedFlow/{run.run}", BindOptions())


def test_a_changed_code_package_is_refused_before_it_is_opened(packaged: Run, copied: Path) -> None:
    file = blob(copied)
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(PackageError, match=r"the code package of .* does not have the digest"):
        find(packaged)
    file.unlink()
    with pytest.raises(TaskError, match=r"the code package of .* is gone from the local datastore"):
        find(packaged)


@pytest.mark.parametrize("name", ["../flow.py", "/flow.py", "link.py"])
def test_a_code_package_that_escapes_its_folder_is_refused(
    name: str, packaged: Run, copied: Path, tmp_path: Path
) -> None:
    """Its digest is right: whoever can write a datastore can write that, too."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        member = tarfile.TarInfo(name)
        if name == "link.py":
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)
    data = buffer.getvalue()
    key = hashlib.sha1(data, usedforsecurity=False).hexdigest()
    old = blob(copied)
    for about in copied.rglob("*code-package*"):
        about.write_text(about.read_text().replace(old.name, key))
    (copied / "data" / key[:2]).mkdir(exist_ok=True)
    (copied / "data" / key[:2] / key).write_bytes(data)
    shutil.copy(f"{old}_meta", f"{copied / 'data' / key[:2] / key}_meta")
    with pytest.raises(PackageError, match=r"would land outside|is a link"):
        find(packaged)


def test_the_lock_that_a_code_package_carries_is_found(tmp_path: Path) -> None:
    """As ``--environment=uv`` puts it there, and as it lies where a step runs elsewhere."""
    unpacked = write(tmp_path / "unpacked", {"flow.py": ""})
    assert find_uv_lock(unpacked) is None
    write(unpacked / ".mf_meta", {"uv.lock": "", "pyproject.toml": ""})
    assert find_uv_lock(unpacked) == unpacked / ".mf_meta" / "uv.lock"
