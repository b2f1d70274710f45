from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mfimage.capture.code import archive as capture
from mfimage.capture.code.archive import CapturedCode, archive, capture_code
from mfimage.capture.code.locate import Definition
from mfimage.errors import CaptureError
from mfimage.function.decorator import json_function
from mfimage.package.archive import extracted
from tests.support.projects import write


@json_function
def predict(data: dict) -> dict: ...


def captured(root: Path, module: str = "predict") -> CapturedCode:
    return capture_code(predict, Definition(module=module, name="predict", root=root))


PROJECT = {
    "predict.py": "",
    "helper.py": "",
    "data.csv": "",
    "notes.R": "",
    "pkg/__init__.py": "",
    "pkg/labels.json": "{}",
    "pkg/deep/more.py": "",
    "pkg/deep/weights.bin": "",
    "pkg/.env": "SECRET=1",
    "pkg/prod.env": "SECRET=1",
    "pkg/server.KEY": "",
    "pkg/.hidden/x.py": "",
    "pkg/old.pyc": "",
    "other/labels.json": "",
    "other/script.py": "",
    ".env": "SECRET=1",
    ".git/hook.py": "",
    ".metaflow/x.py": "",
    ".mfimage/x.py": "",
    "__pycache__/x.py": "",
    "venv/pyvenv.cfg": "",
    "venv/lib/python3.11/site-packages/numpy/x.py": "",
    "env/conda-meta/history": "",
    "env/x.py": "",
    "node_modules/x.py": "",
    "lib/site-packages/x.py": "",
    "project.egg-info/x.py": "",
    "cache/CACHEDIR.TAG": "",
    "out/Dockerfile": "# Made by mfimage 0.1.0: function f, target fastapi.\n",
    "out/layers/runtime/opt/mfimage/mfimage/errors.py": "",
    "cache/x.py": "",
}


def test_what_goes_along(tmp_path: Path) -> None:
    write(tmp_path, PROJECT)
    code = ["helper.py", "notes.R", "other/script.py", "pkg/__init__.py", "pkg/deep/more.py"]
    plain = captured(tmp_path)
    assert list(plain.files) == sorted([*code, "predict.py"])
    inside = captured(tmp_path, "pkg.deep.more")
    data = ["pkg/deep/weights.bin", "pkg/labels.json"]
    assert list(inside.files) == sorted([*code, *data, "predict.py"])
    assert (inside.entrypoint, inside.module) == ("pkg.deep.more:predict", "pkg.deep.more")


@pytest.mark.parametrize(
    ("files", "taken"),
    [
        (["shop/__init__.py"], ["acme/shop/deep/a.json", "acme/shop/labels.json"]),
        (
            ["shop/__init__.py", "shop/deep/__init__.py"],
            ["acme/shop/deep/a.json", "acme/shop/labels.json"],
        ),
        (["shop/deep/__init__.py"], ["acme/shop/deep/a.json"]),
        ([], ["acme/shop/deep/a.json"]),
        (["__init__.py"], ["acme/large.json", "acme/shop/deep/a.json", "acme/shop/labels.json"]),
    ],
)
def test_data_files_of_a_namespaces_part_are_included(
    files: list[str], taken: list[str], tmp_path: Path
) -> None:
    """The namespace itself may be shared by all of a repository."""
    data = ["acme/large.json", "acme/shop/labels.json", "acme/shop/deep/a.json", "x.json"]
    code = [f"acme/{name}" for name in files]
    write(tmp_path, dict.fromkeys([*code, *data, "acme/shop/deep/predict.py"], ""))
    found = captured(tmp_path, "acme.shop.deep.predict")
    assert [name for name in found.files if name.endswith(".json")] == taken


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    write(tmp_path, {"code/a.py": "", "code/pkg/b.py": "", "shared/lib/c.py": ""})
    root = tmp_path / "code"
    (root / "round").symlink_to(root)
    (root / "pkg" / "up").symlink_to("..")
    (root / "lib").symlink_to(tmp_path / "shared" / "lib")
    (root / "again").symlink_to(tmp_path / "shared" / "lib")
    (root / "gone.py").symlink_to("nowhere")
    (tmp_path / "shared" / "lib" / "back").symlink_to(root)
    names = list(captured(root).files)
    assert names == ["a.py", "again/c.py", "lib/c.py", "pkg/b.py"]


