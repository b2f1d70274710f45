"""The Ray backend against hand-written actors with the same model.

Run it with ``python -m benchmarks.ray_backend``: a call; ``map`` of 100k records of 8 numbers, with
the batches and the window of the actors, and with the defaults; and ``map`` of a million records in
bounded memory. All run in turns on one cluster that is started here; the best run of each counts.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from benchmarks.process_backend import least, verdict
from mfimage.backends.process.backend import ProcessBackend
from mfimage.backends.ray.backend import RayBackend
from mfimage.backends.ray.options import RayOptions
from mfimage.package.store import Package
from tests.backends.process_support import Packages

LEAST_MAP, MOST_CALL, MOST_GROWTH_MB = 0.95, 1.1, 200
BATCH, AHEAD, MANY, MILLION = 256, 4, 100_000, 1_000_000
NAMES = [f"feature_{i}" for i in range(8)]
LIBRARIES = (
    *("cloudpickle", "joblib", "narwhals", "numpy", "scikit-learn", "scipy"),
    "threadpoolctl",
)
SOURCE = f"""
import numpy as np
NAMES = {NAMES!r}
@json_function(batch=True)
def predict(data: list[dict[str, float]], params: FunctionParameters) -> list[int]:
    return params.model.predict(np.array([[each[name] for name in NAMES] for each in data]))
"""


def train() -> LogisticRegression:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(500, len(NAMES)))
    return LogisticRegression().fit(features, (features.sum(axis=1) > 0).astype(int))


def records(count: int) -> Iterator[dict[str, float]]:
    rng = np.random.default_rng(1)
    some = [dict(zip(NAMES, row, strict=True)) for row in rng.normal(size=(1000, 8)).tolist()]
    return (some[i % 1000] for i in range(count))


class ByHand:
    """The hand-written side: an actor with the model, batches, several in flight."""

    def __init__(self, model: Any) -> None:
        import ray

        class Predictor:
            def __init__(self, model: Any) -> None:
                self.model = model

            def predict(self, data: list[dict[str, float]]) -> list[int]:
                rows = np.array([[each[name] for name in NAMES] for each in data])
                return self.model.predict(rows).tolist()

        self.ray = ray
        self.actor = ray.remote(Predictor).options(num_cpus=1).remote(model)

    def __call__(self, record: dict[str, float]) -> int:
        return self.ray.get(self.actor.predict.remote([record]))[0]

    def map(self, source: Iterator[Any]) -> Iterator[int]:
        window: deque[Any] = deque()
        batch: list[Any] = []
        for record in source:
            batch.append(record)
            if len(batch) == BATCH:
                window.append(self.actor.predict.remote(batch))
                batch = []
                if len(window) == AHEAD:
                    yield from self.ray.get(window.popleft())
        if batch:
            window.append(self.actor.predict.remote(batch))
        while window:
            yield from self.ray.get(window.popleft())


def drain(results: Iterator[Any], count: int) -> float:
    """Return the number of results per second."""
    began = time.perf_counter()
    assert sum(1 for _ in results) == count
    return count / (time.perf_counter() - began)


def calls(by_hand: ByHand, backend: RayBackend) -> bool:
    record = next(records(1))
    ways = {"by hand": lambda: by_hand(record), "ours": lambda: backend(record)}
    found = least(ways, 100, 20)
    for name, seconds in found.items():
        print(f"a call, {name:38}{seconds * 1e6:10.0f} us")
    return verdict("a call over an actor's round trip", found["ours"] / found["by hand"], "x",
                   most=MOST_CALL)  # fmt: skip


def maps(by_hand: ByHand, backend: RayBackend, process: ProcessBackend) -> bool:
    best: dict[str, float] = {}
    for _ in range(7):
        ways = {
            "by hand": by_hand.map(records(MANY)),
            "the same window": backend.map(
                records(MANY), batch_size=BATCH, on_error="raise", max_in_flight=AHEAD
            ),
            "as it comes": backend.map(records(MANY), batch_size=BATCH, on_error="raise"),
            "process": process.map(records(MANY), batch_size=BATCH, on_error="raise"),
        }
        for name, way in ways.items():
            best[name] = max(best.get(name, 0), drain(way, MANY))
    for name, rate in best.items():
        print(f"map of 100k records, {name:25}{rate:10,.0f} records/s")
    same, ours = (best[name] / best["by hand"] for name in ("the same window", "as it comes"))
    good = verdict("map over by hand, the same window", same, "x", least=LEAST_MAP)
    return verdict("map over by hand, as it comes", ours, "x", least=LEAST_MAP) and good


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def million(backend: RayBackend) -> bool:
    before = peak_mb()
    results = backend.map(records(MILLION), batch_size=BATCH, on_error="raise")
    rate = drain(results, MILLION)
    print(f"map of a million records{'':22}{rate:10,.0f} records/s")
    return verdict("... its memory in the caller", peak_mb() - before, "MB", most=MOST_GROWTH_MB)


def main() -> int:
    """Print the table; return 1 if a goal is missed."""
    import ray

    with tempfile.TemporaryDirectory(prefix="mfimage-") as folder:
        os.environ["MFIMAGE_CACHE"] = str(Path(folder, "cache"))
        ray.init(address="local", num_cpus=2, include_dashboard=False)
        packages = Packages(Path(folder, "root"))
        model = train()
        package: Package = packages.write(
            SOURCE,
            artifacts={"model": model},
            environment=packages.environment(*LIBRARIES),
            batch=True,
        )
        by_hand, process = ByHand(model), ProcessBackend(package)
        backend = RayBackend(package, RayOptions(max_actors=1))
        expected = list(by_hand.map(records(1000)))
        assert list(backend.map(records(1000), batch_size=BATCH, on_error="raise")) == expected
        reached = [calls(by_hand, backend), maps(by_hand, backend, process), million(backend)]
        backend.close()
        process.close()
        ray.shutdown()
    return int(not all(reached))


if __name__ == "__main__":
    sys.exit(main())
