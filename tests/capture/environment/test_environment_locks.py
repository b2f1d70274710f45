"""Environments that a lock describes: pylock.toml and uv.lock."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from mfimage.capture.environment.sources.project import find_uv_lock
from mfimage.capture.lock import uv
from mfimage.errors import LockError
from tests.capture.projects import describe, versions
from tests.capture.wheelhouse import Index, Interpreter, sdist, wheel, write_source

pytestmark = pytest.mark.slow


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
    few: Interpreter, project: Path, index: Index
) -> None:
    (project / "predict.py").write_text("import numeric, metaflow\n")
    text = _pylock(index, "numeric-1.0", "pydantic-2.10")
    text += (
        '[[packages]]\nname = "winonly"\nversion = "1.0"\nmarker = "sys_platform == \'win32\'"\n'
        '[[packages]]\nname = "devonly"\nversion = "1.0"\nmarker = "\'dev\' in dependency_groups"\n'
        '[[packages]]\nname = "mfimage"\nversion = "1.0"\n'
    )
    (project / "pylock.prod.toml").write_text(text)
    found = describe(few, project, "pylock.prod.toml")
    assert found.source == "pylock"
    assert versions(found) == {
        "metaflow": "1.0",
        "numeric": "1.0",
        "orjson": "3.11",
        "pydantic": "2.10",
    }
    assert b"user:pass" not in found.lock.data
    assert found.reasons["numeric"] == "imported by predict.py:1"


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
    few: Interpreter, project: Path, index: Index, change: Mapping[str, str], message: str
) -> None:
    text = _pylock(index, "numeric-1.0")
    for old, new in change.items():
        text = text.replace(old, new)
    (project / "pylock.toml").write_text(text)
    with pytest.raises(LockError) as caught:
        describe(few, project, "pylock.toml")
    assert message in caught.value.message


@pytest.mark.parametrize("name", ["nothing.txt", "predict.py", "poetry.lock"])
def test_a_file_that_describes_nothing(few: Interpreter, project: Path, name: str) -> None:
    (project / "poetry.lock").touch()
    with pytest.raises(LockError, match="environment: "):
        describe(few, project, name)


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
    few: Interpreter, project: Path, index: Index, tmp_path: Path
) -> None:
    write_source(tmp_path / "mine", "mine")
    index.add(wheel("nt"), wheel("pytest"), wheel("docker"))
    index.add(wheel("mfimage", requires=["docker", "metaflow"]))
    index.add(sdist(write_source(tmp_path / "old", "old"), "old"))
    make_uv_project(project, "numeric<2", "mine", "old", "mfimage", "nt; sys_platform == 'win32'")
    code = project / "serving"
    code.mkdir()
    (code / "predict.py").write_text("import numeric, metaflow\n")
    found = describe(few, project, code_root=code)
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
    assert describe(few, project, "uv.lock", code_root=code).lock.data == found.lock.data
    # The project itself goes along when the code asks for it, and it is not the code.
    (code / "predict.py").write_text("import app\n")
    assert versions(describe(few, project, code_root=code))["app"] == "1.0"


def test_a_workspace_gives_the_member_that_the_function_stands_in(
    few: Interpreter, project: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All members came along, and a relative path meant another folder."""
    index.add(wheel("trained"))
    (project / "pyproject.toml").write_text('[tool.uv.workspace]\nmembers = ["*/"]\n')
    for name, requires in (("scorer", ["core"]), ("trainer", ["trained"]), ("core", ["numeric"])):
        write_source(project / name, name)
        (project / name / "pyproject.toml").write_text(
            f'[project]\nname = "{name}"\nversion = "1.0"\nrequires-python = ">=3.10"\n'
            f"dependencies = {requires}\n[tool.uv.sources]\ncore = {{ workspace = true }}\n"
            '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        )
    subprocess.run([uv.find_uv(), "lock", "-q"], cwd=project, check=True)
    code = project / "scorer" / "src"
    code.mkdir()
    (code / "predict.py").write_text("import numeric, metaflow\n")
    found = describe(few, code, code_root=code)
    assert found.source == "uv.lock"
    expected = {"core", "metaflow", "numeric", "orjson", "pydantic"}
    assert versions(found).keys() == expected
    assert list(found.lock.wheels) == ["core-1.0-py3-none-any.whl"]
    monkeypatch.chdir(code)
    assert versions(describe(few, Path(), "../../uv.lock", code_root=code)).keys() == expected


def test_a_uv_lock_that_is_stale(few: Interpreter, project: Path, index: Index) -> None:
    index.add(wheel("pytest"))
    make_uv_project(project, packaged=False)
    text = (project / "pyproject.toml").read_text()
    (project / "pyproject.toml").write_text(text.replace("[]", "['numeric']", 1))
    with pytest.raises(LockError, match=r"uv\.lock"):
        describe(few, project)


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


def test_a_pylock_that_the_loader_rejects(few: Interpreter, project: Path, index: Index) -> None:
    index.add(wheel("pydantic", "1.10"))
    (project / "pylock.toml").write_text(_pylock(index, "pydantic-1.10"))
    with pytest.raises(LockError, match=r"pylock.toml locks pydantic 1\.10, and mfimage's loader"):
        describe(few, project, "pylock.toml")
