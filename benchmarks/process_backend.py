"""The process backend against the same function in this process.

Run it with ``python -m benchmarks.process_backend``: a call, a 10 MB record, a ``map``, and the
first call of a scikit-learn model. Environments are made of what is installed here, without an
index. Calls are measured in turns; the minimum of many repeats counts, since other work on the
machine only adds time.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
import timeit
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mfimage.backends.local import LocalBackend
from mfimage.backends.process.backend import ProcessBackend, ProcessOptions
from mfimage.backends.process.environments import environment_python
from mfimage.function import json as json_values
from mfimage.package.store import Package
from mfimage.runtime.worker.frames import CALL
from tests.backends.process_support import Packages

MOST_OVER_US, MOST_COPIES, LEAST_RATE, MOST_FIRST_S = 100, 2, 100_000, 1.5
RECORD = {"petals": 5, "length": 1.4, "name": "setosa"}
BIG = 10_000_000
MANY = 100_000
STARTS = 7
LIBRARIES = (
    *("cloudpickle", "joblib", "narwhals", "numpy", "scikit-learn", "scipy"),
    "threadpoolctl",
)

FREE = """
@json_function
def predict(data: dict) -> dict:
    return {"petals": data.get("petals")}
"""
SKLEARN = """
from sklearn.linear_model import LogisticRegression
@json_function
def predict(data: list[float], params: FunctionParameters) -> int:
    return int(params.model.predict([data])[0])
"""
START = """
import sys, time
began = time.perf_counter()
from mfimage.backends.process.backend import ProcessBackend
from mfimage.package.store import open_package
predict = ProcessBackend(open_package(sys.argv[1]))
predict([5.1, 3.5, 1.4, 0.2])
print(time.perf_counter() - began, flush=True)
"""


def least(calls: Mapping[str, Callable[[], Any]], number: int, repeats: int) -> dict[str, float]:
    """Return the minimum of seconds per call of each, measured in turns."""
    timers = {name: timeit.Timer(call) for name, call in calls.items()}
    found = dict.fromkeys(calls, float("inf"))
    for _ in range(repeats):
        for name, timer in timers.items():
            found[name] = min(found[name], timer.timeit(number) / number)
    return found


@contextlib.contextmanager
def backends(package: Package, **options: Any) -> Iterator[tuple[LocalBackend, ProcessBackend]]:
    """Load a function both ways."""
    local, process = LocalBackend(package), ProcessBackend(package, ProcessOptions(**options))
    process(RECORD)
    try:
        yield local, process
    finally:
        local.close()
        process.close()


def calls(package: Package) -> bool:
    """Print the time of a call."""

    def plain(data: dict[str, Any]) -> dict[str, Any]:
        return {"petals": data.get("petals")}

    with backends(package) as (local, process):
        ways = {"the plain function": plain, "local": local, "process": process}
        found = least({name: lambda w=w: w(RECORD) for name, w in ways.items()}, 500, 30)
    for name, seconds in found.items():
        print(f"a call, {name:38}{seconds * 1e6:10.1f} us")
    over = (found["process"] - found["the plain function"]) * 1e6
    return verdict("process over the plain function", over, "us", most=MOST_OVER_US)


def threads(package: Package) -> None:
    """Print how many calls 64 threads make."""
    for workers in (1, 2):
        with backends(package, workers=workers) as (_, process), ThreadPoolExecutor(64) as pool:
            began = time.perf_counter()
            list(pool.map(process, [RECORD] * 20_000))
            rate = 20_000 / (time.perf_counter() - began)
        print(f"64 threads, {workers} workers{'':27}{rate:12,.0f} calls/s")


def big(package: Package) -> bool:
    """Print the time of a record of 10 MB, and how often it is copied."""
    record = {"text": "x" * BIG}
    with backends(package) as (local, process):
        found = least({"local": lambda: local(record), "process": lambda: process(record)}, 1, 15)
        payload = json_values.dumps(record, root="data")
        tracemalloc.start()
        process._pool.call(CALL, payload)
        copies = 2 + round(tracemalloc.get_traced_memory()[1] / len(payload), 2)
        tracemalloc.stop()
    for name, seconds in found.items():
        print(f"10 MB, {name:39}{seconds * 1e3:10.1f} ms")
    print(f"10 MB, process over local{'':29}{found['process'] / found['local']:8.2f} x")
    return verdict("10 MB, copies: the kernel's two and Python's", copies, "", most=MOST_COPIES)


def maps(package: Package) -> bool:
    """Print how many records a second go through ``map``."""
    rates: dict[str, float] = {}
    with backends(package) as (local, process):
        ways: dict[str, LocalBackend | ProcessBackend] = {"local": local, "process": process}
        for _ in range(5):
            for name, way in ways.items():
                began = time.perf_counter()
                records = ({"petals": i} for i in range(MANY))
                count = sum(1 for _ in way.map(records, batch_size=256, on_error="raise"))
                assert count == MANY
                rate = MANY / (time.perf_counter() - began)
                rates[name] = max(rates.get(name, 0), rate)
    print(f"map of 100k records, local{'':22}{rates['local']:12,.0f} records/s")
    return verdict("map of 100k records, process", rates["process"], "records/s", least=LEAST_RATE)


def first_call(packages: Packages) -> bool:
    """Print the time to the first result of a model in a new process."""
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    features, labels = load_iris(return_X_y=True)
    model = LogisticRegression(max_iter=500).fit(features, labels)
    environment = packages.environment(*LIBRARIES)
    package = packages.write(SKLEARN, artifacts={"model": model}, environment=environment)
    began = time.perf_counter()
    environment_python(package)
    print(f"scikit-learn, making the environment{'':17}{time.perf_counter() - began:9.2f} s")
    print(f"scikit-learn, first call in it{'':23}{_start(package):9.2f} s")
    alone = [str(environment_python(package)), "-I", "-c", "import sklearn.linear_model"]
    first = imported = float("inf")
    for _ in range(STARTS):
        first = min(first, _start(package))
        imported = min(imported, timeit.timeit(lambda: subprocess.check_call(alone), number=1))
    print(f"scikit-learn, its import alone{'':23}{imported:9.2f} s")
    return verdict("scikit-learn, first call in a new process", first, "s", most=MOST_FIRST_S)


def _start(package: Package) -> float:
    command = [sys.executable, "-c", START, package.reference]
    return float(subprocess.check_output(command, text=True))


def verdict(
    label: str, value: float, unit: str, *, most: float | None = None, least: float | None = None
) -> bool:
    """Print a number and its goal; return whether it is met."""
    good = value <= most if most is not None else value >= (least or 0)
    goal = f"at most {most:,}" if most is not None else f"at least {least:,}"
    number = f"{value:,.0f}" if value > 1000 else f"{value:.2f}"
    print(f"{label:46}{number:>12} {unit:9} {goal}: {'yes' if good else 'NO'}")
    return good


def main() -> int:
    """Print the table; return 1 if a goal is missed."""
    with tempfile.TemporaryDirectory(prefix="mfimage-") as folder:
        os.environ["MFIMAGE_CACHE"] = str(Path(folder, "cache"))
        packages = Packages(Path(folder, "root"))
        package = packages.write(FREE)
        reached = [calls(package)]
        threads(package)
        reached += [big(package), maps(package), first_call(packages)]
    return int(not all(reached))


if __name__ == "__main__":
    sys.exit(main())
