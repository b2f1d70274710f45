"""Metaflow finds our names: from a wheel, an editable install, beside another's functions."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.projects import write

pytestmark = pytest.mark.index

ROOT = Path(__file__).parents[1]
SOURCES = ["pyproject.toml", "README.md", "LICENSE", "mfimage", "templates", "metaflow_extensions"]
OTHERS = "metaflow-functions==0.2.12"
OURS = """
from metaflow import FunctionParameters, JsonFunction, Task, function_from_json, json_function
from metaflow import avro_function, register_serializer
print(*sorted({each.__module__.partition(".")[0] for each in
               (FunctionParameters, JsonFunction, function_from_json, json_function,
                avro_function, register_serializer)}))
"""
NAMES = "import metaflow; print(*sorted(name for name in dir(metaflow) if name[0] != '_'))"


def uv(*arguments: str, cwd: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "uv", *arguments, "--quiet"],
        cwd=cwd, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert not done.returncode, done.stderr


class Venv:
    def __init__(self, folder: Path, *installed: str) -> None:
        self.folder = folder
        uv("venv", "--python", sys.executable, str(folder), cwd=folder.parent)
        for each in installed:
            self.install(*each.split())

    def install(self, *what: str) -> None:
        python = str(self.folder / "bin" / "python")
        uv("pip", "install", "--python", python, *what, cwd=self.folder.parent)

    def run(self, *arguments: str, cwd: Path | None = None, **env: str) -> str:
        done = subprocess.run(
            [str(self.folder / "bin" / "python"), *arguments],
            cwd=cwd or self.folder,  # not where another metaflow_extensions lies
            env={**os.environ, "PYTHONPATH": "", "METAFLOW_USER": "alice", **env},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        assert not done.returncode, done.stdout
        return done.stdout.strip()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of ours: building leaves files behind."""
    folder = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(project: Path) -> str:
    uv("build", "--wheel", "--out-dir", str(project / "dist"), str(project), cwd=project)
    return str(next((project / "dist").glob("*.whl")))


@pytest.fixture(scope="module")
def installed(wheel: str, tmp_path_factory: pytest.TempPathFactory) -> Venv:
    return Venv(tmp_path_factory.mktemp("wheel") / "venv", wheel)


def test_from_a_wheel(installed: Venv) -> None:
    assert installed.run("-c", OURS) == "mfimage"
    assert {"kubernetes", "batch", "docker", "devcontainer"} <= {
        *installed.run("-c", NAMES).split()
    }
    shown = installed.run("-m", "mfimage.runtime", "--help")
    assert "serve" in shown


def test_from_an_editable_install(project: Path, tmp_path: Path) -> None:
    venv = Venv(tmp_path / "venv", f"-e {project}")
    assert venv.run("-c", OURS) == "mfimage"
    assert venv.run("-c", OURS, cwd=project) == "mfimage"


def test_it_adds_its_names_and_takes_none(installed: Venv, tmp_path: Path) -> None:
    plain = Venv(tmp_path / "plain", "metaflow")
    ours = {
        "FunctionParameters", "JsonFunction", "avro_function", "function_from_json",
        "json_function", "register_serializer", "docker", "devcontainer", "worker_pool",
        "step_image_internal",
    }  # fmt: skip
    before, after = (set(venv.run("-c", NAMES).split()) for venv in (plain, installed))
    # Metaflow leaves a loop's variable behind once it has an extension to look at.
    assert after - before - {"pkg_name"} == ours
    assert before <= after


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_beside_the_functions_of_another_extension(first: str, wheel: str, tmp_path: Path) -> None:
    """Our names win, and nothing is lost that is there without us."""
    alone = Venv(tmp_path / "alone", OTHERS)
    order = [wheel, OTHERS] if first == "ours" else [OTHERS, wheel]
    both = Venv(tmp_path / "both", *order)
    assert both.run("-c", OURS) == "mfimage"
    assert set(alone.run("-c", NAMES).split()) <= set(both.run("-c", NAMES).split())


BREAKABLE = [
    "click", "cloudpickle", "docker", "fastavro", "jinja2", "orjson", "pydantic", "rich",
    "uv",
]  # fmt: skip
DECORATE = """
@json_function
def predict(data: dict, params: FunctionParameters) -> dict: return {"x": params.x}
@avro_function(schema={"type": "array", "items": "long"})
def total(data: list) -> int: return sum(data)
print(predict({}, FunctionParameters(x=1)), total([1, 2]))
"""


@pytest.mark.parametrize("broken", [*([each] for each in BREAKABLE), BREAKABLE], ids=" ".join)
def test_metaflow_works_with_any_of_our_dependencies_broken(
    broken: list[str], installed: Venv, tmp_path: Path
) -> None:
    """A flow's steps run where only Metaflow is; a failing import there would break them all."""
    write(tmp_path, {f"{name}.py": "raise RuntimeError('broken')\n" for name in broken})
    steps = "from metaflow import batch, devcontainer, docker, kubernetes\n"
    code = f"import metaflow\n{steps}{OURS}{DECORATE}"
    found = installed.run("-c", code, PYTHONPATH=str(tmp_path))
    assert found == "mfimage\n{'x': 1} 3"


FLOW = """
from metaflow import FlowSpec, json_function, step

class F(FlowSpec):
    @step
    def start(self): self.next(self.end)
    @step
    def end(self): pass

if __name__ == "__main__": F()
"""


def test_remote_steps_get_the_package(installed: Venv, tmp_path: Path) -> None:
    """Whole, by ``METAFLOW_PACKAGE_POLICY``, as soon as a flow uses our names."""
    write(tmp_path, {"flow.py": FLOW})
    listed = installed.run("flow.py", "package", "list", cwd=tmp_path)
    names = {line.strip() for line in listed.splitlines()}
    for part in ("mfimage/__init__.py", "mfimage/function/decorator.py", "mfimage/load.py"):
        assert any(name.endswith(part) for name in names), listed
    assert any(name.endswith("mfimage_toplevel.py") for name in names)
