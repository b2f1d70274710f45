"""What steps declare: read from real flow classes, nothing is solved unless a test says so."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from mfimage.errors import LockError, MfimageError, OptionError
from mfimage.steps.capture import find_step
from mfimage.steps.declared import Declared, FlowFile, declare_steps, declares

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
HEAD = """
from metaflow import FlowSpec, step, pypi, conda, pypi_base, conda_base
{top}
{base}
class F(FlowSpec):
    {decorators}
    @step
    def start(self):
        {body}
        self.next(self.end)

    @step
    def end(self):
        pass
"""
Declare = Callable[..., Declared]


@pytest.fixture
def flow(tmp_path: Path) -> Callable[..., tuple[Any, FlowFile]]:
    def make(
        decorators: str = "", *, base: str = "", body: str = "pass", top: str = "",
        environment: str = "local", datastore: str = "local",
    ) -> tuple[Any, FlowFile]:  # fmt: skip
        number = len(list(tmp_path.glob("flow*.py")))  # a module is imported once
        path = tmp_path / f"flow{number}_{tmp_path.name}.py"
        path.write_text(HEAD.format(top=top, base=base, decorators=decorators, body=body))
        found, _, file = find_step(f"{path}:start")
        return found, FlowFile(path=file, flow="F", environment=environment, datastore=datastore)

    return make


@pytest.fixture
def declared(flow: Any) -> Declare:
    def declare(*arguments: Any, step: str = "start", **options: Any) -> Declared:
        made, file = flow(*arguments, **options)
        return declare_steps(made, {step: "linux/amd64"}, file)[step]

    return declare


def test_pypi_names_versions_as_metaflow_reads_them(declared: Declare) -> None:
    packages = {
        "Alpha": "1.2", "b": ">=1,<2", "c": "", "d": "~=3.1", "e": "@git+https://h.example/e@v1"
    }  # fmt: skip
    found = declared(f"@pypi(python='3.12.4', packages={packages})")
    assert (found.source, found.python, found.platform) == ("pypi", "3.12", "linux/amd64")
    assert set(found.requirements) == {
        "Alpha==1.2", "b<2,>=1", "c", "d~=3.1", "e @git+https://h.example/e@v1"
    }  # fmt: skip
    assert found.needed == (f"metaflow=={version('metaflow')}", "requests")


def test_a_flows_pypi_base_is_merged_as_metaflow_merges_it(flow: Any) -> None:
    made, file = flow(
        "@pypi(packages={'a': '2', 'b': '1'})",
        base="@pypi_base(python='3.12', packages={'a': '1', 'c': '1'})",
    )
    found = declare_steps(made, dict.fromkeys(("start", "end"), "linux/amd64"), file)
    assert found["start"].requirements == ("a==2", "b==1", "c==1")
    assert found["end"].requirements == ("a==1", "c==1")
    assert {each.python for each in found.values()} == {"3.12"}


def test_equal_environments_are_one_whatever_their_order(declared: Declare) -> None:
    one = declared("@pypi(python='3.11', packages={'a': '1', 'b': '2'})")
    other = declared("@pypi(python='3.11.9', packages={'b': '2', 'a': '1'})")
    assert one.digest == other.digest
    assert one.digest != declared("@pypi(python='3.12', packages={'a': '1', 'b': '2'})").digest
    s3 = declared("@pypi(python='3.11', packages={'a': '1', 'b': '2'})", datastore="s3")
    assert s3.digest != one.digest
    assert "boto3" in s3.needed


@pytest.mark.parametrize(("datastore", "needs"), [
    ("gs", "simple-gcp-object-downloader"), ("azure", "simple-azure-blob-downloader"),
])  # fmt: skip
def test_what_a_datastore_needs_is_included(declared: Declare, datastore: str, needs: str) -> None:
    assert needs in declared(datastore=datastore).needed


def test_conda_packages_become_wheels_of_the_same_version(declared: Declare) -> None:
    found = declared(
        "@conda(python='3.11', libraries={'pandas': '2.2.3'}, packages={'pytorch': '2.4.1'})"
    )
    assert found.source == "conda"
    assert set(found.requirements) == {"pandas==2.2.3", "torch==2.4.1"}
    fuzzy = declared("@conda(packages={'a': '=1.2', 'b': '>=1'})")
    assert set(fuzzy.requirements) == {"a==1.2", "b>=1"}


@pytest.mark.parametrize(("packages", "says", "hint"), [
    ("{'conda-forge::pandas': '2.2.3'}", "conda-forge::pandas is from a channel", "'pandas'"),
    ("{'cudatoolkit': '11.8'}", "cudatoolkit 11.8 is a conda package without a wheel", "CUDA"),
    ("{'pandas': '2.2.3=py311_0'}", "names a build of conda's", "leave the build out"),
])  # fmt: skip
def test_what_only_conda_has_is_refused_by_name(
    declared: Declare, packages: str, says: str, hint: str
) -> None:
    with pytest.raises(LockError) as caught:
        declared(f"@conda(packages={packages})")
    assert "@conda of step start" in caught.value.message
    assert says in caught.value.message
    assert hint in str(caught.value.hint)


@pytest.mark.index
def test_a_conda_package_without_a_wheel_is_refused_by_name(declared: Declare) -> None:
    found = declared("@conda(python='3.11', packages={'requests': '2.32.3', 'r-base': '4.3'})")
    with pytest.raises(LockError, match=r"no wheel: r-base==4\.3\n") as caught:
        found.lock()
    assert "@pypi" in str(caught.value.hint)


def test_both_decorators_with_packages_are_refused(flow: Any) -> None:
    made, file = flow("@pypi(packages={'a': '1'})\n    @conda(packages={'b': '1'})")
    with pytest.raises(OptionError, match="step start: it has packages of @pypi and of @conda"):
        declare_steps(made, {"start": "linux/amd64"}, file)


@pytest.mark.parametrize("decorator", ["pypi", "conda"])
@pytest.mark.parametrize("off", ["disabled=True", "disabled='true'"])
def test_a_disabled_decorator_declares_nothing(flow: Any, decorator: str, off: str) -> None:
    made, file = flow(f"@{decorator}({off}, packages={{'a': '1'}})")
    step = next(step for step in made if step.name == "start")
    assert declares(made, step) is None
    assert declare_steps(made, {"start": "linux/amd64"}, file)["start"].source == "imports"


def test_without_a_decorator_the_files_imports_count_those_of_its_steps_too(
    declared: Declare,
) -> None:
    found = declared(top="import orjson", body="import numpy")
    assert (found.source, found.python) == ("imports", HERE)
    names = {line.partition("==")[0] for line in found.requirements}
    assert {"orjson", "numpy", "metaflow"} <= names
    assert f"numpy=={version('numpy')}" in found.requirements


def test_imports_of_a_step_that_declares_its_environment_do_not_count(declared: Declare) -> None:
    """They need not even be installed here."""
    found = declared("@pypi(packages={'a': '1'})", body="import not_installed_here", step="end")
    assert found.source == "imports"
    assert not any("not_installed_here" in line for line in found.requirements)


def test_uv_lock_comes_before_imports(declared: Declare, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        f'[project]\nname = "p"\nversion = "1"\nrequires-python = "=={HERE}.*"\ndependencies = []\n'
    )
    subprocess.run([sys.executable, "-m", "uv", "lock", "--quiet"], cwd=tmp_path, check=True)
    found = declared(environment="uv")
    assert found.source == "uv.lock"
    assert declared(environment="uv").digest == found.digest
    # @pypi is Metaflow's own affair where the environment is uv's.
    assert declared("@pypi(packages={'a': '1'})", environment="local").source == "pypi"


def test_uv_without_a_lock_is_refused(declared: Declare) -> None:
    with pytest.raises(LockError, match=r"--environment=uv: no uv\.lock in"):
        declared(environment="uv")


@pytest.mark.parametrize("python", [">=3.9", "2.7", "latest"])
def test_what_is_not_a_version_of_python_is_refused(declared: Declare, python: str) -> None:
    with pytest.raises(OptionError, match="step start: python="):
        declared(f"@pypi(python={python!r}, packages={{'a': '1'}})")


def test_what_is_not_a_requirement_is_refused(declared: Declare) -> None:
    with pytest.raises(LockError, match=r"@pypi of step start: 'a==x y' is not a requirement"):
        declared("@pypi(packages={'a': 'x y'})")


@pytest.mark.index
def test_an_environment_is_solved_with_metaflow_in_it(declared: Declare) -> None:
    found = declared("@pypi(python='3.11', packages={'six': '1.16.0'})")
    locked = {each.name: each.version for each in found.lock().packages}
    assert locked["six"] == "1.16.0"
    assert locked["metaflow"] == version("metaflow")


@pytest.mark.parametrize(("reference", "says"), [
    ("flow.py:nope", "has no step 'nope'"),
    ("flow.py:Other.start", "has no flow Other"),
    ("start", "does not name a step"),
    ("flow.py:", "does not name a step"),
])  # fmt: skip
def test_a_step_that_is_not_there_is_refused(tmp_path: Path, reference: str, says: str) -> None:
    name = f"missing_{tmp_path.name}.py"
    source = HEAD.format(top="", base="", decorators="", body="pass")
    (tmp_path / name).write_text(source)
    with pytest.raises(MfimageError, match=says):
        find_step(reference.replace("flow.py", str(tmp_path / name)))
