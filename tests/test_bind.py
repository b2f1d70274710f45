"""bind: functions from every kind of place, loaded elsewhere when their source is gone."""

from __future__ import annotations

import json
import os
import pkgutil
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import mfimage.bind
from mfimage.bind import BindOptions, bind
from mfimage.capture.code.locate import load_decorated
from mfimage.errors import (
    CaptureError,
    InputError,
    OptionError,
    StorageError,
    TaskError,
)
from mfimage.function.decorator import json_function
from mfimage.load import JsonFunction, function_from_json
from mfimage.package.store import open_package
from tests.conftest import Run
from tests.package.test_storage import small_disk
from tests.support.places import PLACES, TASK
from tests.support.projects import python, write

pytestmark = pytest.mark.slow

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_LOAD = """
import json, sys
from metaflow import function_from_json
for name, reference in json.loads(sys.argv[1]).items():
    try:
        answer = function_from_json(reference)({"x": 2})
    except Exception as error:
        answer = f"{type(error).__name__}: {error}"
    print(json.dumps([name, answer]))
"""
_LOAD_ONE = """
import json, sys
from pathlib import Path
from mfimage.package.store import open_package
from mfimage.package.archive import unpack
from mfimage.runtime.loading.loader import load_folder
package = open_package(sys.argv[1])
unpack(package.spec, package.store, Path.cwd())
print(json.dumps(load_folder(Path.cwd())({"x": 2})))
"""


@pytest.fixture(scope="module")
def pathspec(iris_run: Run) -> str:
    folder = iris_run.folder / ".metaflow" / "IrisFlow" / iris_run.run / "train"
    number = next(path.name for path in folder.iterdir() if path.name.isdigit())
    return f"{iris_run.pathspec}/train/{number}"


