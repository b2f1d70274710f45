"""Uv on an index of our own: no test here needs a network."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.capture.wheelhouse import Index, Interpreter, make_interpreter, serve_index, wheel


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """An empty package index, the only one that uv asks."""
    for name in [name for name in os.environ if name.startswith("UV_")]:
        monkeypatch.delenv(name)
    with serve_index() as served:
        monkeypatch.setenv("UV_DEFAULT_INDEX", served.url)
        monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield served


@pytest.fixture(scope="session")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Interpreter:
    """Return an interpreter with distributions of every kind; tests may add to it."""
    made = make_interpreter(tmp_path_factory.mktemp("venv"))
    made.install(
        wheel(
            "learn-kit",
            files={
                "learn/__init__.py": "from learn import linear\n",
                "learn/linear.py": "class Model: pass\n",
            },
            requires=[
                "numeric>=1",
                "speed[fast]; platform_machine == 'x86_64'",
                "winonly; sys_platform == 'win32'",
            ],
        ),
        wheel(
            "numeric", "2.0", requires=["absent-here>=1", "tests-only; extra == 'test'", "mfimage"]
        ),
        wheel(
            "speed",
            requires=["cython-rt; extra == 'fast'", "gpu-rt; extra == 'gpu'"],
            extras=["fast", "gpu"],
        ),
        wheel("cython-rt"),
        wheel("gpu-rt"),
        wheel("winonly"),
        wheel("tests-only"),
        wheel("lazykit"),
        wheel("optkit"),
        wheel("pickled", files={"pickled/__init__.py": "", "pickled/deep.py": ""}),
        wheel("google-alpha", files={"google/cloud/alpha/__init__.py": ""}),
        wheel("google-beta", files={"google/cloud/beta.py": ""}),
        *[
            wheel(name, files={f"{name}.py": ""})
            for name in ("pytest", "ruff", "docker", "jinja2", "click")
        ],
        wheel("twin-a", files={"twin/__init__.py": ""}),
        wheel("twin-b", files={"twin/__init__.py": ""}),
    )
    return made


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return the empty folder of a project."""
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


@pytest.fixture
def few(tmp_path: Path, index: Index) -> Interpreter:
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
def bare(tmp_path: Path, index: Index) -> Interpreter:
    """An interpreter with nothing installed; the index has what mfimage's loader needs."""
    index.add(wheel("pydantic", "2.10"), wheel("orjson", "3.10"))
    return make_interpreter(tmp_path / "bare")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a repository with one function's module."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / ".git").mkdir()
    (folder / "predict.py").write_text("import learn\nimport metaflow\n")
    return folder
