"""The verb ``batch`` on a real cluster: exit codes, processes that die, jobs that are stopped."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.batches import failures, lines
from tests.runtime.packages import make_folder
from tests.support.ray import SETTINGS, cluster, marks, until

pytestmark = marks()

PREDICT = """
@json_function(batch=True)
def predict(records: list[int], params: FunctionParameters) -> list[int]:
    print("printed")
    if 666 in records:
        os._exit(1)
    if 13 in records:
        raise ValueError("thirteen")
    if 77 in records:
        open(os.path.join(params.notes, str(os.getpid())), "w").close()
        time.sleep(0.3)
    return [record + 1 for record in records]
"""


@pytest.fixture(scope="module")
def running() -> Iterator[Any]:
    with cluster() as started:
        yield started


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """Where the function notes the processes it ran in."""
    (tmp_path / "notes").mkdir()
    return tmp_path / "notes"


PROGRAM = ("-m", "mfimage.runtime")
# Says after a second, not after ten, what it waits for.
IMPATIENT = """
import runpy
import mfimage.runtime.ray.batch as batch
batch._REPORT_SECONDS = 1
runpy.run_module("mfimage.runtime", run_name="__main__", alter_sys=True)
"""


class Jobs:
    """Jobs on the cluster, from ``in.jsonl`` to ``out``."""

    def __init__(self, folder: Path, address: str, function: Path) -> None:
        self.input, self.output = folder / "in.jsonl", folder / "out"
        self._address = address
        self._function = function

    def start(
        self, *options: str, address: str | None = None, program: tuple[str, ...] = PROGRAM
    ) -> subprocess.Popen[str]:
        command = [sys.executable, *program, "batch"]
        command += ["--folder", str(self._function), "--address", address or self._address]
        command += ["--input", str(self.input), "--output", str(self.output), *options]
        pipe = subprocess.PIPE
        env = {**os.environ, **SETTINGS}
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=env)

    def run(self, *options: str, address: str | None = None) -> tuple[int, str, str]:
        with self.start(*options, address=address) as process:
            out, err = process.communicate(timeout=120)
            return process.returncode, out, err


@pytest.fixture
def jobs(tmp_path: Path, running: Any, notes: Path) -> Jobs:
    function = make_folder(tmp_path / "fn", PREDICT, artifacts={"notes": str(notes)})
    return Jobs(tmp_path, running.address, function)


def test_a_job_that_succeeds(jobs: Jobs) -> None:
    jobs.input.write_text("".join(f"{n}\n" for n in range(1000, 3000)))
    code, out, err = jobs.run("--part-bytes", "1000", "--num-cpus", "0.5")
    assert code == 0, err
    summary = json.loads(out)
    assert summary.pop("seconds") < 60
    assert summary == {
        "records": 2000,
        "failed": 0,
        "parts": 10,
        "skipped": 0,
        "output": str(jobs.output),
        "errors": None,
    }
    assert lines(jobs.output) == [*range(1001, 3001)]
    assert "printed" in err
    assert "10 of 10 parts, 2000 records" in err
    # Nothing is left to run, so no cluster is needed.
    code, out, err = jobs.run("--part-bytes", "1000", address="127.0.0.1:1")
    assert (code, json.loads(out)["skipped"]) == (0, 10)
    assert "10 of 10 parts were done before" in err


def test_invalid_records_and_those_that_end_the_process_fail_alone(jobs: Jobs) -> None:
    given = [1, 2, 13, 3, 666, 4, 5, 6, "x", 7]
    jobs.input.write_text("".join(f"{json.dumps(each)}\n" for each in given))
    code, out, err = jobs.run("--part-bytes", "6", "--batch-size", "2")
    assert code == 3, err
    assert lines(jobs.output) == [2, 3, 4, 5, 6, 7, 8]
    assert [(each["line"], each["error"]) for each in failures(jobs.output)] == [
        (3, "ValueError"),
        (5, "Poison"),
        (9, "InputError"),
    ]
    assert json.loads(out)["failed"] == 3
    assert err.count("a process died while it ran part") == 2
    assert f"3 records have no result: {jobs.output}/errors.jsonl" in err
    assert jobs.run("--part-bytes", "6", "--allow-errors")[0] == 0


def test_a_killed_process_is_replaced(jobs: Jobs, notes: Path) -> None:
    jobs.input.write_text("77\n" * 16)
    with jobs.start("--part-bytes", "6", "--batch-size", "1") as process:
        until(lambda: len([*notes.iterdir()]) == 2, 60)
        os.kill(int(next(notes.iterdir()).name), signal.SIGKILL)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert lines(jobs.output) == [78] * 16
    assert len([*notes.iterdir()]) == 3
    assert json.loads(out)["failed"] == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_job_keeps_the_parts_that_are_done(
    jobs: Jobs, notes: Path, number: int, code: int
) -> None:
    jobs.input.write_text("77\n" * 12)
    with jobs.start("--part-bytes", "3", "--batch-size", "1") as process:
        until(lambda: len([*jobs.output.glob("part-*")]) > 3, 60)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, ""), err
    assert "Traceback" not in err
    for path in notes.iterdir():
        until(lambda path=path: not Path("/proc", path.name).exists())
    assert not (jobs.output / "_SUCCESS").exists()
    code, out, _ = jobs.run("--part-bytes", "3")
    assert (code, json.loads(out)["skipped"] > 3) == (0, True)
    assert lines(jobs.output) == [78] * 12


def test_a_function_that_cannot_be_loaded_ends_the_job(jobs: Jobs, tmp_path: Path) -> None:
    jobs.input.write_text("1\n")
    (tmp_path / "fn" / "code" / "served.py").write_text("import nothing_of_this_name")
    code, out, err = jobs.run()
    assert (code, out) == (1, "")
    assert "error: predict: importing served needs the module 'nothing_of_this_name'" in err


def test_a_damaged_file_ends_the_job(jobs: Jobs, tmp_path: Path) -> None:
    jobs.input = tmp_path / "in.avro"
    jobs.input.write_bytes(b"Obj\x01rubbish")
    code, _, err = jobs.run("--output-format", "jsonl")
    assert code == 1
    assert f"error: part 0 ({jobs.input}, bytes 0 to 11): RecordError" in err


def test_no_cluster_at_the_address(jobs: Jobs) -> None:
    jobs.input.write_text("1\n")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        began = time.monotonic()
        code, _, err = jobs.run(address=address)
    assert code == 1
    assert f"error: no Ray cluster responds at {address}" in err
    assert time.monotonic() - began < 15


def test_a_cluster_without_room(jobs: Jobs) -> None:
    jobs.input.write_text("1\n")
    code, _, err = jobs.run("--num-cpus", "64", "--start-timeout", "1")
    assert code == 1
    assert "no process has started in 1 s; asked for 1 x 64 CPU, the cluster has 2 CPU" in err


def test_a_cluster_that_grows_sees_the_demand(jobs: Jobs, running: Any) -> None:
    jobs.input.write_text("1\n")
    with jobs.start("--num-gpus", "1", program=("-c", IMPATIENT)) as process:
        assert process.stderr
        waiting = next(line for line in process.stderr if line.startswith("waiting"))
        assert waiting == "waiting for 1 x 1 CPU and 1 GPU; the cluster has 2 CPU and 0 GPU\n"
        node = running.add_node(num_cpus=1, num_gpus=1, object_store_memory=100 * 2**20)
        assert process.wait(60) == 0
    running.remove_node(node)
    assert lines(jobs.output) == [2]


def test_wrong_usage(jobs: Jobs) -> None:
    assert jobs.run("--batch-sise", "3")[0] == 2
    jobs.input.write_text("1\n")
    code, _, err = jobs.run("--num-actors", "0")
    assert (code, err) == (1, "error: num_actors: expected at least 1, got 0\n")
