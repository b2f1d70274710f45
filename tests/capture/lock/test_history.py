"""A part of a repository is built as where it stands."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from mfimage.capture.lock.platform import Platform
from mfimage.capture.lock.solve import lock_requirements
from tests.capture.wheelhouse import write_source

HERE = Platform(python="3.11.7", name="linux/amd64")
# As setuptools-scm, hatch-vcs, versioningit and dunamai do.
DESCRIBED = """
import subprocess
def run(*command):
    return subprocess.run(["git", *command], capture_output=True, text=True, check=True).stdout
assert run("rev-parse", "--show-toplevel").strip() == os.path.realpath("../..")
assert open("../../README").read() == "read me"
assert open("../other/other.py").read() == "X = 1\\n"
DESCRIPTION = run("describe", "--tags", "--long", "--dirty")
VERSION = DESCRIPTION[1:].partition("-")[0]
if run("status", "--porcelain") or DESCRIPTION.strip().endswith("-dirty"):
    VERSION += ".post1"
"""


def git(folder: Path, *command: str) -> str:
    who = ("-c", "user.name=t", "-c", "user.email=t@localhost")
    done = subprocess.run(
        ["git", "-C", str(folder), *who, *command], capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return a repository with two libraries, at a tag."""
    top = tmp_path / "repository"
    for name in ("mine", "other"):
        write_source(top / "libs" / name, name)
    backend = top / "libs" / "mine" / "backend.py"
    text = backend.read_text().replace('"mine", "1.0"', '"mine", VERSION')
    backend.write_text(text.replace("def build_wheel", f"{DESCRIBED}\ndef build_wheel", 1))
    project = backend.with_name("pyproject.toml")
    project.write_text(project.read_text().replace('version = "1.0"', 'dynamic = ["version"]'))
    (top / "README").write_text("read me")
    (top / "build").mkdir()
    (top / "a name [1]").mkdir()
    (top / "a name [1]" / "x.py").write_text("")
    (top / ".gitignore").write_text("__pycache__")
    git(tmp_path, "init", "-q", str(top))
    git(top, "add", "-A")
    git(top, "commit", "-qm", "one")
    git(top, "tag", "v1.4.0")
    return top


def build(repository: Path) -> list[str]:
    folder = repository / "libs" / "mine"
    lock = lock_requirements(
        [f"mine @ {folder.as_uri()}"], platform=HERE, directory=repository.parent
    )
    return list(lock.wheels)


@pytest.mark.usefixtures("index")
def test_a_version_comes_from_a_repository_above(repository: Path) -> None:
    before = git(repository, "worktree", "list"), (repository / ".git" / "index").read_bytes()
    assert build(repository) == ["mine-1.4.0-py3-none-any.whl"]
    after = git(repository, "worktree", "list"), (repository / ".git" / "index").read_bytes()
    assert after == before


@pytest.mark.usefixtures("index")
def test_what_was_changed_in_the_built_part_is_seen(repository: Path) -> None:
    (repository / "libs" / "mine" / "mine.py").write_text("X = 2\n")
    assert build(repository) == ["mine-1.4.0.post1-py3-none-any.whl"]


@pytest.mark.usefixtures("index")
def test_a_linked_work_tree_has_a_history_too(repository: Path) -> None:
    other = repository.with_name("second")
    git(repository, "worktree", "add", "-q", str(other))
    assert build(other) == ["mine-1.4.0-py3-none-any.whl"]
    assert git(other, "status", "--porcelain") in {"", "?? libs/mine/__pycache__/\n"}
