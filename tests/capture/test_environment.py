"""Which source describes an environment, and what comes of it."""

from __future__ import annotations

import hashlib
import io
import pickle
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mfimage.capture import uv
from mfimage.capture.environment import Environment, describe_environment, find_uv_lock
from mfimage.capture.pickles import StoredBytes
from mfimage.errors import LockError
from tests.capture.wheelhouse import (
    Index,
    Interpreter,
    make_interpreter,
    sdist,
    wheel,
    write_source,
)

MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"
RUNTIME = {"orjson", "pydantic"}


@pytest.fixture
def interpreter(tmp_path: Path, index: Index) -> Interpreter:
    """An interpreter with a few distributions at their first versions; the index has newer."""
    made = make_interpreter(tmp_path / "venv")
    both = [
        wheel("learn-kit", requires=["numeric>=1"], files={"learn.py": ""}),
        wheel("numeric", files={"numeric.py": ""}),
        wheel("metaflow", files={"metaflow/__init__.py": ""}),
        wheel("pydantic", "2.10"),
        wheel("orjson", "3.10"),
    ]
    made.install(*both, wheel("pytest"), wheel("on-no-index"))
    index.add(*both, wheel("numeric", "2.0"), wheel("pydantic", "2.11"), wheel("orjson", "3.11"))
    return made


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / ".git").mkdir()
    (folder / "predict.py").write_text("import learn\nimport metaflow\n")
    return folder


def describe(
    interpreter: Interpreter, project: Path, declared: str = "", **options: Any
) -> Environment:
    root = options.pop("code_root", project)
    return describe_environment(
        declared=project / declared if declared else None,
        project=project,
        code_root=root,
        files=sorted(root.rglob("*.py")),
        module="predict",
        artifacts=options.pop("artifacts", {}),
        python_executable=interpreter.python,
        **options,
    )


def versions(environment: Environment) -> dict[str, str]:
    return {package.name: package.version for package in environment.lock.packages}


def test_without_any_file_it_is_what_is_imported_at_the_versions_installed(
    interpreter: Interpreter, project: Path
) -> None:
    found = describe(interpreter, project)
    assert found.source == "imports"
    assert found.python == ".".join(map(str, sys.version_info[:3]))
    assert found.platform == "linux/amd64"
    assert found.reasons == {
        "learn-kit": "imported by predict.py:1",
        "metaflow": "imported by predict.py:2",
        "numeric": "required by learn-kit",
        "orjson": "needed by mfimage's loader",
        "pydantic": "needed by mfimage's loader",
    }
    assert versions(found) == {
        "learn-kit": "1.0",
        "metaflow": "1.0",
        "numeric": "1.0",
        "orjson": "3.10",
        "pydantic": "2.10",
    }
    assert describe(interpreter, project).lock.data == found.lock.data


def test_an_editable_distribution_travels_as_a_wheel(
    interpreter: Interpreter, project: Path, tmp_path: Path
) -> None:
    source = write_source(tmp_path / "mine", "mine", code="import learn\n")
    interpreter.install_editable(source, "mine")
    (project / "predict.py").write_text("import mine\n")
    first, second = describe(interpreter, project), describe(interpreter, project)
    assert first.reasons["mine"] == "imported by predict.py:1"
    assert list(first.lock.wheels) == ["mine-1.0-py3-none-any.whl"]
    assert first.lock.data == second.lock.data


def test_an_artifact_counts(interpreter: Interpreter, project: Path) -> None:
    (project / "predict.py").write_text("")
    data = b"cnumeric\narray\n."
    model = StoredBytes(encoding="pickle-v2", open=lambda: io.BytesIO(data))
    found = describe(interpreter, project, artifacts={"model": model})
    assert found.reasons["numeric"] == "named by the pickle of artifact 'model'"


def test_what_is_installed_and_on_no_index_is_named(
    interpreter: Interpreter, project: Path
) -> None:
    (project / "predict.py").write_text("import on_no_index\n")
    with pytest.raises(LockError, match=r"^on-no-index is on no package index"):
        describe(interpreter, project)


def test_a_requirements_file(interpreter: Interpreter, project: Path, index: Index) -> None:
    (project / "more").mkdir()
    (project / "requirements.txt").write_text(
        "-r more/base.txt   # comment\n-c limits.txt\nlearn-kit[fast] ; python_version >= '3'\n"
        "winonly; sys_platform == 'win32'\n"
    )
    (project / "more" / "base.txt").write_text("-r ../requirements.txt\nextra-thing==1.0\n")
    (project / "limits.txt").write_text("numeric<2\n")
    index.add(wheel("extra-thing"), wheel("extra-thing", "2.0"))
    found = describe(interpreter, project, "requirements.txt")
    assert found.source == "requirements"
    assert versions(found) == {
        "extra-thing": "1.0",
        "learn-kit": "1.0",
        "metaflow": "1.0",  # imported, and named by nobody
        "numeric": "1.0",
        "orjson": "3.11",
        "pydantic": "2.11",
    }
    assert found.reasons["learn-kit"] == "named in requirements.txt"
    assert found.reasons["numeric"] == "required by what is named"
    assert found.reasons["metaflow"] == "imported by predict.py:2"


