"""Run every benchmark (``make bench``)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SUITES = (
    "bind",
    "call_overhead",
    "process_backend",
    "serving",
    "slow_clients",
    "many",
    "build",
    "ray_backend",
    "ray_image",
    "steps",
)


def main() -> int:
    """Print each suite's table; return the worst exit code."""
    worst = 0
    for suite in SUITES:
        print(f"\n## {suite}\n", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{suite}"]
        done = subprocess.run(command, cwd=Path(__file__).parents[1], check=False)
        worst = max(worst, done.returncode)
    return worst


if __name__ == "__main__":
    sys.exit(main())
