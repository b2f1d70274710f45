"""``map`` on the process backend: lazy, ordered, bounded; what fails fails in its place."""

from __future__ import annotations

import gc
import itertools
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mfimage.backends.local import LocalBackend
from mfimage.backends.process.backend import ProcessBackend
from mfimage.errors import BackendError, InputError, OutputError, PackageError
from tests.backends.process_support import Packages, children

pytestmark = pytest.mark.slow

pytest_plugins = ["tests.backends.process_fixtures"]
Run = Callable[..., ProcessBackend]

ECHO = """
@json_function
def predict(data: int) -> int:
    return data
"""
# Runs the code in its record.
OBEDIENT = """
@json_function
def predict(data: dict) -> int:
    exec(data.get("run", ""))
    return data.get("x", 0)
"""
RAISE, RETURN = {"on_error": "raise"}, {"on_error": "return"}


@pytest.mark.parametrize("workers", [1, 2])
def test_order(run_process: Run, workers: int) -> None:
    predict = run_process(ECHO, workers=workers)
    for batch_size, count in itertools.product([1, 7, 256], [0, 1, 6, 7, 8, 5000]):
        found = predict.map(range(count), batch_size=batch_size, **RAISE)
        assert list(found) == list(range(count)), (batch_size, count)


def test_all_workers_take_part(run_process: Run) -> None:
    predict = run_process(
        """
        @json_function
        def predict(data: int) -> int:
            time.sleep(0.002)
            return os.getpid()
        """,
        workers=3,
    )
    found = list(predict.map(range(600), batch_size=4, **RAISE))
    counts = sorted(found.count(pid) for pid in set(found))
    assert len(counts) == 3
    assert counts[0] > 60


def test_order_when_records_take_different_times(run_process: Run) -> None:
    predict = run_process(OBEDIENT, workers=3)
    records = [{"x": x, "run": f"time.sleep({(x % 7) / 1000})"} for x in range(300)]
    assert list(predict.map(records, batch_size=16, **RAISE)) == list(range(300))


MIXED = """
@json_function
def predict(data: dict) -> dict:
    value = data["x"]
    if value == 3:
        raise ValueError("three")
    return {"y": float("nan") if value == 4 else value}
"""


def test_same_as_local(run_process: Run, process_packages: Packages) -> None:
    backends = run_process(MIXED, workers=2), LocalBackend(process_packages.write(MIXED))
    value = st.one_of(st.integers(0, 6), st.just(object()), st.none(), st.text())

    @settings(max_examples=60, deadline=None)
    @given(values=st.lists(value), batch_size=st.integers(1, 9))
    def check(values: list[Any], batch_size: int) -> None:
        records = [{} if value is None else {"x": value} for value in values]
        process, local = (
            [_plain(x) for x in backend.map(records, batch_size=batch_size, on_error="return")]
            for backend in backends
        )
        assert process == local

    check()


def _plain(result: Any) -> Any:
    return (type(result), str(result)) if isinstance(result, Exception) else result


def test_raise_comes_after_the_results_before_it(run_process: Run) -> None:
    predict = run_process(MIXED)
    stream = predict.map([{"x": 1}, {"x": 2}, {"x": 3}, {"x": 5}], batch_size=9, **RAISE)
    assert [next(stream), next(stream)] == [{"y": 1}, {"y": 2}]
    with pytest.raises(ValueError, match="three"):
        next(stream)
    assert list(stream) == []
    assert predict({"x": 1}) == {"y": 1}


def test_kinds_of_failure_in_their_places(run_process: Run) -> None:
    predict = run_process(MIXED)
    records = [{"x": 1}, object(), {"x": 3}, {}, {"x": 4}, "no dict", {"x": 6}]
    found = list(predict.map(records, batch_size=3, **RETURN))
    assert found[0] == {"y": 1}
    assert found[6] == {"y": 6}
    kinds = [InputError, ValueError, KeyError, OutputError, InputError]
    assert [type(item) for item in found[1:6]] == kinds


def test_lazy(run_process: Run) -> None:
    predict = run_process(ECHO)
    read: list[int] = []

    def source() -> Iterator[int]:
        for x in range(100_000):
            read.append(x)
            yield x

    stream = predict.map(source(), batch_size=10, max_in_flight=2, **RAISE)
    assert read == []
    for expected in range(2000):
        assert next(stream) == expected
        assert len(read) <= expected + 1 + 3 * 10
    stream.close()  # type: ignore[attr-defined]
    assert predict(1) == 1


