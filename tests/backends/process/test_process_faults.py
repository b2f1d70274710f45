"""What becomes of calls, workers and the pool when something ends that should not."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mfimage.backends.calls import Resend
from mfimage.backends.process.backend import ProcessBackend, ProcessOptions
from mfimage.errors import BackendError, PackageError
from mfimage.runtime.worker.frames import CALL, Frame
from tests.backends.process_support import Packages, children, is_running, until

pytestmark = pytest.mark.slow

pytest_plugins = ["tests.backends.process_fixtures"]
Run = Callable[..., ProcessBackend]

# Runs the code in its record, and returns its process.
OBEDIENT = """
@json_function
def predict(data: dict) -> int:
    if "run" in data:
        exec(data["run"])
    return os.getpid()
"""


def test_worker_that_ends_fails_its_call_and_is_replaced(run_process: Run) -> None:
    predict = run_process(
        OBEDIENT + "is_socket = lambda fd: os.path.islink(f'/proc/self/fd/{fd}') and"
        " 'socket' in os.readlink(f'/proc/self/fd/{fd}')\n"
        "sockets = lambda: [fd for fd in range(3, 99) if is_socket(fd)]"
    )
    for code, expected, hint in [
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL (Killed)", "memory runs out"),
        ("ctypes.string_at(0)", "killed by SIGSEGV (Segmentation fault)", "compiled code crashed"),
        ("os.abort()", "killed by SIGABRT", "compiled code crashed"),
        ("os.kill(os.getpid(), signal.SIGTERM)", "killed by SIGTERM", None),
        ("os._exit(3)", "ended with exit status 3", None),
        ("os._exit(0)", "ended with exit status 0", None),
        ("os.closerange(3, 50); time.sleep(50)", "closed its connection", None),
        ("[os.write(fd, b'x' * 100) for fd in sockets()]", "an invalid reply", "write"),
    ]:
        before = predict({})
        with pytest.raises(BackendError) as caught:
            predict({"run": code})
        assert "predict: its worker" in caught.value.message
        assert expected in caught.value.message
        assert (hint or "") in (caught.value.hint or "")
        assert bool(hint) == bool(caught.value.hint)
        after = predict({})
        assert after != before
        assert children() == {after}


def test_segfault_leaves_its_traceback_on_stderr(
    run_process: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    predict = run_process(OBEDIENT)
    with pytest.raises(BackendError, match="SIGSEGV"):
        predict({"run": "ctypes.string_at(0)"})
    err = capfd.readouterr().err
    assert "Fatal Python error: Segmentation fault" in err
    assert "served.py" in err


def test_no_memory_is_an_exception_like_others(run_process: Run) -> None:
    predict = run_process(OBEDIENT)
    before = predict({})
    hog = "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 31, -1)); bytes(1 << 33)"
    with pytest.raises(MemoryError):
        predict({"run": hog})
    assert predict({}) == before


def test_only_the_call_of_the_dead_worker_fails(run_process: Run) -> None:
    predict = run_process(OBEDIENT, workers=2)
    with ThreadPoolExecutor(8) as pool:
        good = [pool.submit(predict, {"run": "time.sleep(0.05)"}) for _ in range(10)]
        bad = pool.submit(predict, {"run": "os._exit(1)"})
        good += [pool.submit(predict, {"run": "time.sleep(0.01)"}) for _ in range(50)]
        with pytest.raises(BackendError, match="exit status 1"):
            bad.result()
        assert all(future.result() > 0 for future in good)


def test_worker_killed_while_idle_is_replaced_unnoticed(run_process: Run) -> None:
    predict = run_process(OBEDIENT)
    for _ in range(3):
        worker = predict({})
        os.kill(worker, signal.SIGKILL)
        until(lambda pid=worker: not is_running(pid))
        assert predict({}) != worker


def test_replies_sent_before_the_end_count(run_process: Run) -> None:
    predict = run_process(OBEDIENT)
    predict({})
    pool = predict._pool
    first = pool.post(CALL, b"{}", 1, wait=True)
    second = pool.post(CALL, b'{"run": "os._exit(5)"}', 1, wait=True)
    third = pool.post(CALL, b"{}", 1, wait=True)
    assert first
    assert second
    assert third
    worker = first.worker
    assert worker is second.worker is third.worker
    until(lambda: not is_running(worker._process.pid))  # type: ignore[union-attr]
    fourth = pool.post(CALL, b"{}", 1, wait=True)
    assert fourth
    assert fourth.worker is not worker
    assert isinstance(first.reply, Frame)
    assert "exit status 5" in str(second.reply)
    assert isinstance(third.reply, Resend)


def test_function_that_cannot_start_fails_every_call(
    run_process: Run, process_packages: Packages
) -> None:
    predict = run_process("ctypes.string_at(0)", workers=2)
    for _ in range(4):
        with pytest.raises(BackendError, match=r"SIGSEGV .* while it was imported"):
            predict({})
    until(lambda: len(children()) <= 1)


def test_function_that_cannot_start_fails_all_waiting_calls(run_process: Run) -> None:
    predict = run_process("time.sleep(0.5); raise LookupError('no')")
    start = time.perf_counter()
    with ThreadPoolExecutor(64) as pool:
        calls = [pool.submit(predict, {}) for _ in range(64)]
        for call in calls:
            with pytest.raises(PackageError, match="no"):
                call.result()
    assert time.perf_counter() - start < 10


def test_start_that_hangs(process_packages: Packages) -> None:
    package = process_packages.write("time.sleep(100)")
    predict = ProcessBackend(package, ProcessOptions(start_timeout=1))
    try:
        with pytest.raises(BackendError, match="longer than 1 s"):
            predict({})
    finally:
        predict.close()
    assert not children()


def test_timeout_stops_and_replaces(run_process: Run) -> None:
    predict = run_process(OBEDIENT, timeout=0.3)
    for code in ("while True: pass", "time.sleep(100)", "ctypes.PyDLL(None).sleep(100)"):
        before = predict({})
        start = time.perf_counter()
        with pytest.raises(BackendError, match=r"longer than 0\.3 s") as caught:
            predict({"run": code})
        assert 0.25 < time.perf_counter() - start < 5
        assert caught.value.hint == "allow more with timeout="
        assert not is_running(before)
        assert predict({}) != before


def test_timeout_is_per_record(run_process: Run) -> None:
    predict = run_process(OBEDIENT, timeout=0.5)
    nap = {"run": "time.sleep(0.1)"}
    predict({})
    assert len(list(predict.map([nap] * 12, batch_size=12, on_error="raise"))) == 12
    assert len({predict(nap) for _ in range(7)}) == 1


def test_child_that_the_function_forks_takes_no_part(run_process: Run) -> None:
    predict = run_process(OBEDIENT)
    before = predict({})
    assert predict({"run": "os.fork()"}) == before
    assert predict({}) == before
    # A child that stays does not keep the caller waiting for a dead worker.
    start = time.perf_counter()
    with pytest.raises(BackendError, match="SIGKILL"):
        predict({"run": "os.fork() or time.sleep(100); os.kill(os.getpid(), signal.SIGKILL)"})
    assert time.perf_counter() - start < 5
    predict({})


def test_function_changes_its_own_streams(run_process: Run) -> None:
    predict = run_process(OBEDIENT)
    before = predict({})
    for code in ("sys.stdout.close()", "sys.stdout = None", "sys.stdout = object()", "os.close(1)"):
        assert predict({"run": code}) == before


def test_open_files_stay_as_many(run_process: Run) -> None:
    predict = run_process(OBEDIENT)

    def go() -> None:
        for _ in range(3):
            predict({})
            with pytest.raises(BackendError):
                predict({"run": "os._exit(1)"})
        predict({})

    go()
    before = _open_files()
    go()
    assert _open_files() == before


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
