from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fastavro
import pytest

from mfimage.runtime.__main__ import main
from tests.runtime.packages import make_folder

pytestmark = pytest.mark.slow

PREDICT = """
print("imported")

@json_function
def predict(data: int, params: FunctionParameters) -> int:
    print("called")
    os.system("echo shouted")
    return data + params.offset
"""


def run(
    folder: Path, verb: str, *options: str, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "MFIMAGE_FUNCTION": str(folder)}
    command = [sys.executable, "-m", "mfimage.runtime", verb, *options]
    return subprocess.run(
        command, input=stdin, env=environ, capture_output=True, text=True, check=False
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "fn", PREDICT, artifacts={"offset": 1}, examples=[(1, 2), (2, 3)])


def test_call_gives_results_on_stdout_and_what_the_function_prints_on_stderr(folder: Path) -> None:
    done = run(folder, "call", stdin="1\n2\n")
    assert (done.returncode, done.stdout) == (0, "2\n3\n")
    assert {"imported", "called", "shouted"} <= set(done.stderr.split())


def test_call_ends_at_the_first_bad_record(folder: Path) -> None:
    done = run(folder, "call", stdin='1\n"x"\n2\n')
    assert (done.returncode, done.stdout) == (1, "2\n")
    assert done.stderr.splitlines()[-1] == "error: line 2: data: expected int, got 'x'"
    assert "Traceback" not in done.stderr


def test_a_failure_of_the_function_shows_its_own_frames(tmp_path: Path) -> None:
    code = PREDICT.replace("data + params.offset", "1 // 0")
    done = run(make_folder(tmp_path / "fn", code, artifacts={"offset": 1}), "call", stdin="1\n")
    frames = [line for line in done.stderr.splitlines() if line.startswith("  File ")]
    assert len(frames) == 1
    assert frames[0].endswith("in predict")
    assert done.stderr.endswith(
        "error: line 1: predict failed: ZeroDivisionError: integer division or modulo by zero\n"
    )


def test_call_reads_and_writes_files(folder: Path, tmp_path: Path) -> None:
    given, out = tmp_path / "in.avro", tmp_path / "out.avro"
    with given.open("wb") as file:
        fastavro.writer(file, {"type": "int"}, [1, 2])
    done = run(folder, "call", "--input", str(given), "--output", str(out))
    assert (done.returncode, done.stdout) == (0, "")
    with out.open("rb") as file:
        assert list(fastavro.reader(file)) == [2, 3]
    done = run(folder, "call", "--format", "json", "--output", str(out), stdin='1\n"x"\n')
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: line 2: data: expected int, got 'x'"
    with out.open("rb") as file:
        assert list(fastavro.reader(file)) == [2, 3], "it is as it was"
    assert {path.name for path in tmp_path.iterdir()} == {"fn", "in.avro", "out.avro"}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_call_ends_by_signals(folder: Path, tmp_path: Path, number: int, code: int) -> None:
    """Where it is PID 1, they would do nothing by themselves."""
    command = [sys.executable, "-m", "mfimage.runtime", "call", "--folder", str(folder)]
    command += ["--output", str(tmp_path / "out.jsonl")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stderr=pipe) as process:
        assert process.stderr
        assert process.stderr.readline() == b"imported\n"
        time.sleep(0.3)
        process.send_signal(number)
        assert process.wait(20) == code
        assert b"Traceback" not in process.stderr.read()
    assert {path.name for path in tmp_path.iterdir()} == {"fn"}


def test_check_replays_the_examples(folder: Path) -> None:
    done = run(folder, "check")
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert (report["examples"], report["differences"]) == (2, [])


def test_check_says_what_differs(tmp_path: Path) -> None:
    folder = make_folder(
        tmp_path / "fn", PREDICT, artifacts={"offset": 1}, examples=[(1, 2), (2, 4)]
    )
    done = run(folder, "check")
    assert done.returncode == 1
    assert json.loads(done.stdout)["differences"] == [
        {"example": 1, "path": "result", "message": "expected 4, got 3"}
    ]
    assert "example 1: result: expected 4, got 3" in done.stderr


@pytest.mark.parametrize("verb", ["serve", "call", "check"])
def test_an_absent_package_is_an_error_without_a_traceback(tmp_path: Path, verb: str) -> None:
    done = run(tmp_path / "nothing", verb)
    assert done.returncode == 1
    assert "nothing/function.json: No such file or directory" in done.stderr
    assert "Traceback" not in done.stderr


def test_bad_variables_are_errors(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MFIMAGE_MAX_BODY", "much")
    done = run(folder, "serve")
    assert done.returncode == 1
    assert "error: MFIMAGE_MAX_BODY: 'much' is not a size" in done.stderr


def test_serve_without_a_server_says_what_to_install(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = tmp_path / "hidden" / "uvicorn.py"
    hidden.parent.mkdir()
    hidden.write_text("raise ModuleNotFoundError('No module', name='uvicorn')\n")
    monkeypatch.setenv("PYTHONPATH", str(hidden.parent))
    done = run(folder, "serve")
    assert done.returncode == 1
    assert done.stderr == (
        "error: serve: uvicorn is not installed here\nhint: pip install 'mfimage[serve]'\n"
    )


def test_in_a_process_of_somebody_else_results_go_to_its_stdout(
    folder: Path, capsysbinary: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(folder / "code"))
    assert main(["check", "--folder", str(folder)]) == 0
    sys.modules.pop("served", None)
    assert b'"differences":[]' in capsysbinary.readouterr().out


def test_the_shim_brings_no_tool_of_a_build_along() -> None:
    script = (
        "import sys, mfimage.runtime.__main__, mfimage.runtime.serving.http.process\n"
        "import mfimage.runtime.serving.openapi, mfimage.runtime.serving.http.supervisor\n"
        "import mfimage.runtime.loading.loader, mfimage.runtime.records.run\n"
        "print(*{'docker', 'jinja2', 'metaflow', 'rich', 'uv', 'boto3'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""
    script = "import sys, mfimage.runtime.__main__; print(*{'click', 'uvicorn'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""
