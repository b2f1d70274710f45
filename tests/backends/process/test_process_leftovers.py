"""Nothing of a caller is left behind, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mfimage.backends.process.backend import ProcessBackend
from tests.backends.process_support import Packages, children, is_running

pytestmark = pytest.mark.slow

pytest_plugins = ["tests.backends.process_fixtures"]
Run = Callable[..., ProcessBackend]

FUNCTION = """
@json_function
def predict(data: dict) -> int:
    if "run" in data:
        exec(data["run"], globals())
    return os.getpid()
"""
CALLER = """
import os, signal, sys, threading, time
from mfimage.backends.process.backend import ProcessBackend, ProcessOptions
from mfimage.package.store import open_package
predict = ProcessBackend(open_package(sys.argv[1]), ProcessOptions(workers=2))
def ready():
    print("ready", flush=True)
def later(seconds):
    threading.Timer(seconds, ready).start()
"""


@pytest.fixture
def shared_memory() -> set[str]:
    return _shared()


def _shared() -> set[str]:
    return {path.name for path in Path("/dev/shm").iterdir()}


def _caller(package: Any, script: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CALLER + script, package.reference],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(folder)},
    )


def _check_nothing_left(
    caller: subprocess.Popen[str], family: set[int], folder: Path, shared: set[str]
) -> None:
    limit = time.monotonic() + 10
    while left := {*filter(is_running, family), *(_shared() - shared)}:
        assert time.monotonic() < limit, left
        time.sleep(0.02)
    assert list(folder.iterdir()) == []
    assert caller.stdout
    caller.stdout.close()


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("print(predict({}))", 0),
        ("print(predict({})); predict.close()", 0),
        ("predict.submit({'run': 'time.sleep(100)'}); time.sleep(1)", 0),
        ("results = predict.map([{}] * 10000, batch_size=9, on_error='raise'); next(results)", 0),
        ("predict({}); 1 / 0", 1),
        ("predict({}); sys.exit(3)", 3),
        ("predict({}); os._exit(4)", 4),
        ("", 0),
        ("predict({'run': 'os.kill(os.getppid(), signal.SIGTERM); time.sleep(9)'})", -15),
        ("import ctypes; predict({}); ctypes.string_at(0)", -11),
    ],
)
def test_caller_that_ends_by_itself(
    process_packages: Packages, tmp_path: Path, shared_memory: set[str], script: str, status: int
) -> None:
    package = process_packages.write(FUNCTION)
    before = _all_processes(package)
    started = time.monotonic()
    caller = _caller(package, script, tmp_path)
    assert caller.wait(20) == status
    assert time.monotonic() - started < 15
    _check_nothing_left(caller, _all_processes(package) - before, tmp_path, shared_memory)


def _all_processes(package: Any) -> set[int]:
    """Return every process that mentions the cache of these tests."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if os.environ["MFIMAGE_CACHE"].encode() in line:
                found.add(int(entry.name))
    return found


SPIN, HELD = "while True: pass", "ctypes.PyDLL(None).sleep(100)"
NESTED = "import multiprocessing as m; pool = m.get_context('fork').Pool(2); pool.map(abs, [1])"
SHARED = (
    "from multiprocessing import shared_memory\n"
    "kept = shared_memory.SharedMemory(create=True, size=100)"
)


IDLE = "predict({}); ready(); time.sleep(100)"
BUSY = [
    f"predict({{}}); later(0.5); predict({{'run': {SPIN!r}}})",
    f"predict({{}}); later(0.5); predict({{'run': {HELD!r}}})",
    f"predict({{}}); later(0.5); predict({{'run': 'print(); {HELD}'}})",
    "ready(); time.sleep(100)",
    "predict({}); later(0.3); list(predict.map(iter(dict, 1), batch_size=9, on_error='raise'))",
    "predict({'run': 'subprocess.Popen([\"sleep\", \"99\"])'}); ready(); time.sleep(100)",
    f"predict({{'run': {SHARED!r}}}); ready(); time.sleep(100)",
    f"predict({{'run': {NESTED!r}}}); ready(); time.sleep(100)",
    "pid = os.fork(); pid or time.sleep(1); pid and (predict({}), ready(), time.sleep(100))",
]


@pytest.mark.parametrize(
    ("script", "number"),
    [
        (IDLE, signal.SIGTERM),
        *((script, signal.SIGKILL) for script in [IDLE, *BUSY]),
    ],
)
def test_caller_that_is_killed(
    process_packages: Packages,
    tmp_path: Path,
    shared_memory: set[str],
    script: str,
    number: signal.Signals,
) -> None:
    caller = _caller(process_packages.write(FUNCTION), script, tmp_path)
    assert caller.stdout
    assert caller.stdout.readline() == "ready\n"
    family = children(caller.pid)
    assert family
    caller.send_signal(number)
    assert caller.wait(10) == -number
    _check_nothing_left(caller, family, tmp_path, shared_memory)


def test_what_the_function_started_ends_with_its_worker(run_process: Run) -> None:
    predict = run_process(FUNCTION, timeout=1)
    predict({"run": "child = subprocess.Popen(['sleep', '99'])"})
    family = children()
    assert len(family) == 2
    with pytest.raises(Exception, match="longer than"):
        predict({"run": "time.sleep(9)"})
    limit = time.monotonic() + 5
    while any(is_running(pid) for pid in family):
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_backend_that_is_dropped_ends_its_workers(process_packages: Packages) -> None:
    predict = ProcessBackend(process_packages.write(FUNCTION))
    worker = predict({})
    predict.submit({}).result()
    del predict
    assert not is_running(worker)
    assert not children()


def test_fork_does_not_use_the_parents_workers(run_process: Run) -> None:
    predict = run_process(FUNCTION)
    mine = predict({})
    predict.submit({}).result()
    stream = predict.map([{}] * 1000, batch_size=5, on_error="raise")
    assert next(stream) == mine
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Python 3.12 and up: this process has threads
        child = os.fork()
    if child == 0:
        status = 1
        try:
            found = [predict({}), predict.submit({}).result(), next(stream)]
            os.write(writer, repr(found).encode())
            predict.close()
            status = 0 if not children() else 2
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        theirs = eval(file.read())
    assert os.waitpid(child, 0)[1] == 0
    assert mine not in theirs[:2]
    assert theirs[0] == theirs[1]
    assert predict({}) == mine
    assert set(stream) == {mine}


def test_child_that_lives_on_does_not_keep_workers(
    process_packages: Packages, tmp_path: Path, shared_memory: set[str]
) -> None:
    script = """
predict({})
child = os.fork()
if child == 0:
    time.sleep(100)
print(child, predict({}), flush=True)
time.sleep(100)
"""
    caller = _caller(process_packages.write(FUNCTION), script, tmp_path)
    assert caller.stdout
    child, worker = map(int, caller.stdout.readline().split())
    family = children(caller.pid) - {child}
    assert worker in family
    caller.kill()
    caller.wait()
    try:
        _check_nothing_left(caller, family, tmp_path, shared_memory)
        assert is_running(child)
    finally:
        os.kill(child, signal.SIGKILL)
