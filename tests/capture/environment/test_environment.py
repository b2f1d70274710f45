"""Which source describes an environment, and what comes of it."""

from __future__ import annotations

import hashlib
import io
import pickle
import sys
import time
from pathlib import Path

import pytest

from mfimage.capture.code.imports import Code
from mfimage.capture.environment.sources import Request, describe_environment
from mfimage.capture.environment.sources.named import read_requirements
from mfimage.capture.task.pickles import StoredBytes
from mfimage.errors import LockError
from tests.capture.projects import describe, versions
from tests.capture.wheelhouse import (
    Index,
    Interpreter,
    wheel,
    write_source,
)

pytestmark = pytest.mark.slow

MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"
RUNTIME = {"orjson", "pydantic"}


def test_without_any_file_it_is_what_is_imported_at_the_versions_installed(
    few: Interpreter, project: Path
) -> None:
    found = describe(few, project)
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
    assert describe(few, project).lock.data == found.lock.data


def test_an_editable_distribution_becomes_a_wheel_in_the_package(
    few: Interpreter, project: Path, tmp_path: Path
) -> None:
    source = write_source(tmp_path / "mine", "mine", code="import learn\n")
    few.install_editable(source, "mine")
    (project / "predict.py").write_text("import mine\n")
    first, second = describe(few, project), describe(few, project)
    assert first.reasons["mine"] == "imported by predict.py:1"
    assert list(first.lock.wheels) == ["mine-1.0-py3-none-any.whl"]
    assert first.lock.data == second.lock.data


def test_an_artifact_counts(few: Interpreter, project: Path) -> None:
    (project / "predict.py").write_text("")
    data = b"cnumeric\narray\n."
    model = StoredBytes(encoding="pickle-v2", open=lambda: io.BytesIO(data))
    found = describe(few, project, artifacts={"model": model})
    assert found.reasons["numeric"] == "named by the pickle of artifact 'model'"


def test_what_is_installed_and_on_no_index_is_named(few: Interpreter, project: Path) -> None:
    (project / "predict.py").write_text("import on_no_index\n")
    with pytest.raises(LockError, match=r"(?s)No solution found.*on-no-index was not found"):
        describe(few, project)


def test_a_requirements_file(few: Interpreter, project: Path, index: Index) -> None:
    (project / "more").mkdir()
    (project / "requirements.txt").write_text(
        "-r more/base.txt   # comment\n-c limits.txt\nlearn-kit[fast] ; python_version >= '3'\n"
        "winonly; sys_platform == 'win32'\n"
    )
    (project / "more" / "base.txt").write_text("extra-thing==1.0\n")
    (project / "limits.txt").write_text("numeric<2\n")
    index.add(wheel("extra-thing"), wheel("extra-thing", "2.0"))
    found = describe(few, project, "requirements.txt")
    assert found.source == "requirements"
    assert versions(found) == {
        "extra-thing": "1.0",
        "learn-kit": "1.0",
        "metaflow": "1.0",  # imported, and named by nobody
        "numeric": "1.0",
        "orjson": "3.11",
        "pydantic": "2.11",
    }
    assert found.reasons["learn-kit"] == "named in requirements.txt, imported by predict.py:1"
    assert found.reasons["numeric"] == "required by learn-kit"
    assert found.reasons["metaflow"] == "imported by predict.py:2"


def test_a_requirements_file_is_read_as_uv_reads_it(tmp_path: Path) -> None:
    digest = "ab" * 32
    (tmp_path / "a.txt").write_text(
        f"--requirement=b.txt\nOne_Two[x]>=1 ; python_version > '3' --hash=sha256:{digest.upper()} "
        f"\\\n  --hash=sha512:00 # why\n./folder\n-e .\n--index-url https://host/simple\n"
    )
    (tmp_path / "b.txt").write_text("-r a.txt\nthree @ https://host/three.whl\n# four\n")
    found = read_requirements(tmp_path / "a.txt")
    assert found.names == {"one-two", "three"}
    assert found.hashes == {"one-two": frozenset({digest})}


