"""Many functions in one image: 500, each with an artifact of 1 MB, against one function alone.

A flow of one foreach trains them; they are bound, built and pushed to a registry on this machine:
cold, after one of them has changed, and again. Cold means: no layer in any cache, package files in
uv's. Then servers of all of them, eager and lazy, and of one alone, take turns under load.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.build import BIN, run, timed
from benchmarks.load import Load, Plan, client, load
from benchmarks.servers import CLIENT_CORE, SERVE, answers, cpu, memory, running, wait_until
from mfimage.package.spec import ArtifactRef
from mfimage.package.store import open_package
from mfimage.runtime.calls.queue import call_one
from mfimage.runtime.loading.loader import LiveFunction
from mfimage.runtime.serving.loads import load_whole
from tests.runtime.packages import Source, make_folder, make_functions
from tests.support.docker import registry

SOURCE = """
@json_function
def predict(data: dict, params: FunctionParameters) -> dict:
    return {"y": data["x"] * len(params.model)}
"""
HEADER = """
import os
from metaflow import FlowSpec, FunctionParameters, json_function, step
"""
FLOW = """
class ManyFlow(FlowSpec):
    @step
    def start(self):
        self.names = [f"f{n:03}" for n in range(int(os.environ["FUNCTIONS"]))]
        self.next(self.train, foreach="names")

    @step
    def train(self):
        self.model = os.urandom(1_000_000)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    ManyFlow()
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
    def threads(self) -> int:
        """How many threads it has."""
        return len([*Path(f"/proc/{self.process.pid}/task").iterdir()])


@contextlib.contextmanager
def serving(
    name: str, folder: Path, port: int, paths: tuple[str, ...], **environ: str
) -> Iterator[Running]:
    """Serve a folder until the end; return when it is ready."""
    given = {"MFIMAGE_FUNCTION": str(folder), "MFIMAGE_DRAIN": "0", **environ}
    began = time.monotonic()
    with running(SERVE, port=port, folder=folder, environ=given) as process:
        wait_until(lambda: answers(port, "/readyz"), name, seconds=120)
        ready = time.monotonic() - began
        yield Running(name=name, process=process, port=port, paths=paths, ready=ready)


