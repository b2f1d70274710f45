"""``mfimage bind``, warm, against the import of Metaflow.

Run it with ``python -m benchmarks.bind``. The function and its task are those of examples/iris.
uv's cache is warm: uv uses a cached page for as long as the index allows (PyPI: ten minutes), or
offline; after that it asks the index again. Each round times all three in turn.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / "examples" / "iris"
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "15"))
GOAL = 2.2


def timed(command: list[str], **kwargs) -> float:
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, **kwargs)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    return seconds


def main() -> None:
    """Print a table."""
    mfimage = str(Path(sys.executable).with_name("mfimage"))
    with tempfile.TemporaryDirectory(prefix="mfimage-bench-") as folder:
        env = {**os.environ, "METAFLOW_USER": "bench", "METAFLOW_HOME": folder}
        # Both sides run from compiled files; some test environments turn them off.
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        for file in EXAMPLE.glob("*.py"):
            shutil.copy(file, folder)
        options = {"cwd": folder, "env": env}
        timed([sys.executable, "train.py", "run"], **options)
        bind = [mfimage, "bind", "predict.py:predict", "--task", "IrisFlow"]
        load = [sys.executable, "-c", "import metaflow"]
        timed(bind, **options)
        offline = {**options, "env": {**env, "UV_OFFLINE": "1"}}
        rounds = [
            (timed(bind, **offline), timed(bind, **options), timed(load, **options))
            for _ in range(ROUNDS)
        ]
    names = ("bind, pages in cache", "bind, pages asked again", "import metaflow")
    *_, base = best = [min(seconds) for seconds in zip(*rounds, strict=True)]
    medians = [statistics.median(seconds) for seconds in zip(*rounds, strict=True)]
    for name, low, median in zip(names, best, medians, strict=True):
        ratio = f"{low / base:5.2f} x, medians {median / medians[-1]:5.2f} x"
        print(f"{name:24} best {low:5.2f} s, median {median:5.2f} s: {ratio}")
    good = "yes" if best[0] / base <= GOAL else "NO"
    print(f"bind, pages in cache, at most {GOAL} x: {good}")


if __name__ == "__main__":
    main()