def test_source_that_is_slow_does_not_hold_results_back(run_process: Run) -> None:
    predict = run_process(ECHO)
    list(predict.map(range(10_000), batch_size=256, **RAISE))
    given_at: dict[int, float] = {}

    def source() -> Iterator[int]:
        for x in range(10):
            time.sleep(0.05)
            given_at[x] = time.perf_counter()
            yield x

    stream = predict.map(source(), batch_size=256, **RAISE)
    waits = [time.perf_counter() - given_at[result] for result in stream]
    assert sorted(waits)[len(waits) // 2] < 0.04


def test_function_that_is_slow_gives_its_first_result_soon(run_process: Run) -> None:
    predict = run_process(OBEDIENT)
    predict({})
    start = time.perf_counter()
    stream = predict.map([{"run": "time.sleep(0.1)"}] * 64, batch_size=64, **RAISE)
    next(stream)
    assert time.perf_counter() - start < 1
    stream.close()  # type: ignore[attr-defined]


def test_source_that_raises(run_process: Run) -> None:
    predict = run_process(ECHO)

    def source() -> Iterator[int]:
        yield from range(5)
        raise LookupError("source")

    with pytest.raises(LookupError, match="source"):
        list(predict.map(source(), batch_size=2, **RAISE))
    assert predict(1) == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_calls_and_maps_inside_a_map(run_process: Run, workers: int) -> None:
    predict = run_process(ECHO, workers=workers)
    found = []
    for x in predict.map(range(50), batch_size=4, **RAISE):
        inner = list(predict.map([x, x + 1], batch_size=2, **RAISE))
        found.append((predict(x), inner))
    assert found == [(x, [x, x + 1]) for x in range(50)]


def test_maps_in_many_threads(run_process: Run) -> None:
    predict = run_process(ECHO, workers=2)

    def go(start: int) -> bool:
        records = range(start, start + 1000)
        return list(predict.map(records, batch_size=32, **RAISE)) == list(records)

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(go, range(0, 64_000, 4000)))


def test_big_records_both_ways(run_process: Run) -> None:
    # More than the sockets hold: if both sides only wrote, both would wait for ever.
    predict = run_process(
        """
        @json_function
        def predict(data: str) -> str:
            return data + data
        """,
        workers=2,
    )
    records = [str(x) * 1_000_000 for x in range(10)] * 3
    stream = predict.map(records, batch_size=4, max_in_flight=6, **RAISE)
    assert all(result == record * 2 for result, record in zip(stream, records, strict=True))


def test_crash_fails_its_batch_and_nothing_else(run_process: Run) -> None:
    predict = run_process(OBEDIENT, workers=2)
    records: list[dict[str, Any]] = [{"x": x} for x in range(400)]
    records[150]["run"] = "os._exit(7)"
    found = list(predict.map(records, batch_size=8, **RETURN))
    failed = [x for x, item in enumerate(found) if isinstance(item, BackendError)]
    assert 150 in failed
    assert len(failed) <= 8
    assert failed == list(range(failed[0], failed[-1] + 1))
    assert all(item == x for x, item in enumerate(found) if x not in failed)
    with pytest.raises(BackendError, match="exit status 7"):
        list(predict.map(records, batch_size=8, **RAISE))
    assert predict({"x": 3}) == 3


def test_every_record_crashes(run_process: Run) -> None:
    predict = run_process(OBEDIENT, workers=2)
    records = [{"run": "os._exit(1)"}] * 12
    found = list(predict.map(records, batch_size=1, **RETURN))
    assert [type(item) for item in found] == [BackendError] * 12
    assert len(children()) == 2


def test_timeout_inside_a_map(run_process: Run) -> None:
    predict = run_process(OBEDIENT, timeout=0.3)
    records = [{"x": 1}, {"run": "time.sleep(100)"}, {"x": 2}]
    found = list(predict.map(records, batch_size=1, **RETURN))
    assert [found[0], found[2]] == [1, 2]
    assert "longer than" in str(found[1])


def test_function_that_cannot_be_imported(run_process: Run) -> None:
    predict = run_process("import not_there_at_all")
    with pytest.raises(PackageError, match="not_there_at_all"):
        list(predict.map([{}], batch_size=1, **RAISE))


def test_stream_that_outlives_its_backend(run_process: Run) -> None:
    predict = run_process(ECHO)
    stream = predict.map(range(1000), batch_size=3, **RAISE)
    next(stream)
    predict.close()
    with pytest.raises(BackendError, match="closed"):
        list(stream)


def test_2_million_records_in_bounded_memory(run_process: Run) -> None:
    predict = run_process(ECHO, workers=1)
    stream = predict.map(itertools.count(), batch_size=256, **RAISE)
    total = 0
    before = 0
    for x in itertools.islice(stream, 2_000_000):
        total += x
        if x == 100_000:
            gc.collect()
            before = _memory()
    assert total == 2_000_000 * 1_999_999 // 2
    # A reference of 8 bytes to each record would be 15 MB.
    assert _memory() - before < 8 << 20
    (worker,) = children()
    assert _memory(worker) < 200 << 20


def _memory(pid: int | str = "self") -> int:
    """Return the memory of a process in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