@pytest.fixture(scope="module")
def references(
    iris_run: Run, pathspec: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Bind in every place, each in a process of its own, and delete the projects."""
    env = {**iris_run.env, "MFIMAGE_FUNCTIONS_ROOT": str(tmp_path_factory.mktemp("root"))}

    def told(text: str) -> str:
        return text.replace(TASK, pathspec)

    def bound(name: str) -> str:
        place, folder = PLACES[name], tmp_path_factory.mktemp("project")
        write(folder, {file: told(text) for file, text in place.files.items()})
        command = [told(text) for text in place.command]
        done = python(command, folder=folder, env=env, stdin=told(place.stdin))
        shutil.rmtree(folder)
        return done.stdout.strip()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(PLACES, pool.map(bound, PLACES), strict=True))


@pytest.fixture(scope="module")
def answers(references: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """ONE other process, in another folder, loads them all: none meets another."""
    folder = tmp_path_factory.mktemp("elsewhere")
    env = {"MFIMAGE_CACHE": str(folder / "cache")}
    done = python(["-c", _LOAD, json.dumps(references)], folder=folder, env=env)
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.parametrize("name", PLACES)
def test_it_binds_and_loads_elsewhere(
    name: str, references: dict[str, str], answers: dict[str, Any]
) -> None:
    spec = open_package(references[name]).spec
    assert (spec.name, spec.entrypoint) == ("predict", PLACES[name].entrypoint)
    assert answers[name] == PLACES[name].expected


@pytest.mark.parametrize("name", ["package", "flow's own file, run as a script", "notebook"])
def test_it_loads_in_a_process_of_its_own(
    name: str, references: dict[str, str], tmp_path: Path
) -> None:
    done = python(["-c", _LOAD_ONE, references[name]], folder=tmp_path)
    assert json.loads(done.stdout) == PLACES[name].expected


MODULE = """
from mfimage.function.decorator import json_function
from mfimage.function.parameters import FunctionParameters

@json_function
def predict(data: dict[str, float], params: FunctionParameters) -> list[str]:
    \"\"\"Say which flower it is.

    By a model.
    \"\"\"
    found = params.model.predict([[data[name] for name in params.feature_names]])
    return [params.labels[index] for index in found]

@json_function
def reads_evil(data: dict, params: FunctionParameters) -> str:
    return type(params.evil).__name__

@json_function
def limited(data: float, params: FunctionParameters) -> list[bool]:
    return [data > limit for limit in (params.threshold, *params.more)]

@json_function
def lacks(data: dict, params: FunctionParameters) -> dict:
    return {"x": params.modle}
"""
SETOSA = {
    "sepal length (cm)": 5.1, "sepal width (cm)": 3.5,
    "petal length (cm)": 1.4, "petal width (cm)": 0.2,
}  # fmt: skip


@pytest.fixture
def module(tmp_path: Path, unlocked: None) -> Iterator[Any]:
    """A project of one module, imported."""
    folder = write(tmp_path / "project", {"flowers.py": MODULE})
    sys.path.insert(0, str(folder))
    import flowers  # type: ignore[import-not-found]

    yield flowers
    sys.path.remove(str(folder))
    del sys.modules["flowers"]


def written(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def test_what_a_package_says(module: Any, task: Any, tmp_path: Path) -> None:
    bound = JsonFunction(module.predict, task=task, root=tmp_path, examples=[SETOSA])
    spec = open_package(bound.reference).spec
    assert (bound.name, bound.spec.entrypoint) == ("predict", "flowers:predict")
    assert spec.description == "Say which flower it is.\n\nBy a model."
    assert spec.task == task.pathspec
    assert (spec.kind, spec.batch, spec.script) == ("json", False, None)
    assert spec.input_schema["additionalProperties"] == {"type": "number"}
    assert spec.output_schema == {"items": {"type": "string"}, "type": "array"}
    assert list(spec.artifacts) == ["feature_names", "labels", "model"], "only what it reads"
    assert spec.parameter_schema["required"] == list(spec.artifacts)
    assert spec.examples[0].output == bound(SETOSA) == ["setosa"]
    assert spec.lineage.to_dict() == {
        "flow": "IrisFlow", "run": task.pathspec.split("/")[1], "step": "train",
        "task": task.id, "user": "alice", "git_commit": None,
        "metaflow_version": task.metadata_dict["metaflow_version"],
        "created": spec.lineage.created,
    }  # fmt: skip
    assert time.strptime(str(spec.lineage.created), "%Y-%m-%dT%H:%M:%SZ")
    assert (repr(bound), bound.reference) == (
        f"<JsonFunction predict of {task.pathspec}>",
        str(tmp_path / "functions" / "predict" / spec.digest[7:] / "function.json"),
    )
    assert {path.relative_to(tmp_path).parts[0] for path in written(tmp_path)} == {
        "blobs", "functions", "project",
    }  # fmt: skip


def test_binding_the_same_thing_twice_gives_the_same_reference(
    module: Any, task: Any, tmp_path: Path
) -> None:
    """The time of binding is no part of it, the commit is."""
    first = JsonFunction(module.predict, task=task, root=tmp_path)
    files = {path: path.stat().st_mtime_ns for path in written(tmp_path / "functions")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mfimage.bind.git_commit", lambda _: "0" * 40)
        other = JsonFunction(module.predict, task=task, root=tmp_path).reference
        lineage = mfimage.bind._lineage
        patch.setattr("mfimage.bind.git_commit", lambda _: None)
        patch.setattr(
            "mfimage.bind._lineage", lambda *args: replace(lineage(*args), created="2030-01-01")
        )
        again = JsonFunction(module.predict, task.pathspec, root=tmp_path).reference
    assert again == first.reference
    assert {path: path.stat().st_mtime_ns for path in files} == files
    names = [JsonFunction(module.predict, task, root=tmp_path, **more).reference for more in (
        {"name": "other"}, {"artifacts": ["model"]}, {"parameters": {"labels": []}},
    )]  # fmt: skip
    assert len({first.reference, other, *names}) == 5


def test_where_packages_are_kept(
    module: Any, task: Any, iris_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = JsonFunction(module.predict, task=task).reference
    assert beside.startswith(f"{iris_run.folder}/.mfimage/functions/predict/")
    shutil.rmtree(iris_run.folder / ".mfimage")
    monkeypatch.setenv("MFIMAGE_FUNCTIONS_ROOT", str(tmp_path / "chosen"))
    assert JsonFunction(module.predict, task=task).reference.startswith(f"{tmp_path}/chosen/func")
    named = JsonFunction(module.predict, task=task, root=tmp_path / "named").reference
    assert named.startswith(f"{tmp_path}/named/functions/")


def test_parameters_may_be_given(module: Any, task: Any, tmp_path: Path) -> None:
    values = {"threshold": 1, "more": (2, 3)}
    bound = JsonFunction(module.limited, task=task, root=tmp_path, parameters=values)
    assert bound(2.5) == [True, True, False]
    assert (bound.spec.artifacts, bound.spec.parameters) == ({}, {"threshold": 1, "more": [2, 3]})
    partly = JsonFunction(module.limited, task=task, root=tmp_path, parameters={"more": []})
    assert (partly(0.75), list(partly.spec.artifacts)) == ([True], ["threshold"])


def test_a_malicious_pickle_runs_when_it_is_called_and_not_before(
    module: Any, task: Any, iris_run: Run, tmp_path: Path
) -> None:
    bound = JsonFunction(module.reads_evil, task=task, root=tmp_path)
    loaded = function_from_json(bound.reference)
    assert not iris_run.mark.exists()
    assert loaded({}) == "NoneType"
    assert iris_run.mark.exists()


OK = "flowers.predict"
REFUSALS = [
    (OK, {"name": "a b"}, OptionError, "name: 'a b' is not a function name"),
    (OK, {"name": "../x"}, OptionError, "name: '../x' is not a function name"),
    (OK, {"artifacts": ["modle"]}, TaskError, "has no artifact 'modle'"),
    (OK, {"artifacts": "model"}, OptionError, "artifacts: expected a list of names"),
    (OK, {"parameters": {"x": {1}}}, InputError, "parameters.x: set has no JSON form"),
    ("flowers.lacks", {}, TaskError, "has no artifact 'modle'"),
    ("os.getcwd", {}, CaptureError, "getcwd is not a decorated function"),
    ("tests.test_bind.Holder.method", {}, CaptureError, "Holder.method is not at the top level"),
]


class Holder:
    @staticmethod
    @json_function
    def method(data: dict) -> dict: ...


@pytest.mark.parametrize(("name", "options", "error", "message"), REFUSALS)
def test_what_is_refused_writes_nothing(
    *, name: str, options: Any, error: Any, message: str, module: Any, task: Any, tmp_path: Path
) -> None:
    function = pkgutil.resolve_name(name)
    with pytest.raises(error) as caught:
        bind(function, task, BindOptions(root=tmp_path / "root", **options))
    assert message in caught.value.message
    assert not (tmp_path / "root").exists()


SCALES = """
from mfimage.function.decorator import json_function
from mfimage.function.parameters import FunctionParameters

@json_function
def scale(data: float, params: FunctionParameters) -> float:
    return params.scaler.scale(data)
"""


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {},
            "names __main__.Scaler of train.py, and that file is not included with scales_",
        ),
        ({"train.py": "class IrisFlow: pass"}, "and importing train.py does not define it"),
        (
            {"train.py": "class OtherFlow:\n    class Scaler: pass"},
            "and that file is not included with ",
        ),
        (
            {"a/train.py": "class IrisFlow: pass", "b/train.py": "class IrisFlow: x = 1"},
            "and a/train.py and b/train.py both define IrisFlow",
        ),
    ],
)
def test_an_artifact_of_a_class_that_no_file_defines_is_refused(
    *,
    files: dict[str, str],
    message: str,
    task: Any,
    unlocked: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"scales_{tmp_path.name}"
    folder = write(tmp_path / "project", {f"{name}.py": SCALES, **files})
    function = load_decorated(f"{folder / name}.py:scale")
    with pytest.raises(CaptureError) as caught:
        bind(function, task, BindOptions(root=tmp_path / "root"))
    assert message in caught.value.message
    assert f"move Scaler to a file of its own, such as {folder}/scaler.py" in str(caught.value.hint)
    assert not list((tmp_path / "root").rglob("function.json"))


def test_the_script_may_be_in_any_folder(
    task: Any, unlocked: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    flow = (Path(__file__).parent / "support" / "flows" / "train.py").read_text()
    files = {"train.py": "class Other: pass", "flows/train.py": flow, "scales_any.py": SCALES}
    write(tmp_path / "project", files)
    function = load_decorated(f"{tmp_path}/project/scales_any.py:scale")
    reference = bind(function, task, BindOptions(root=tmp_path / "root"))
    assert open_package(reference).spec.script == "flows.train"
    del sys.modules["scales_any"]
    sys.path.remove(str(tmp_path / "project"))
    assert function_from_json(reference)(2) > 0


def test_a_task_that_is_none_is_refused(module: Any, tmp_path: Path) -> None:
    for task in (5, None, Path("x")):
        with pytest.raises(TaskError, match=r"expected a metaflow\.Task or a pathspec, got"):
            bind(module.predict, task, BindOptions(root=tmp_path / "root"))  # type: ignore[arg-type]


def test_a_failed_example_leaves_no_package(module: Any, task: Any, tmp_path: Path) -> None:
    examples = [1.0, 1, "x"]
    with pytest.raises(InputError, match=r"examples\[1\]: set has no JSON form"):
        given = {"more": []}
        bind(
            module.limited,
            task,
            BindOptions(root=tmp_path / "root", parameters=given, examples=[1, {1}]),
        )
    with pytest.raises(CaptureError, match='limited failed on the example "x": ') as caught:
        bind(
            module.limited,
            task,
            BindOptions(root=tmp_path / "root", parameters={"more": []}, examples=examples),
        )
    assert "data: expected float, got 'x'" in caught.value.message
    assert not list((tmp_path / "root").rglob("function.json"))


def test_a_full_disk_leaves_no_package(module: Any, task: Any, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk"):
        names = ["large", "model", "feature_names", "labels"]
        (tmp_path / "disk" / "ballast").write_bytes(b"x" * (240 << 10))
        with pytest.raises(StorageError, match="No space left on device"):
            JsonFunction(module.predict, task=task, root=tmp_path / "disk", artifacts=names)
        assert not list((tmp_path / "disk").rglob("function.json"))
        (tmp_path / "disk" / "ballast").unlink()
        assert JsonFunction(module.predict, task=task, root=tmp_path / "disk")(SETOSA) == ["setosa"]


_KILLED = """
import os, shutil, signal, sys
from mfimage.load import JsonFunction
from flowers import predict
root, task = sys.argv[1:]
JsonFunction(predict, task=task, root=f"{root}/first")  # imports all there is to import
copy = shutil.copyfileobj
for survivors in range(20):
    child = os.fork()
    if not child:
        left = iter(range(survivors))
        def copy_half(source, target, length):
            if next(left, None) is None:
                target.write(source.read()[:5])
                target.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            copy(source, target, length)
        shutil.copyfileobj = copy_half
        JsonFunction(predict, task=task, root=f"{root}/{survivors}")
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(survivors, status)
    if status == 0:
        break
"""


def test_a_kill_at_any_write_leaves_nothing_that_looks_whole(
    iris_run: Run, pathspec: str, tmp_path: Path
) -> None:
    folder = write(tmp_path / "project", {"flowers.py": MODULE})
    root = tmp_path / "root"
    done = python(["-c", _KILLED, str(root), pathspec], folder=folder, env=iris_run.env)
    *killed, last = (tuple(map(int, line.split())) for line in done.stdout.splitlines())
    assert len(killed) >= 6, "three artifacts, code, lock, function.json"
    for survivors, status in killed:
        assert status == -signal.SIGKILL
        assert not list((root / str(survivors)).rglob("function.json"))
        assert list((root / str(survivors)).rglob(".tmp-*")), "it was in the middle of it"
    whole = next((root / str(last[0])).rglob("function.json"))
    assert function_from_json(whole)(SETOSA) == ["setosa"]


_CONCURRENT = """
import os, sys, time
from mfimage.load import JsonFunction
from flowers import limited
import metaflow, mfimage.bind, mfimage.function.schema
root, task = sys.argv[1:]
start = time.time() + 0.2
children = []
for _ in range(8):
    child = os.fork()
    if not child:
        time.sleep(max(0, start - time.time()))
        for _ in range(3):
            bound = JsonFunction(limited, task=task, root=root, parameters={"more": [2]})
            assert bound(1.0) == [True, False]
        os.write(1, (bound.reference + "\\n").encode())
        os._exit(0)
    children.append(child)
sys.exit(any(os.waitpid(child, 0)[1] for child in children))
"""


def test_8_processes_may_bind_the_same_function_at_once(
    iris_run: Run, pathspec: str, tmp_path: Path
) -> None:
    folder = write(tmp_path / "project", {"flowers.py": MODULE})
    root = tmp_path / "root"
    done = python(["-c", _CONCURRENT, str(root), pathspec], folder=folder, env=iris_run.env)
    references = done.stdout.split()
    assert (len(references), len(set(references))) == (8, 1)
    assert len(list(root.rglob("function.json"))) == 1
    assert not list(root.rglob(".tmp-*"))
    assert function_from_json(references[0])(1.0) == [True, False]


@pytest.mark.index
def test_a_function_captured_by_value_has_an_environment_too(
    iris_run: Run, pathspec: str, tmp_path: Path
) -> None:
    """What it imports is told from the pickle and from the code; the rest stays out."""
    program = (
        "from metaflow import FunctionParameters, JsonFunction, json_function\n"
        "import numpy\n"
        "@json_function\n"
        "def predict(data: dict, params: FunctionParameters) -> list:\n"
        "    try:\n        import nowhere_at_all\n    except ImportError:\n        pass\n"
        "    return numpy.array(params.labels)[:data['x']]\n"
        f"options = dict(root={str(tmp_path)!r}, artifacts=['labels'])\n"
        f"print(JsonFunction(predict, task={pathspec!r}, **options).reference)\n"
    )
    done = python(["-"], folder=tmp_path, env={**iris_run.env, "PYTHONPATH": ""}, stdin=program)
    package = open_package(done.stdout.strip())
    lock = tomllib.loads(package.read(package.spec.environment.lock).decode())
    names = {each["name"] for each in lock["packages"]}
    assert {"numpy", "cloudpickle", "orjson", "pydantic"} <= names
    assert not {"scikit-learn", "pytest", "ruff"} & names
    assert function_from_json(package.reference)({"x": 1}) == ["setosa"]
