"""Functions that are bound in the steps of a flow, in real runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Run
from tests.support.projects import python, write
from tests.support.s3 import Bucket

pytestmark = pytest.mark.e2e

FLOW = Path(__file__).parents[1] / "support" / "flows" / "binding.py"
MFIMAGE = str(Path(sys.executable).with_name("mfimage"))
LOAD = """
import json, pickle, sys
from metaflow import Task, namespace
namespace(None)
found = []
for each in sys.argv[1:]:
    task, name = each.split(":")
    fn = Task(task)[name].data
    found.append({"answer": fn({"x": 2}), "reference": fn.reference, "task": fn.spec.task,
                  "size": len(pickle.dumps(fn))})
print(json.dumps(found))
"""


def run_flow(folder: Path, *arguments: str, env: Mapping[str, str] = {}) -> Run:
    command = ["binding.py", "--quiet", "--no-pylint", *arguments, "--run-id-file", "id"]
    python(command, folder=folder, env=env)
    return Run(flow="BindingFlow", run=(folder / "id").read_text(), folder=folder)


@pytest.fixture(scope="module")
def bound_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run of ``flows/binding.py``."""
    folder = tmp_path_factory.mktemp("binding")
    shutil.copy(FLOW, folder)
    for command in ("show", "check"):
        python(["binding.py", "--no-pylint", command], folder=folder)
    assert not (folder / ".mfimage").exists(), "looking at a flow binds nothing"
    return run_flow(folder, "run", "--bias", "2")


def tasks(run: Run, step: str) -> list[str]:
    folder = run.folder / ".metaflow" / run.flow / run.run / step
    found = sorted(path.name for path in folder.iterdir() if path.name.isdigit())
    return [f"{run.pathspec}/{step}/{name}" for name in found]


def load(folder: Path, env: Mapping[str, str], *wanted: tuple[str, str]) -> list[dict[str, Any]]:
    """Open artifacts in another process and call them."""
    arguments = ["-c", LOAD, *(f"{task}:{name}" for task, name in wanted)]
    found: list[dict[str, Any]] = json.loads(python(arguments, folder=folder, env=env).stdout)
    return found


def test_what_a_step_bound_is_loaded_elsewhere(bound_run: Run, tmp_path: Path) -> None:
    """Small, by another process in another folder; the same as when it is bound afterwards."""
    trained, joined, end = (tasks(bound_run, step) for step in ("train", "join", "end"))
    expected = [
        (trained[0], "fn", trained[0], 8),
        (joined[0], "best", trained[1], 12),
        (joined[0], "fn", joined[0], 22),
        (end[0], "fn", end[0], 22),
    ]
    found = load(tmp_path, bound_run.env, *(each[:2] for each in expected))
    references = [each["reference"] for each in found]
    for each, (_, _, bound_to, answer) in zip(found, expected, strict=True):
        assert each["answer"] == {"y": answer, "label": "low"}
        assert each["task"] == bound_to
        assert each["size"] < 512, "a reference, not the model"
    code = (
        "import sys; from metaflow import JsonFunction; from binding import predict\n"
        "for task in sys.argv[1:]: print(JsonFunction(predict, task=task).reference)"
    )
    again = python(["-c", code, *(each[2] for each in expected)], folder=bound_run.folder)
    assert again.stdout.split() == references


def test_steps_can_call_what_they_bound(bound_run: Run, tmp_path: Path) -> None:
    code = (
        "import sys; from metaflow import Task, namespace; namespace(None)\n"
        "print(Task(sys.argv[1])['answer'].data, Task(sys.argv[2])['answers'].data)"
    )
    arguments = ["-c", code, tasks(bound_run, "train")[1], tasks(bound_run, "end")[0]]
    shown = python(arguments, folder=tmp_path, env=bound_run.env).stdout
    joined = "{'y': 22, 'label': 'low'}"
    assert shown == f"{{'y': 12, 'label': 'low'}} [{{'y': 12, 'label': 'low'}}, {joined}]\n"


def test_a_resumed_run_binds_to_tasks_that_were_cloned(bound_run: Run) -> None:
    resumed = run_flow(bound_run.folder, "resume", "join")
    assert resumed.run != bound_run.run
    again, cloned = tasks(resumed, "join")[0], tasks(resumed, "train")[0]
    own, inherited = load(resumed.folder, {}, (again, "fn"), (cloned, "fn"))
    assert own["answer"] == {"y": 22, "label": "low"}
    assert own["task"] == again
    assert inherited["task"].startswith(bound_run.pathspec), "it is the function of its origin"
    command = [MFIMAGE, "bind", "binding.py:predict", "--task", cloned]
    bound = python(command, folder=bound_run.folder).stdout.strip()
    assert bound != inherited["reference"]