def call(port: int, path: str) -> float:
    """Call a function once; return the milliseconds that it took."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", data=BODY.encode(), headers=headers
    )
    began = time.monotonic()
    urllib.request.urlopen(request).read()
    return (time.monotonic() - began) * 1e3


def size_of(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def changed(reference: str) -> str:
    """Return a copy of a package with another artifact."""
    package = open_package(reference)
    blob = package.store.put_bytes(pickle.dumps(os.urandom(SIZE), protocol=4))
    kept = package.spec.artifacts["model"]
    ref = ArtifactRef(
        digest=blob.digest, size=blob.size, encoding="pickle-v4", type=kept.type
    )  # fmt: skip
    return package.store.write(dataclasses.replace(package.spec, artifacts={"model": ref}))


def build(folder: Path, count: int) -> None:
    """Train, bind, build and push the functions; print a row for each."""
    (folder / "flow.py").write_text(HEADER + SOURCE + FLOW)
    environ = {
        **os.environ, "FUNCTIONS": str(count), "METAFLOW_USER": "bench",
        "METAFLOW_HOME": str(folder / "home"), "MFIMAGE_CACHE": str(folder / "cache"),
        "METAFLOW_DATASTORE_SYSROOT_LOCAL": str(folder),
    }  # fmt: skip
    command = [sys.executable, "flow.py", "run", "--max-num-splits", str(count)]
    run(command, cwd=folder, env=environ)
    number = (folder / ".metaflow/ManyFlow/latest_run").read_text()
    with registry("plain", directory=folder / "registry") as place:
        references: list[str] = []

        def bind() -> None:
            task = f"ManyFlow/{number}/train"
            command = [str(BIN / "mfimage"), "bind", "flow.py:predict", "--task", task, "--foreach"]
            references[:] = run(command, cwd=folder, env=environ).split()

        def push() -> None:
            name = f"{place.address}/many:1"
            command = [str(BIN / "mfimage"), "build", *references, "--push", "-t", name]
            run(command, cwd=folder, env=environ)

        print("| | seconds | added to the registry |\n|---|---|---|")
        print(f"| bind | {timed(bind):.1f} | |", flush=True)
        for what in ("build and push, cold", "one function changed", "the same again"):
            if what == "one function changed":
                references[0] = changed(references[0])
            before = size_of(folder / "registry")
            seconds = timed(push)
            added = (size_of(folder / "registry") - before) / 1e6
            print(f"| {what} | {seconds:.1f} | {added:.1f} MB |", flush=True)


def ceiling(folder: Path, names: Iterable[str]) -> float:
    """Return how much longer the functions take than one of them, called in a loop."""
    fns = [load_whole(folder, name) for name in names]
    body = BODY.encode()

    def each(chosen: list[LiveFunction]) -> float:
        began = time.thread_time()
        for fn in chosen:
            call_one(fn, body)
        return time.thread_time() - began

    pairs = [(each([fns[0]] * len(fns)), each(fns)) for _ in range(200)]
    return statistics.median(many for _, many in pairs) / statistics.median(one for one, _ in pairs)


def serve(folder: Path, options: argparse.Namespace) -> None:
    """Serve the functions and one alone; print a row for each server."""
    one = make_folder(folder / "one", SOURCE, artifacts={"model": os.urandom(SIZE)})
    sources = {
        f"f{n:03}": Source(source=SOURCE, artifacts={"model": os.urandom(SIZE)})
        for n in range(options.functions)
    }
    many = make_functions(folder / "many", sources)
    paths = tuple(f"/{name}" for name in sources)
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(serving(ALONE, one, 18300, ("/predict",))),
            stack.enter_context(serving(EAGER, many, 18301, paths)),
            stack.enter_context(serving(LAZY, many, 18302, paths, MFIMAGE_LOAD="lazy")),
        ]
        starts = [memory(each.process.pid) for each in servers]
        firsts = ["", *map(first_calls, servers[1:])]
        for each in servers * options.rounds:
            plan = Plan(
                port=each.port, paths=each.paths, body=BODY,
                connections=options.connections, seconds=options.seconds,
            )  # fmt: skip
            before = cpu(each.process.pid)
            seen = load(plan, core=CLIENT_CORE)
            each.costs.append((cpu(each.process.pid) - before) / seen.requests * 1e6)
            if seen.errors:
                raise SystemExit(f"{each.name}: {seen.errors} errors")
            each.loads.append(seen)
        print(f"\n{len(paths)} functions; load: {client()}, {options.connections} connections\n")
        columns = (
            "", "start to ready", "memory, then", "first calls p50, p99 ms", "requests/s",
            "processor time of a request", "p50, p99 ms",
        )  # fmt: skip
        print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
        rates = [statistics.median(seen.rate for seen in each.loads) for each in servers]
        for each, rate, start, first in zip(servers, rates, starts, firsts, strict=True):
            p50, p99 = (
                statistics.median(getattr(seen, name) for seen in each.loads)
                for name in ("p50", "p99")
            )
            cells = (
                each.name, f"{each.ready:.1f} s",
                f"{start:.0f}, {memory(each.process.pid):.0f} MiB, {each.threads} threads", first,
                f"{rate:.0f} ({rate / rates[0]:.2f})", f"{statistics.median(each.costs):.0f} us",
                f"{p50:.1f} / {p99:.1f}",
            )  # fmt: skip
            print(f"| {' | '.join(cells)} |")
    ratio = ceiling(many, sources)
    print(f"\nIn a loop without a server, a call of each takes {ratio:.2f} of one of the same.")


def first_calls(server: Running) -> str:
    """Call each function once; return the times."""
    first = sorted(call(server.port, path) for path in server.paths)
    return f"{statistics.median(first):.1f} / {first[int(len(first) * 0.99)]:.1f}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--functions", type=int, default=500)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--only", choices=("build", "serve"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if options.only != "serve":
            Path(name, "build").mkdir()
            build(Path(name, "build"), options.functions)
        if options.only != "build":
            serve(Path(name), options)


if __name__ == "__main__":
    main()
