"""``mfimage map`` and ``mfimage call`` on files, from the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fastavro
import pytest

from tests.backends.process_support import Packages, children, until

pytestmark = pytest.mark.slow

pytest_plugins = ["tests.backends.process_fixtures"]
MFIMAGE = str(Path(sys.executable).with_name("mfimage"))
SOURCE = """
print("imported")

@json_function
def predict(data: int) -> dict[str, int]:
    if data == 13:
        raise RuntimeError("unlucky")
    if data < 0:
        print("sleeping")
        time.sleep(-data)
    return {"y": 2 * data}
"""
INPUT = {"type": "integer"}
OUTPUT = {"type": "object", "title": "Doubled", "required": ["y"], "properties": {"y": INPUT}}
BACKENDS = [["--backend", "local"], ["--backend", "process"], ["--workers", "2"]]


@pytest.fixture
def reference(process_packages: Packages) -> str:
    """A function that doubles: 13 fails, and a negative number takes that many seconds."""
    package = process_packages.write(SOURCE, input_schema=INPUT, output_schema=OUTPUT)
    return package.reference


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [MFIMAGE, *arguments], input=stdin, capture_output=True, text=True, check=False
    )


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a command with pipes; it is killed after the test."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(*arguments: str) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        command = [MFIMAGE, *arguments]
        started.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def lines(*values: object) -> str:
    return "".join(f"{json.dumps(value)}\n" for value in values)


def doubled(*values: int) -> str:
    return "".join(f'{{"y":{2 * value}}}\n' for value in values)


def names() -> set[str]:
    return {path.name for path in Path.cwd().iterdir()}


@pytest.mark.parametrize("backend", BACKENDS, ids=" ".join)
def test_map_and_call_give_the_same(reference: str, backend: list[str]) -> None:
    Path("in.jsonl").write_text(lines(*range(20, 1020)))
    given = ("--input", "in.jsonl")
    for command in ("map", "call"):
        done = run(command, reference, *backend, *given, "--output", f"{command}.jsonl")
        assert done.returncode == 0, done.stderr
        assert done.stdout == ""
        assert "imported" in done.stderr
        assert Path(f"{command}.jsonl").read_text() == doubled(*range(20, 1020))
    assert "\n1000 records in " in done.stderr or command == "call"


def test_the_summary_has_number_and_rate(reference: str) -> None:
    done = run("map", reference, stdin=lines(1, 2, 3))
    assert done.stdout == doubled(1, 2, 3)
    summary = done.stderr.splitlines()[-1]
    assert summary.startswith("3 records in ")
    assert summary.endswith("/s)")


@pytest.mark.parametrize("command", ["map", "call"])
def test_formats_follow_suffixes_and_options(reference: str, command: str) -> None:
    Path("in.jsonl").write_text(lines(1, 2, 3))
    done = run(command, reference, "--input", "in.jsonl", "--output", "out.avro")
    assert done.returncode == 0, done.stderr
    with Path("out.avro").open("rb") as file:
        reader = fastavro.reader(file)
        assert list(reader) == [{"y": 2}, {"y": 4}, {"y": 6}]
        assert reader.writer_schema["name"] == "Doubled"
    with Path("in.dat").open("wb") as file:
        fastavro.writer(file, {"type": "int"}, [1, 2, 3])
    done = run(command, reference, "--input", "in.dat", "--format", "avro")
    assert done.stdout == doubled(1, 2, 3)
    arguments = ("--format", "json", "--output-format", "avro", "--output", "out.dat")
    assert run(command, reference, *arguments, stdin=lines(1, 2, 3)).returncode == 0
    assert Path("out.dat").read_bytes() == Path("out.avro").read_bytes()


@pytest.mark.parametrize("backend", BACKENDS, ids=" ".join)
def test_map_stops_at_the_first_record_that_fails(reference: str, backend: list[str]) -> None:
    Path("in.jsonl").write_text("1\n\n13\nx\n")
    done = run("map", reference, *backend, "--input", "in.jsonl", "--output", "out.jsonl")
    assert done.returncode == 1
    error, hint = done.stderr.splitlines()[-2:]
    assert error == "error: line 3: predict failed: RuntimeError: unlucky"
    assert hint == "hint: to skip it: --errors FILE, or --on-error skip"
    assert names() == {"in.jsonl"}


@pytest.mark.parametrize("backend", BACKENDS, ids=" ".join)
def test_map_skips_and_writes_what_failed(reference: str, backend: list[str]) -> None:
    Path("in.jsonl").write_text('1\n\n13\n{"\n"x"\n2\n')
    given = ("--input", "in.jsonl", "--output", "out.jsonl", "--errors", "bad.jsonl")
    done = run("map", reference, *backend, *given)
    assert done.returncode == 1
    assert Path("out.jsonl").read_text() == doubled(1, 2)
    bad = [json.loads(line) for line in Path("bad.jsonl").read_text().splitlines()]
    assert [(each["line"], each["error"]) for each in bad] == [
        (3, "RuntimeError"), (4, "RecordError"), (5, "InputError"),
    ]  # fmt: skip
    assert bad[0]["message"] == "unlucky"
    assert bad[1]["message"].startswith("not JSON: EOF while parsing")
    assert bad[2]["message"] == "data: expected int, got 'x'"
    assert done.stderr.splitlines()[-1].endswith("/s), 3 failed")


def test_map_skips_and_prints_the_first_failures(reference: str) -> None:
    done = run("map", reference, "--on-error", "skip", stdin=lines(*([13] * 50), 2))
    assert (done.returncode, done.stdout) == (1, doubled(2))
    printed = [line for line in done.stderr.splitlines() if "unlucky" in line]
    assert printed[0] == "line 1: predict failed: RuntimeError: unlucky"
    assert len(printed) == 10
    assert "... and more; --errors FILE records all of them" in done.stderr


def test_a_result_that_the_format_cannot_represent_is_a_failure(reference: str) -> None:
    given = ("--output", "out.avro", "--errors", "bad.jsonl")
    done = run("map", reference, *given, stdin=lines(1, 2**62, 2))
    assert done.returncode == 1, done.stderr
    with Path("out.avro").open("rb") as file:
        assert list(fastavro.reader(file)) == [{"y": 2}, {"y": 4}]
    [bad] = Path("bad.jsonl").read_text().splitlines()
    assert (json.loads(bad)["line"], json.loads(bad)["error"]) == (2, "OutputError")


def test_a_truncated_file_ends_the_run(reference: str) -> None:
    with Path("in.avro").open("wb") as file:
        fastavro.writer(file, {"type": "int"}, range(20, 20_020))
    os.truncate("in.avro", Path("in.avro").stat().st_size // 2)
    given = ("--input", "in.avro", "--output", "out.jsonl", "--on-error", "skip")
    for backend in BACKENDS[:2]:
        done = run("map", reference, *backend, *given)
        assert done.returncode == 1
        assert "error: in.avro: after " in done.stderr
        assert names() == {"in.avro"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "a.jsonl", "--output", "a.jsonl"], "input and output are the same file"),
        (["--input", "a.jsonl", "--output", "b.jsonl"], "input and output are the same file"),
        (["--input", "a.jsonl", "--errors", "a.jsonl"], "input and errors are the same file"),
        (["--output", "c", "--errors", "c"], "output and errors are the same file: c"),
        (["--input", "c.csv"], "c.csv: unknown suffix '.csv'; known formats: avro (.avro), json"),
        (["--output", "c"], "c: no suffix to choose the format by"),
        (["--input", "c.jsonl"], "input: cannot read c.jsonl: No such file or directory"),
        (["--on-error", "stop", "--errors", "c"], "errors: nothing to write"),
        (["--batch-size", "0"], "batch_size: expected at least 1, got 0"),
        (["--backend", "moon"], "backend: expected 'local', 'process' or 'ray', got 'moon'"),
        (["--backend", "local", "--workers", "2"], "backend: 'local' runs in this process"),
    ],
)
def test_invalid_arguments_are_refused(reference: str, arguments: list[str], message: str) -> None:
    Path("a.jsonl").write_text("1\n")
    Path("b.jsonl").hardlink_to("a.jsonl")
    done = run("map", reference, *arguments, stdin="1\n")
    assert done.returncode == 1
    assert f"error: {message}" in done.stderr
    assert Path("a.jsonl").read_text() == "1\n"
    assert names() == {"a.jsonl", "b.jsonl"}


def test_the_output_cannot_be_the_input(reference: str) -> None:
    """``mfimage map X < file >> file`` would never end."""
    Path("a.jsonl").write_text("1\n")
    with Path("a.jsonl").open("rb") as given, Path("a.jsonl").open("ab") as out:
        command = [MFIMAGE, "map", reference]
        done = subprocess.run(command, stdin=given, stdout=out, stderr=subprocess.PIPE, check=False)
    assert b"error: input and output are the same file: -" in done.stderr


@pytest.mark.parametrize("backend", [[], *BACKENDS], ids=" ".join)
def test_call_writes_each_result_at_once(
    reference: str, start: Callable[..., subprocess.Popen[bytes]], backend: list[str]
) -> None:
    process = start("call", reference, *backend)
    assert process.stdin
    assert process.stdout
    for number in (1, 2):
        process.stdin.write(b"%d\n" % number)
        process.stdin.flush()
        assert process.stdout.readline() == doubled(number).encode()
    process.stdin.write(b"13\n")
    process.stdin.flush()
    assert process.wait(10) == 1, "stdin is still open"
    assert process.stderr
    assert b"error: line 3: predict failed: RuntimeError: unlucky" in process.stderr.read()


def test_call_runs_a_record_in_each_worker(reference: str) -> None:
    began = time.monotonic()
    done = run("call", reference, "--workers", "4", stdin=lines(*([-2] * 4), 1))
    assert done.stdout == doubled(*([-2] * 4), 1)
    assert time.monotonic() - began < 7


def test_a_record_that_takes_too_long(reference: str) -> None:
    done = run("map", reference, "--timeout", "1", "--errors", "bad.jsonl", stdin=lines(-60, 1))
    assert (done.returncode, done.stdout) == (1, doubled(1))
    assert "took longer than 1 s" in Path("bad.jsonl").read_text()


@pytest.mark.parametrize("command", ["map", "call"])
@pytest.mark.parametrize("backend", [["--backend", "local"], ["--workers", "2"]], ids=" ".join)
@pytest.mark.parametrize("end", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_leave_no_files_and_processes(
    reference: str,
    start: Callable[..., subprocess.Popen[bytes]],
    command: str,
    backend: list[str],
    end: tuple[signal.Signals, int],
) -> None:
    Path("out.jsonl").write_text("before")
    others = children()  # servers of other tests
    process = start(command, reference, *backend, "--output", "out.jsonl")
    assert process.stdin
    process.stdin.write(lines(1, 2, -60).encode())
    process.stdin.flush()
    assert process.stderr
    assert b"sleeping\n" in iter(process.stderr.readline, b"")
    assert len(names()) == 2
    process.send_signal(end[0])
    assert process.wait(20) == end[1]
    assert b"Traceback" not in process.stderr.read()
    assert names() == {"out.jsonl"}
    assert Path("out.jsonl").read_text() == "before"
    until(lambda: children() <= others)


@pytest.mark.parametrize("command", ["map", "call"])
def test_the_reader_may_close_stdout(
    reference: str, start: Callable[..., subprocess.Popen[bytes]], command: str
) -> None:
    Path("in.jsonl").write_text(lines(*range(20, 200_020)))
    process = start(command, reference, "--input", "in.jsonl")
    assert process.stdout
    assert process.stdout.readline() == doubled(20).encode()
    process.stdout.close()
    assert process.wait(20) == 1
    assert process.stderr
    assert process.stderr.read() == b"imported\n"


def test_many_records_need_little_memory(reference: str) -> None:
    count = 500_000
    with Path("in.jsonl").open("w") as file:
        file.writelines(f"{number}\n" for number in range(20, count + 20))
    script = (
        "import os, sys\n"
        "from mfimage.cli import main\n"
        "try: main()\n"
        "finally:\n"
        "    print(open('/proc/self/status').read(), 'CPU', os.times()[:2], file=sys.stderr)\n"
    )
    given = ["map", reference, "--workers", "2", "--input", "in.jsonl", "--output", "out.jsonl"]
    command = [sys.executable, "-c", script, *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "500000 records in " in done.stderr
    [peak] = [line.split()[1] for line in done.stderr.splitlines() if line.startswith("VmHWM")]
    assert int(peak) < 60_000  # KiB; all values would be 50 MB more
    cpu = done.stderr.rpartition("CPU (")[2].strip(" )\n").split(", ")
    assert sum(map(float, cpu)) < 10  # 2 s on an idle machine
    with Path("out.jsonl").open() as file:
        assert sum(json.loads(line)["y"] for line in file) == sum(range(20, count + 20)) * 2