def test_a_root_that_was_moved(bound_run: Run, tmp_path: Path) -> None:
    task = tasks(bound_run, "end")[0]
    home, moved = bound_run.folder / ".mfimage", tmp_path / "moved"
    shutil.move(home, moved)
    try:
        command = ["-c", LOAD, f"{task}:fn"]
        done = python(command, folder=tmp_path, env=bound_run.env, check=False)
        assert "ReferenceNotFound" in done.stderr
        if sys.version_info >= (3, 11):
            assert "set MFIMAGE_FUNCTIONS_ROOT if its root was moved" in done.stderr
        env = {**bound_run.env, "MFIMAGE_FUNCTIONS_ROOT": str(moved)}
        [found] = load(tmp_path, env, (task, "fn"))
        assert found["reference"].startswith(str(moved))
    finally:
        shutil.move(moved, home)


REFUSED = """
from metaflow import FlowSpec, FunctionParameters, JsonFunction, current, json_function, step

@json_function
def predict(data: dict, params: FunctionParameters) -> dict:
    return {"y": params.model}

class RefusedFlow(FlowSpec):
    @step
    def start(self):
        self.early = refusal(current)
        self.next(self.one, self.two)
    @step
    def one(self):
        self.model = open(__file__)
        self.early = refusal(current)
        self.model = 1
        self.next(self.join)
    @step
    def two(self):
        self.early = "none"
        self.next(self.join)
    @step
    def join(self, inputs):
        self.found = [inputs.one.early, refusal("RefusedFlow/" + current.run_id + "/start/0")]
        self.model = 2
        self.fn = JsonFunction(predict, task=current)
        self.model = 3  # what was bound stays as it was
        self.found += [self.fn({})]
        self.next(self.end)
    @step
    def end(self):
        print("FOUND", self.found)

def refusal(task):
    try:
        return JsonFunction(predict, task=task).reference
    except Exception as error:
        print(type(error).__name__, error, error.hint)
        return type(error).__name__

if __name__ == "__main__":
    print("OUTSIDE", refusal(current))
    RefusedFlow()
"""


def test_what_cannot_be_bound_yet_is_told(tmp_path: Path) -> None:
    write(tmp_path, {"flow.py": REFUSED})
    shown = python(["flow.py", "--quiet", "--no-pylint", "run"], folder=tmp_path).stdout
    assert "TaskError task: no task is running here" in shown
    assert "start/1 has no artifact 'model' yet set self.model before the function" in shown
    assert "artifact 'model' of the running task RefusedFlow/" in shown
    assert "cannot be stored" in shown
    assert "has no task '0'" in shown
    assert "FOUND ['TaskError', 'TaskError', {'y': 2}]" in shown


SMALL = """
from metaflow import FlowSpec, FunctionParameters, JsonFunction, current, json_function, step

@json_function
def predict(data: dict, params: FunctionParameters) -> dict:
    return {"y": params.model * data["x"]}

class SmallFlow(FlowSpec):
    @step
    def start(self):
        self.model = 3
        self.fn = JsonFunction(predict, task=current)
        self.next(self.end)
    @step
    def end(self):
        print(f"SmallFlow/{current.run_id}/start/1", self.fn({"x": 3}))

if __name__ == "__main__":
    SmallFlow()
"""


def test_the_flow_in_the_docs(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "flows.md").read_text()
    write(tmp_path, {"flow.py": page.split("```python\n")[1].split("```")[0]})
    shown = python(["flow.py", "--quiet", "run"], folder=tmp_path).stdout
    assert f"{{'prediction': 0}} {tmp_path}/.mfimage/functions/predict/" in shown


def test_in_a_bucket(bucket: Bucket, tmp_path: Path) -> None:
    write(tmp_path, {"flow.py": SMALL})
    root = {"METAFLOW_DATASTORE_SYSROOT_S3": f"{bucket.url}/metaflow"}
    env = {**root, "METAFLOW_DEFAULT_DATASTORE": "s3"}
    shown = python(["flow.py", "--quiet", "--no-pylint", "run"], folder=tmp_path, env=env).stdout
    assert "/start/1 {'y': 9}" in shown
    assert not (tmp_path / ".mfimage").exists()
    task = f"SmallFlow/{(tmp_path / '.metaflow/SmallFlow/latest_run').read_text()}/start/1"
    [found] = load(tmp_path, env, (task, "fn"))
    assert found["answer"] == {"y": 6}
    assert found["reference"].startswith(f"{bucket.url}/mfimage/functions/predict/")


# Where only Metaflow is, as on a machine that runs one step.
ELSEWHERE = """
from metaflow import FlowSpec, FunctionParameters, JsonFunction, current, json_function, step
from helper import doubled

@json_function
def predict(data: dict, params: FunctionParameters) -> dict:
    return {"y": doubled(params.model * data["x"])}

class AwayFlow(FlowSpec):
    @step
    def start(self):
        import metaflow, mfimage
        self.model = 3
        print(metaflow.__file__, mfimage.__file__)
        print(predict({"x": 2}, FunctionParameters(model=self.model)))
        self.next(self.bind)
    @step
    def bind(self):
        self.fn = JsonFunction(predict, task=current)
        print(self.fn.reference)
        self.next(self.end)
    @step
    def end(self):
        print(self.fn({"x": 2}))

if __name__ == "__main__":
    AwayFlow()
"""
NEEDED = ["cloudpickle>=3", "orjson>=3.10", "packaging>=25", "pydantic>=2.10", "uv>=0.13"]