@pytest.mark.parametrize("right", [True, False])
def test_hashes_of_a_requirements_file_bind(
    interpreter: Interpreter, project: Path, index: Index, right: bool
) -> None:
    digest = hashlib.sha256(index.files["numeric-1.0-py3-none-any.whl"]).hexdigest()
    digest = digest if right else "0" * 64
    (project / "requirements.txt").write_text(f"numeric==1.0 \\\n    --hash=sha256:{digest}\n")
    if right:
        assert versions(describe(interpreter, project, "requirements.txt"))["numeric"] == "1.0"
        return
    with pytest.raises(LockError, match=r"numeric 1\.0: none of the hashes that are required"):
        describe(interpreter, project, "requirements.txt")


def test_a_requirement_that_the_loader_cannot_live_with(
    interpreter: Interpreter, project: Path, index: Index
) -> None:
    index.add(wheel("pydantic", "1.10"))
    (project / "requirements.txt").write_text("pydantic==1.10\n")
    with pytest.raises(
        LockError, match=r"pydantic==1\.10 and pydantic>=2\.10 are required at once"
    ):
        describe(interpreter, project, "requirements.txt")
    (project / "pylock.toml").write_text(_pylock(index, "pydantic-1.10"))
    with pytest.raises(LockError, match=r"pylock.toml locks pydantic 1\.10, and mfimage's loader"):
        describe(interpreter, project, "pylock.toml")


def _pylock(index: Index, *wheels: str, more: str = "") -> str:
    lines = ['lock-version = "1.0"', 'created-by = "somebody"', more]
    for each in wheels:
        name, _, version = each.rpartition("-")
        file = f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
        url = f"{index.url.replace('//', '//user:pass@').removesuffix('/simple')}/files/{file}"
        digest = hashlib.sha256(index.files[file]).hexdigest()
        lines += ["[[packages]]", f'name = "{name}"', f'version = "{version}"']
        lines += [f'wheels = [{{ url = "{url}", hashes = {{ sha256 = "{digest}" }} }}]']
    return "\n".join(lines) + "\n"


def test_a_pylock_is_kept_and_what_the_loader_needs_joins(
    interpreter: Interpreter, project: Path, index: Index
) -> None:
    text = _pylock(index, "numeric-1.0", "pydantic-2.10")
    text += (
        '[[packages]]\nname = "winonly"\nversion = "1.0"\nmarker = "sys_platform == \'win32\'"\n'
        '[[packages]]\nname = "devonly"\nversion = "1.0"\nmarker = "\'dev\' in dependency_groups"\n'
        '[[packages]]\nname = "mfimage"\nversion = "1.0"\n'
    )
    (project / "pylock.prod.toml").write_text(text)
    found = describe(interpreter, project, "pylock.prod.toml")
    assert found.source == "pylock"
    assert versions(found) == {
        "metaflow": "1.0",
        "numeric": "1.0",
        "orjson": "3.11",
        "pydantic": "2.10",
    }
    assert b"user:pass" not in found.lock.data
    assert found.reasons["numeric"] == "locked in pylock.prod.toml"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lock-version = ": "lock-version = 2 #"}, "lock-version: expected 1.x, got 2"),
        ({"[[packages]]": "[[packages"}, "not TOML"),
        ({"sha256": "md5"}, "the lock has no sha256 of numeric-1.0-py3-none-any.whl"),
        (
            {"numeric-1.0-py3-none-any.whl": "numeric-1.0-py3-none-win_amd64.whl"},
            "has no wheel for",
        ),
        ({"[[packages]]": 'requires-python = "<3"\n[[packages]]'}, "requires Python <3"),
        ({"[[packages]]": "environments = [\"sys_platform == 'x'\"]\n[[packages]]"}, "is not for"),
        ({"[[packages]]": "environments = ['hey']\n[[packages]]"}, "marker 'hey'"),
        ({"[[packages]]\n": "[[packages]]\nname='numeric'\nversion='1'\n[[packages]]\n"}, "twice"),
    ],
)
def test_a_pylock_that_cannot_be_used(
    interpreter: Interpreter, project: Path, index: Index, change: Mapping[str, str], message: str
) -> None:
    text = _pylock(index, "numeric-1.0")
    for old, new in change.items():
        text = text.replace(old, new)
    (project / "pylock.toml").write_text(text)
    with pytest.raises(LockError) as caught:
        describe(interpreter, project, "pylock.toml")
    assert message in caught.value.message