def test_relative_paths_of_requirements_are_below_the_current_folder(
    few: Interpreter, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for pip and uv; they meant the project's folder, which may be another."""
    write_source(project / "libs" / "mine", "mine")
    (project / "base.txt").write_text("-e ./libs/mine\n")
    (project / "requirements.txt").write_text("-r base.txt\nnumeric\n")
    (project / "src").mkdir()
    (project / "src" / "predict.py").write_text("import numeric\n")
    monkeypatch.chdir(project)
    found = describe(few, project / "src", "../requirements.txt")
    assert list(found.lock.wheels) == ["mine-1.0-py3-none-any.whl"]


def test_requirements_in_utf_16_are_read_as_pip_reads_them(few: Interpreter, project: Path) -> None:
    """So PowerShell's `pip freeze > requirements.txt` writes them."""
    (project / "predict.py").write_text("import numeric\n")
    (project / "more.txt").write_text("numeric\r\n", encoding="utf-16")
    (project / "requirements.txt").write_text("-r more.txt\r\n", encoding="utf-16")
    assert "numeric" in versions(describe(few, project, "requirements.txt"))


def test_variables_in_requirements_are_expanded_as_pip_expands_them(
    few: Interpreter, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMERIC_VERSION", "1.0")
    (project / "limits.txt").write_text("orjson<3.11\n")
    (project / "predict.py").write_text("import numeric\n")
    (project / "requirements.txt").write_text("-c limits.txt\nnumeric==${NUMERIC_VERSION}\n")
    found = versions(describe(few, project, "requirements.txt"))
    assert (found["numeric"], found["orjson"]) == ("1.0", "3.10")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32", "latin-1"])
def test_a_requirements_file_of_another_encoding_says_what_to_do(
    encoding: str, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("numeric # é\n", encoding=encoding)
    with pytest.raises(LockError, match=r"cannot read .*a\.txt") as caught:
        read_requirements(tmp_path / "a.txt")
    assert caught.value.hint == "save it as UTF-8"


@pytest.mark.parametrize("right", [True, False])
def test_hashes_of_a_requirements_file_bind(
    few: Interpreter, project: Path, index: Index, right: bool
) -> None:
    digest = hashlib.sha256(index.files["numeric-1.0-py3-none-any.whl"]).hexdigest()
    digest = digest if right else "0" * 64
    (project / "predict.py").write_text("import numeric\n")
    (project / "requirements.txt").write_text(f"numeric==1.0 \\\n    --hash=sha256:{digest}\n")
    if right:
        assert versions(describe(few, project, "requirements.txt"))["numeric"] == "1.0"
        return
    with pytest.raises(LockError, match=r"numeric 1\.0: none of the hashes that are required"):
        describe(few, project, "requirements.txt")


def test_a_requirement_that_the_loader_rejects(
    few: Interpreter, project: Path, index: Index
) -> None:
    index.add(wheel("pydantic", "1.10"))
    (project / "requirements.txt").write_text("pydantic==1.10\n")
    with pytest.raises(LockError, match=r"(?s)you require pydantic==1\.10 and\s+pydantic>=2\.10"):
        describe(few, project, "requirements.txt")


@pytest.mark.index
@pytest.mark.parametrize("platform", ["linux/amd64", "linux/arm64"])
def test_a_real_model_and_nothing_of_what_else_is_installed(tmp_path: Path, platform: str) -> None:
    from sklearn.linear_model import LogisticRegression

    data = pickle.dumps(LogisticRegression().fit([[0], [1]], [0, 1]), 4)
    (tmp_path / "predict.py").write_text(
        "from metaflow import FlowSpec\n\ndef predict(data, params):\n    import numpy\n"
    )
    started = time.monotonic()
    model = StoredBytes(encoding="pickle-v4", open=lambda: io.BytesIO(data))
    code = Code(
        root=tmp_path,
        files=[tmp_path / "predict.py"],
        module="predict",
        artifacts={"model": model},
    )
    found = describe_environment(Request(code=code, project=tmp_path, platform=platform))
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