def uv(*arguments: str) -> None:
    command = [sys.executable, "-m", "uv", *arguments, "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr


class Away:
    """An empty folder with a code package in it, and an interpreter without mfimage."""

    def __init__(self, package: Path, folder: Path, interpreter: Path) -> None:
        self.folder, self.python, self.before = folder, interpreter, "_parameters/t0"
        folder.mkdir()
        subprocess.run(["tar", "xzf", str(package), "-C", str(folder)], check=True)
        (folder.parent / "store" / ".metaflow").mkdir(parents=True, exist_ok=True)

    def metaflow(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        env = {
            **os.environ,
            # What Metaflow itself sets where it has unpacked a code package.
            "PYTHONPATH": str(self.folder / ".mf_code"),
            "METAFLOW_EXTRACTED_ROOT": str(self.folder),
            "METAFLOW_DATASTORE_SYSROOT_LOCAL": str(self.folder.parent / "store"),
        }
        return subprocess.run(
            [str(self.python), "-u", "flow.py", "--quiet", *arguments],
            cwd=self.folder, env=env, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def step(self, name: str, check: bool = True) -> str:
        """Run one step, by the command that ``@batch`` and ``@kubernetes`` give."""
        ids = ["--run-id", "r-1", "--task-id", f"t-{name}", "--input-paths", f"r-1/{self.before}"]
        done = self.metaflow("step", name, *ids)
        if check:
            assert not done.returncode, done.stdout + done.stderr
            self.before = f"{name}/t-{name}"
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def interpreters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """Two without mfimage: one with Metaflow alone, one with what binding needs beside it."""
    folder, found = tmp_path_factory.mktemp("venvs"), []
    for name, installed in (("bare", ["metaflow"]), ("able", ["metaflow", *NEEDED])):
        uv("venv", "--python", sys.executable, str(folder / name))
        found.append(folder / name / "bin" / "python")
        uv("pip", "install", "--python", str(found[-1]), *installed)
        asked = [str(found[-1]), "-c", "import mfimage"]
        assert subprocess.run(asked, cwd=folder, stderr=subprocess.DEVNULL, check=False).returncode
    yield found[0], found[1]


@pytest.mark.index
@pytest.mark.parametrize("installed", ["editable", "wheel"])
def test_steps_that_run_elsewhere(
    installed: str,
    interpreters: tuple[Path, Path],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """Where mfimage is not installed: it came with the code package, however it is installed."""
    bare, able = interpreters
    packager = sys.executable
    if installed == "wheel":
        packager = str(request.getfixturevalue("wheel_venv") / "bin" / "python")
    project = write(
        tmp_path / "project",
        {"flow.py": ELSEWHERE, "helper.py": "def doubled(x): return 2 * x\n"},
    )
    package = tmp_path / "package.tgz"
    subprocess.run(
        [packager, "flow.py", "--quiet", "--no-pylint", "package", "save", str(package)],
        cwd=project, capture_output=True, check=True,
    )  # fmt: skip
    away = Away(package, tmp_path / "away", bare)
    assert not away.metaflow("init", "--run-id", "r-1", "--task-id", "t0").returncode
    shown = away.step("start")
    home = str(away.folder / ".mf_code")
    assert f"{home}/metaflow/__init__.py {home}/mfimage/__init__.py\n{{'y': 12}}\n" in shown

    refused = away.step("bind", check=False)
    assert "not installed: cloudpickle, orjson, packaging, pydantic, uv" in refused
    if sys.version_info >= (3, 11):
        assert '@pypi(packages={"cloudpickle": ">=3", "orjson": ">=3.10", ' in refused

    away.python = able
    reference = away.step("bind").strip().splitlines()[-1]
    assert reference.startswith(str(tmp_path / "store" / ".mfimage"))
    assert away.step("end").endswith("{'y': 12}\n")
    spec = json.loads(Path(reference).read_bytes())
    assert spec["environment"]["source"] == "imports"
    assert spec["environment"]["reasons"]["metaflow"] == "imported by flow.py:2"
    store = {"METAFLOW_DATASTORE_SYSROOT_LOCAL": str(tmp_path / "store")}
    command = [MFIMAGE, "bind", "flow.py:predict", "--task", "AwayFlow/r-1/bind/t-bind"]
    here = python([*command, "--namespace", ""], folder=project, env=store).stdout.strip()
    assert json.loads(Path(here).read_bytes())["code"] == spec["code"], "the same code"


@pytest.fixture(scope="module")
def wheel_venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with mfimage as its wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    root = Path(__file__).parents[2]
    names = ("pyproject.toml", "README.md", "LICENSE", "mfimage", "templates")
    for name in (*names, "metaflow_extensions"):
        kind = shutil.copytree if (root / name).is_dir() else shutil.copy
        kind(root / name, folder / name)
    uv("build", "--wheel", "--out-dir", str(folder / "dist"), str(folder))
    uv("venv", "--python", sys.executable, str(folder / "venv"))
    wheel = next((folder / "dist").glob("*.whl"))
    uv("pip", "install", "--python", str(folder / "venv" / "bin" / "python"), str(wheel))
    return folder / "venv"