@pytest.mark.parametrize("name", ["nothing.txt", "predict.py", "poetry.lock"])
def test_a_file_that_describes_nothing(interpreter: Interpreter, project: Path, name: str) -> None:
    (project / "poetry.lock").touch()
    with pytest.raises(LockError, match="environment: "):
        describe(interpreter, project, name)


def make_uv_project(project: Path, *dependencies: str, packaged: bool = True) -> None:
    build = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    if packaged:
        write_source(project, "app")
    (project / "pyproject.toml").write_text(
        f'[project]\nname = "app"\nversion = "1.0"\nrequires-python = ">=3.10"\n'
        f"dependencies = {list(dependencies)}\n[dependency-groups]\ndev = ['pytest']\n"
        f"[tool.uv.sources]\nmine = {{ path = '../mine', editable = true }}\n"
        f"{build if packaged else ''}"
    )
    subprocess.run([uv.find_uv(), "lock", "-q"], cwd=project, check=True)


def test_the_projects_uv_lock_comes_before_imports(
    interpreter: Interpreter, project: Path, index: Index, tmp_path: Path
) -> None:
    write_source(tmp_path / "mine", "mine")
    index.add(wheel("nt"), wheel("pytest"), wheel("docker"))
    index.add(wheel("mfimage", requires=["docker", "metaflow"]))
    index.add(sdist(write_source(tmp_path / "old", "old"), "old"))
    make_uv_project(project, "numeric<2", "mine", "old", "mfimage", "nt; sys_platform == 'win32'")
    code = project / "serving"
    code.mkdir()
    (code / "predict.py").write_text("import learn, metaflow\n")
    found = describe(interpreter, project, code_root=code)
    assert found.source == "uv.lock"
    assert versions(found) == {
        "metaflow": "1.0",
        "mine": "1.0",
        "numeric": "1.0",
        "old": "1.0",
        "orjson": "3.11",
        "pydantic": "2.11",
    }
    assert sorted(found.lock.wheels) == ["mine-1.0-py3-none-any.whl", "old-1.0-py3-none-any.whl"]
    assert describe(interpreter, project, "uv.lock", code_root=code).lock.data == found.lock.data
    # The project itself goes along when the code asks for it, and it is not the code.
    (code / "predict.py").write_text("import app\n")
    assert versions(describe(interpreter, project, code_root=code))["app"] == "1.0"


def test_a_uv_lock_that_is_stale(interpreter: Interpreter, project: Path, index: Index) -> None:
    index.add(wheel("pytest"))
    make_uv_project(project, packaged=False)
    text = (project / "pyproject.toml").read_text()
    (project / "pyproject.toml").write_text(text.replace("[]", "['numeric']", 1))
    with pytest.raises(LockError, match=r"uv\.lock"):
        describe(interpreter, project)


def test_uv_lock_is_looked_for_up_to_the_top_of_the_repository(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "repo"):
        folder.mkdir(exist_ok=True)
        (folder / "uv.lock").touch()
        (folder / "pyproject.toml").touch()
    deep = tmp_path / "repo" / "a" / "b"
    deep.mkdir(parents=True)
    assert find_uv_lock(deep) is None  # no repository: its own folder counts
    (tmp_path / "repo" / ".git").mkdir()
    assert find_uv_lock(deep) == tmp_path / "repo" / "uv.lock"
    (tmp_path / "repo" / "uv.lock").unlink()
    assert find_uv_lock(deep) is None


@pytest.mark.index
@pytest.mark.parametrize("platform", ["linux/amd64", "linux/arm64"])
def test_a_real_model_and_nothing_of_what_else_is_installed(tmp_path: Path, platform: str) -> None:
    from sklearn.linear_model import LogisticRegression

    data = pickle.dumps(LogisticRegression().fit([[0], [1]], [0, 1]), 4)
    (tmp_path / "predict.py").write_text(
        "from metaflow import FlowSpec\n\ndef predict(data, params):\n    import numpy\n"
    )
    started = time.monotonic()
    found = describe_environment(
        declared=None,
        project=tmp_path,
        code_root=tmp_path,
        files=[tmp_path / "predict.py"],
        module="predict",
        artifacts={
            "model": StoredBytes(encoding="pickle-v4", open=lambda: io.BytesIO(data)),
        },
        platform=platform,
    )
    assert time.monotonic() - started < 30
    locked = versions(found)
    assert {"scikit-learn", "numpy", "scipy", "metaflow", "requests"} | RUNTIME <= set(locked)
    assert not {"pytest", "ruff", "docker", "jinja2", "click", "mfimage", "uv"} & set(locked)
    assert found.reasons["scikit-learn"] == "named by the pickle of artifact 'model'"
    import sklearn

    assert locked["scikit-learn"] == sklearn.__version__
    machine = {"linux/amd64": "x86_64", "linux/arm64": "aarch64"}[platform]
    files = [file.name for package in found.lock.packages for file in package.files]
    assert any(name.endswith(f"{machine}.whl") for name in files)
    assert all(machine in name or name.endswith("-any.whl") for name in files)
