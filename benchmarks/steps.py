"""The items of a foreach in a pool of warm workers, against a process, or container, for each.

Run it with ``python -m benchmarks.steps``: 200 items that do nothing, 20 of a flow whose import
takes a second, 20 in containers, and a single one. All on this machine, as many at once as it has
cores; seconds are those from the first item's start to the last one's end, by the number of items.
``python -m benchmarks.steps --plot docs/worker-pools.svg`` measures how many items a second pools
of some sizes run, and draws it.
"""

from __future__ import annotations

import atexit
import functools
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from tests.steps.running import build_step_image

LEAST = {"nothing": 7, "import": 10, "docker": 12}
# One item in a pool may take so much longer than without one: what a busy machine does to it.
MOST_ONE = 1.1
SIZES, LENGTHS, ITEMS = (1, 2, 4, 8), (0.0, 0.1, 0.5), 32
FLOW = """
import time
from metaflow import FlowSpec, docker, step, worker_pool
{top}

class F(FlowSpec):
    @step
    def start(self):
        self.items = list(range({items}))
        self.next(self.work, foreach="items")

    {decorators}
    @step
    def work(self):
        self.out = self.input * 2
        {body}
        self.next(self.join)

    @step
    def join(self, inputs):
        assert [each.out for each in inputs] == [2 * each for each in range({items})]
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    F()
"""
IMPORT = "until = time.process_time() + 1\nwhile time.process_time() < until: pass"
POOLS = {"anew": (), "fork": ("@worker_pool",), "loop": ("@worker_pool(mode='loop')",)}


class Took(NamedTuple):
    """Seconds of a whole run, and of its items from the first's start to the last's end."""

    run: float
    items: float


@functools.cache
def runs() -> str:
    """Return a folder for all runs, which is removed at the end.

    Where ext4 has just deleted thousands of files, it takes twice as long to make others.
    """
    folder = tempfile.mkdtemp(prefix="mfimage-bench-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def seconds(
    decorators: Sequence[str], items: int, *, top: str = "", body: str = "", workers: int = 0
) -> Took:
    """Run a flow; return how long it took."""
    folder = tempfile.mkdtemp(prefix="run-", dir=runs())
    Path(folder, "flow.py").write_text(
        FLOW.format(top=top, items=items, body=body, decorators="\n    ".join(decorators))
    )
    env = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "METAFLOW_USER": "bench",
        "METAFLOW_HOME": f"{folder}/home",
        "METAFLOW_DATASTORE_SYSROOT_LOCAL": folder,
    }
    at_once = str(workers or len(os.sched_getaffinity(0)))
    command = [sys.executable, "flow.py", "run", "--max-workers", at_once]
    command += ["--max-num-splits", str(items)]
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, check=False)
    took = time.perf_counter() - began
    assert not done.returncode, done.stdout[-4000:].decode()
    lines = re.findall(r"^(\S+ \S+) \[\d+/work/", done.stdout.decode(), re.MULTILINE)
    first, last = map(datetime.fromisoformat, (lines[0], lines[-1]))
    return Took(took, (last - first).total_seconds())


def compare(
    title: str, ways: Mapping[str, Sequence[str]], items: int, *, least: float, top: str = ""
) -> bool:
    """Print seconds per item of each way, and how many times faster than the first it is."""
    found = {way: seconds(decorators, items, top=top).items for way, decorators in ways.items()}
    first = next(iter(found.values()))
    for way, took in found.items():
        print(f"{title:32}{way:8}{took / items:8.3f} s an item{first / took:8.1f} x", flush=True)
    best = max(first / took for took in found.values())
    print(f"{title}: {best:.1f} x, at least {least} x: {'ok' if best >= least else 'MISSED'}")
    return best >= least


def one(repeats: int = 5) -> bool:
    """Print how long a run with a single item takes, with a pool and without, in turns."""
    found: dict[str, list[float]] = {way: [] for way in POOLS}
    for _ in range(repeats):
        for way, decorators in POOLS.items():
            found[way].append(seconds(decorators, 1).run)
    medians = {way: statistics.median(took) for way, took in found.items()}
    for way, took in medians.items():
        print(f"{'one item':32}{way:8}{took:8.3f} s the run")
    ratio = medians["fork"] / medians["anew"]
    print(f"one item: {ratio:.2f}, at most {MOST_ONE}: {'ok' if ratio <= MOST_ONE else 'MISSED'}")
    return ratio <= MOST_ONE


def measure() -> dict[str, list[float]]:
    """Return items a second: for each length of an item, by the size of the pool."""
    found = {}
    for length in LENGTHS:
        name = f"{length:g} s" if length else "nothing"
        rates = []
        for size in SIZES:
            body = f"time.sleep({length})" if length else ""
            took = seconds((f"@worker_pool(size={size})",), ITEMS, body=body, workers=max(SIZES))
            rates.append(ITEMS / took.items)
            print(f"items of {name:10}{size:3} workers{rates[-1]:8.1f} items a second", flush=True)
        found[f"items of {name}"] = rates
    return found


def plot(found: Mapping[str, Sequence[float]]) -> str:
    """Return an SVG of `measure`, with a logarithmic axis of items a second."""
    from math import floor, log10

    width, height, left, bottom, right = 640, 360, 60, 50, 130
    low = floor(log10(min(map(min, found.values()))))
    high = floor(log10(max(map(max, found.values())))) + 1

    def x(index: int) -> float:
        return left + index * (width - left - right) / (len(SIZES) - 1)

    def y(rate: float) -> float:
        return 20 + (high - log10(rate)) / (high - low) * (height - bottom - 20)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for power in range(low, high + 1):
        parts.append(
            f'<path d="M{left} {y(10**power):.1f}H{width - right}" stroke="#ddd"/>'
            f'<text x="{left - 8}" y="{y(10**power) + 4:.1f}" text-anchor="end">'
            f"{10**power:g}</text>"
        )
    for index, size in enumerate(SIZES):
        parts.append(
            f'<text x="{x(index):.1f}" y="{height - bottom + 18}" text-anchor="middle">'
            f"{size}</text>"
        )
    for (name, rates), color in zip(found.items(), ("#1f77b4", "#d62728", "#2ca02c"), strict=True):
        points = " ".join(f"{x(i):.1f},{y(rate):.1f}" for i, rate in enumerate(rates))
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>'
            f'<text x="{x(len(SIZES) - 1) + 8:.1f}" y="{y(rates[-1]) + 4:.1f}" fill="{color}">'
            f"{name}</text>"
        )
    cores = len(os.sched_getaffinity(0))
    parts += [
        f'<text x="{(left + width - right) / 2}" y="{height - 8}" text-anchor="middle">'
        f"workers ({cores} cores, mode=fork)</text>",
        f'<text transform="translate(14 {height / 2 - 10}) rotate(-90)" text-anchor="middle">'
        "items a second</text>",
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Print the tables, or draw the plot; return 1 if a goal is missed."""
    if arguments[:1] == ["--plot"]:
        Path(arguments[1]).write_text(plot(measure()))
        return 0
    good = [
        compare("200 items that do nothing", POOLS, 200, least=LEAST["nothing"]),
        compare("20 items, an import of 1 s", POOLS, 20, least=LEAST["import"], top=IMPORT),
        one(),
    ]
    if shutil.which("docker"):
        with tempfile.TemporaryDirectory() as folder:
            image = build_step_image(Path(folder))
        ways = {way: (f"@docker(image={image!r})", *pool) for way, pool in POOLS.items()}
        good.append(compare("20 items in containers", ways, 20, least=LEAST["docker"]))
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
