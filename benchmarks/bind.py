"""mfimage bind, warm, against the import of Metaflow, side by side.

Run it with ``python -m benchmarks.bind``. The function and its task are those of examples/iris;
uv's cache is warm. Every round times both, one after the other.
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
        # Both sides run from compiled files, as everywhere but in some test environments.
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        for file in EXAMPLE.glob("*.py"):
            shutil.copy(file, folder)
        options = {"cwd": folder, "env": env}
        timed([sys.executable, "train.py", "run"], **options)
        bind = [mfimage, "--debug", "bind", "predict.py:predict", "--task", "IrisFlow"]
        load = [sys.executable, "-c", "import metaflow"]
        timed(bind, **options)
        pairs = [(timed(bind, **options), timed(load, **options)) for _ in range(ROUNDS)]
    binds, loads = zip(*pairs, strict=True)
    for name, seconds in (("mfimage bind, warm", binds), ("import metaflow", loads)):
        print(f"{name:20} median {statistics.median(seconds):6.2f} s, best {min(seconds):6.2f} s")
    ratio = min(binds) / min(loads)
    good = "yes" if ratio <= GOAL else "NO"
    print(f"ratio of the best    {ratio:6.2f}, at most {GOAL}: {good}")
    print(f"ratio of the medians {statistics.median(binds) / statistics.median(loads):6.2f}")


if __name__ == "__main__":
    main()
