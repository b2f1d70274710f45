"""Many functions in one image: 500, each with an artifact of 1 MB, against one function alone."""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.load import Load, Plan, client, load
from tests.runtime.packages import Source, make_folder, make_functions

SERVER_CORE, CLIENT_CORE = 0, 1
SOURCE = """
@json_function
def predict(data: dict, params: FunctionParameters) -> dict:
    return {"y": data["x"] * len(params.model)}
"""
BODY = '{"x": 2}'
SIZE = 1_000_000
ALONE, EAGER, LAZY = "one alone", "eager", "lazy"


@dataclass(kw_only=True)
class Running:
    """A server, and what was measured of it."""

    name: str
    process: subprocess.Popen[bytes]
    port: int
    paths: tuple[str, ...]
    ready: float  # seconds from its start
    loads: list[Load] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)  # microseconds of processor time a request

    @property
    def cpu(self) -> float:
        """The processor time that it has used, in seconds."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def memory(self) -> float:
        """MiB that it occupies."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(each for each in status.splitlines() if each.startswith("VmRSS"))
        return int(line.split()[1]) / 1024

    @property
    def threads(self) -> int:
        """How many threads it has."""
        return len([*Path(f"/proc/{self.process.pid}/task").iterdir()])


@contextlib.contextmanager
def serving(
    name: str, folder: Path, port: int, paths: tuple[str, ...], **environ: str
) -> Iterator[Running]:
    """Serve a folder until the end; return when it is ready."""
    command = ["taskset", "-c", str(SERVER_CORE), sys.executable, "-m", "mfimage.runtime", "serve"]
    given = {"PORT": str(port), "MFIMAGE_FUNCTION": str(folder), "MFIMAGE_DRAIN": "0", **environ}
    began = time.monotonic()
    process = subprocess.Popen(command, env={**os.environ, **given}, stdout=subprocess.DEVNULL)
    try:
        while not is_ready(port):
            time.sleep(0.02)
        ready = time.monotonic() - began
        yield Running(name=name, process=process, port=port, paths=paths, ready=ready)
    finally:
        process.terminate()
        process.wait(30)


def is_ready(port: int) -> bool:
    """Return whether the server is."""
    with contextlib.suppress(OSError):
        return bool(urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz").status == 200)
    return False


def call(port: int, path: str) -> float:
    """Call a function once; return the milliseconds that it took."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", data=BODY.encode(), headers=headers
    )
    began = time.monotonic()
    urllib.request.urlopen(request).read()
    return (time.monotonic() - began) * 1e3


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--functions", type=int, default=500)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        one = make_folder(folder / "one", SOURCE, artifacts={"model": os.urandom(SIZE)})
        sources = {
            f"f{n:03}": Source(source=SOURCE, artifacts={"model": os.urandom(SIZE)})
            for n in range(options.functions)
        }
        many = make_functions(folder / "many", sources)
        paths = tuple(f"/{name}" for name in sources)
        servers = [
            stack.enter_context(serving(ALONE, one, 18300, ("/predict",))),
            stack.enter_context(serving(EAGER, many, 18301, paths)),
            stack.enter_context(serving(LAZY, many, 18302, paths, MFIMAGE_LOAD="lazy")),
        ]
        print(f"{len(paths)} functions; load: {client()}, {options.connections} connections")
        for each in servers:
            print(f"  {each.name:10} ready {each.ready:6.2f} s, {each.memory:6.0f} MiB, "
                  f"{each.threads} threads")  # fmt: skip
        for each in servers[1:]:
            first = sorted(call(each.port, path) for path in each.paths)
            p50, p99 = statistics.median(first), first[int(len(first) * 0.99)]
            print(f"  {each.name:10} first calls p50 {p50:.1f} ms, p99 {p99:.1f} ms; "
                  f"then {each.memory:.0f} MiB, {each.threads} threads")  # fmt: skip
        for _ in range(options.rounds):
            for each in servers:
                plan = Plan(
                    port=each.port, paths=each.paths, body=BODY,
                    connections=options.connections, seconds=options.seconds,
                )  # fmt: skip
                before = each.cpu
                seen = load(plan, core=CLIENT_CORE)
                each.costs.append((each.cpu - before) / seen.requests * 1e6)
                if seen.errors:
                    raise SystemExit(f"{each.name}: {seen.errors} errors")
                each.loads.append(seen)
        base = statistics.median(seen.rate for seen in servers[0].loads)
        for each in servers:
            rate, p50, p99 = (
                statistics.median(getattr(seen, name) for seen in each.loads)
                for name in ("rate", "p50", "p99")
            )
            cost = statistics.median(each.costs)
            print(f"  {each.name:10} {rate:6.0f} requests/s ({rate / base:.2f}), {cost:.0f} us of "
                  f"processor time each, p50 {p50:.1f} ms, p99 {p99:.1f} ms; "
                  f"{each.memory:.0f} MiB, {each.threads} threads")  # fmt: skip


if __name__ == "__main__":
    main()