def test_suffixes_are_those_of_metaflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from metaflow import metaflow_config

    monkeypatch.setattr(metaflow_config, "DEFAULT_PACKAGE_SUFFIXES", ".py, .csv,")
    write(tmp_path, PROJECT)
    assert {"data.csv", "predict.py"} <= captured(tmp_path).files.keys()
    assert "notes.R" not in captured(tmp_path).files


def test_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"a.py": "x" * 3000, "b.py": "x" * 5000, "c.py": ""})
    monkeypatch.setattr(capture, "MAX_FILES", 2)
    with pytest.raises(CaptureError, match="holds more than 2 files of code"):
        captured(tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(capture, "MAX_SIZE", 4000)
    with pytest.raises(CaptureError, match=r"the largest file is b\.py"):
        captured(tmp_path)


def test_an_installed_function_has_no_files() -> None:
    code = capture_code(predict, Definition(module="pkg.mod", name="serve", root=None))
    assert (code.entrypoint, code.files, code.names) == ("pkg.mod:serve", {}, [])


FLOW = "class MyFlow: pass\n"


@pytest.mark.parametrize(
    ("files", "scripts"),
    [
        ({"train.py": FLOW, "flows/train.py": "class Other: pass"}, ["train.py"]),
        ({"train.py": "class Other: pass", "flows/train.py": FLOW}, ["flows/train.py"]),
        ({"train.py": "class Other: pass"}, []),
        ({"a/train.py": FLOW, "b/train.py": f"{FLOW}X = 1\n"}, ["a/train.py", "b/train.py"]),
        ({"build/lib/train.py": FLOW, "train.py": FLOW}, ["train.py"]),
        ({"train.py": "if True:\n    from base import It as MyFlow"}, ["train.py"]),
        ({"train.py": "from base import *"}, ["train.py"]),
        ({"train.py": f"if __name__ == '__main__':\n    {FLOW}"}, []),
        ({"train.py": "no Python"}, []),
        ({"other.py": FLOW}, []),
    ],
)
def test_the_flows_script_is_the_file_that_defines_the_flow(
    files: dict[str, str], scripts: list[str], tmp_path: Path
) -> None:
    """Of two files of one name, the other flow's class was loaded without a word."""
    write(tmp_path, files)
    paths = {name: tmp_path / name for name in files}
    code = CapturedCode(entrypoint="a:b", root=None, files=paths, generated={})
    assert code.scripts("train.py", "MyFlow") == scripts


def test_the_same_files_give_the_same_bytes_anywhere(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.capture.code.test_code import *\n"
        "sys.stdout.buffer.write(archive(captured(Path(sys.argv[1]))))"
    )
    results = set()
    for number, name in enumerate(("one", "two")):
        root = write(tmp_path / name, dict(sorted(PROJECT.items(), reverse=bool(number))))
        for path in root.rglob("*.py"):
            os.utime(path, (1000 + number, 1000))
            path.chmod(0o600 + number * 0o044)
        done = subprocess.run(
            [sys.executable, "-c", program, str(root)],
            capture_output=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": str(number), "PYTHONPATH": str(Path.cwd())},
        )
        results.add(done.stdout)
    assert len(results) == 1
    (tmp_path / "two" / "predict.py").chmod(0o755)
    assert archive(captured(tmp_path / "two")) not in results, "who may run it counts"


def test_what_is_staged_is_what_is_archived(tmp_path: Path) -> None:
    root = write(tmp_path, {"predict.py": "x = 1\n", "run.py": "#!\n"})
    (root / "run.py").chmod(0o755)
    generated: Mapping[str, Any] = {"made/up.py": b"y = 2\n"}
    files = captured(root).files
    code = CapturedCode(entrypoint="predict:predict", root=root, files=files, generated=generated)
    with extracted(archive(code), where="the code") as folder:
        found = {
            path.relative_to(folder).as_posix(): (path.read_bytes(), os.access(path, os.X_OK))
            for path in folder.rglob("*.py")
        }
    assert found == {
        "made/up.py": (b"y = 2\n", False),
        "predict.py": (b"x = 1\n", False),
        "run.py": (b"#!\n", True),
    }
    assert not folder.exists()


def test_a_file_that_is_gone_meanwhile_is_told(tmp_path: Path) -> None:
    code = captured(write(tmp_path, {"predict.py": ""}))
    (tmp_path / "predict.py").unlink()
    with pytest.raises(CaptureError, match=r"cannot read .*predict\.py: No such file"):
        archive(code)
