"""Ctrl-C and closing, while calls run."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from mfimage.backends.process.backend import ProcessBackend
from mfimage.errors import BackendError
from tests.backends.process_support import children, until

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


def test_interrupt_leaves_the_pool_usable(run_process: Run) -> None:
    predict = run_process(OBEDIENT)
    before = predict({})
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), _interrupt_after(0.2):
            predict({"run": "time.sleep(100)"})
        after = predict({})
        assert after != before
    with pytest.raises(KeyboardInterrupt), _interrupt_after(0.2):
        for _ in predict.map(({} for _ in iter(int, 1)), batch_size=64, on_error="raise"):
            pass
    assert predict({}) in children()
    assert len(children()) == 1


def test_interrupts_at_any_moment(run_process: Run) -> None:
    predict = run_process(OBEDIENT)
    predict({})
    for moment in range(30):
        with pytest.raises(KeyboardInterrupt), _interrupt_after(0.001 * (moment % 10)):
            while True:
                predict({})
    worker = predict({})
    until(lambda: children() == {worker})


def test_interrupt_while_others_have_the_worker(run_process: Run) -> None:
    predict = run_process(OBEDIENT)
    predict({})
    busy = predict.submit({"run": "time.sleep(1)"})
    time.sleep(0.1)
    with pytest.raises(KeyboardInterrupt), _interrupt_after(0.2):
        predict({})
    assert busy.result() == predict({})


def test_call_inside_a_call_of_the_same_thread(run_process: Run) -> None:
    predict = run_process(OBEDIENT)
    predict({})
    inner: list[Any] = []

    def on_signal(*_: object) -> None:
        inner.append(predict({}))

    before = signal.signal(signal.SIGUSR1, on_signal)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.start()
    try:
        with pytest.raises(BackendError, match="stopped by an interrupt"):
            predict({"run": "time.sleep(1)"})
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)
    assert inner[0] > 0
    assert predict({}) in children()


def test_closing_fails_calls_that_run(run_process: Run) -> None:
    predict = run_process(OBEDIENT, workers=2)
    predict({})
    with ThreadPoolExecutor(6) as pool:
        calls = [pool.submit(predict, {"run": "time.sleep(100)"}) for _ in range(6)]
        time.sleep(0.3)
        start = time.perf_counter()
        predict.close()
        for call in calls:
            with pytest.raises(BackendError, match="was closed"):
                call.result()
    assert time.perf_counter() - start < 2
    assert not children()


def test_closing_runs_exit_hooks(run_process: Run, tmp_path: Any) -> None:
    predict = run_process(OBEDIENT)
    predict({"run": f"import atexit; atexit.register(open, {str(tmp_path / 'bye')!r}, 'w')"})
    predict.close()
    assert (tmp_path / "bye").exists()


def test_threads_of_the_function_do_not_delay_closing_for_long(run_process: Run) -> None:
    predict = run_process(OBEDIENT)
    predict({"run": "threading.Thread(target=time.sleep, args=(100,)).start()"})
    start = time.perf_counter()
    predict.close()
    assert time.perf_counter() - start < 5
    assert not children()


@contextmanager
def _interrupt_after(seconds: float) -> Iterator[None]:
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        yield
    finally:
        timer.join()
