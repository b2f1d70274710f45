"""``mfimage build`` against BuildKit with a hand-written Dockerfile of the same content.

Run it with ``python -m benchmarks.build``. mfimage runs as typed: the oci builder, on the engine's
base, into the engine or (``--push``) a registry on this machine. The Dockerfile installs the same
lock with uv in a build stage with cache mounts. Cold means: no layer in any cache, package files
in uv's. A code edit is a new function package with other code, and a build of it.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.docker import registry

HERE = Path(__file__).parent
ROOT = HERE.parent
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "5"))
BIN = Path(sys.executable).parent
LARGE = 2_000_000_000

TRAIN = """
import os
from metaflow import FlowSpec, step

class BenchFlow(FlowSpec):
    @step
    def start(self):
        from sklearn.datasets import load_iris
        from sklearn.linear_model import LogisticRegression
        iris = load_iris()
        self.feature_names = list(iris.feature_names)
        self.model = LogisticRegression(max_iter=1000).fit(iris.data, iris.target)
        self.weights = os.urandom(50_000_000)
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    BenchFlow()
"""

PREDICT = """
from metaflow import FunctionParameters, json_function

@json_function
def predict(data: dict, params: FunctionParameters) -> dict:
    features = [data[name] for name in params.feature_names]
    prediction = int(params.model.predict([features])[0])
    return {{"prediction": prediction, "n": len(params.weights), "v": {edit}}}
"""

APP = """
import pickle
from fastapi import FastAPI
from metaflow import FunctionParameters
import predict as code

def load(name):
    with open(f"/app/artifacts/{{name}}.pkl", "rb") as file:
        return pickle.load(file)

app = FastAPI()
names = ("model", "feature_names", "weights")
params = FunctionParameters(**{{name: load(name) for name in names}})
EDIT = {edit}

@app.post("/predict")
def predict(payload: dict):
    return code.predict(payload, params)

@app.get("/readyz")
def ready():
    return {{}}
"""

DOCKERFILE = """
FROM python:3.11-slim AS build
ENV UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_PREVIEW_FEATURES=pylock
RUN --mount=type=cache,target=/root/.cache/pip {ca} pip install --quiet uv
COPY pylock.toml /
RUN --mount=type=cache,target=/root/.cache/uv {ca} \\
    uv venv --quiet /opt/venv && \\
    uv pip install --quiet --python /opt/venv/bin/python --requirement /pylock.toml
FROM python:3.11-slim
COPY --from=build /opt/venv /opt/venv
COPY artifacts /app/artifacts
COPY mfimage /app/mfimage
COPY metaflow_extensions /app/metaflow_extensions
COPY app.py predict.py /app/
WORKDIR /app
ENV PYTHONUNBUFFERED=1 PATH=/opt/venv/bin:$PATH METAFLOW_USER=app HOME=/tmp
USER 1000
CMD ["uvicorn", "app:app", "--host", "0.0.0.0", "--port", "8000"]
"""
CA = (
    "--mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt "
    "export UV_SYSTEM_CERTS=1 PIP_CERT=/etc/ssl/certs/ca-certificates.crt &&"
)


def run(command: list[str], **kwargs) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **kwargs)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}")
    return done.stdout.strip()


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def docker() -> list[str]:
    """Return a docker command line whose `build` is BuildKit's."""
    for name in dict.fromkeys([shutil.which("docker"), "/usr/bin/docker"]):
        if name is None:
            continue
        has_buildx = subprocess.run([name, "buildx", "version"], capture_output=True, check=False)
        version = run([name, "version", "--format", "{{.Client.Version}}"])
        if has_buildx.returncode == 0 or int(version.split(".")[0]) < 23:
            return [name]
    sys.exit("no docker command line with BuildKit: install docker-buildx")


class Bench:
    """The same function for both sides, in a folder."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder = folder
        self.address = address
        self.hand = folder / "hand"
        self.docker = docker()
        self.bundle = os.environ.get("SSL_CERT_FILE")
        (folder / "train.py").write_text(TRAIN)
        self.hand.mkdir()
        self.env = {
            **os.environ, "DOCKER_BUILDKIT": "1", "METAFLOW_USER": "bench",
            "MFIMAGE_CACHE": str(folder / "cache"),
        }  # fmt: skip
        # Both sides run from compiled files; some test environments turn them off.
        self.env.pop("PYTHONDONTWRITEBYTECODE", None)

    def mfimage(self, *arguments: str) -> str:
        return run([str(BIN / "mfimage"), *arguments], cwd=self.folder, env=self.env)

    def bind(self, edit: int) -> str:
        (self.folder / "predict.py").write_text(PREDICT.format(edit=edit))
        return self.mfimage(
            "bind", "predict.py:predict", "--task", "BenchFlow/" + self.run + "/start"
        )

    def train(self) -> None:
        run([sys.executable, "train.py", "run"], cwd=self.folder, env=self.env)
        self.run = (self.folder / ".metaflow/BenchFlow/latest_run").read_text()

    def write_by_hand(self, edit: int, reference: str) -> None:
        """Write the hand-made context with the same lock, artifacts and code."""
        from metaflow import Task, namespace

        os.chdir(self.folder)
        namespace(None)
        task = Task(f"BenchFlow/{self.run}/start/1")
        import pickle

        artifacts = self.hand / "artifacts"
        artifacts.mkdir(exist_ok=True)
        for name in ("model", "feature_names", "weights"):
            (artifacts / f"{name}.pkl").write_bytes(pickle.dumps(task[name].data, protocol=4))
        rendered = self.folder / "rendered"
        self.mfimage("render", reference, "-o", str(rendered))
        shutil.copy(rendered / "build/lock/pylock.toml", self.hand / "pylock.toml")
        for name in ("mfimage", "metaflow_extensions"):
            shutil.rmtree(self.hand / name, ignore_errors=True)
            shutil.copytree(rendered / "layers/runtime/opt/mfimage" / name, self.hand / name)
        self.edit_by_hand(edit)
        text = DOCKERFILE.format(ca=CA if self.bundle else "")
        (self.hand / "Dockerfile").write_text(text)

    def edit_by_hand(self, edit: int) -> None:
        (self.hand / "app.py").write_text(APP.format(edit=edit))
        shutil.copy(self.folder / "predict.py", self.hand)

    def build_by_hand(self, *flags: str) -> None:
        secret = ["--secret", f"id=ca,src={self.bundle}"] if self.bundle else []
        run(
            [*self.docker, "build", "-q", *flags, *secret, "-t", "bench-hand", str(self.hand)],
            env=self.env,
        )

    def push_by_hand(self) -> None:
        self.build_by_hand()
        tag = f"{self.address}/hand:1"
        run(["docker", "tag", "bench-hand", tag])
        run(["docker", "push", "-q", tag])

    def build(self, reference: str, *flags: str) -> None:
        """Build into the engine."""
        self.mfimage("build", reference, "-t", "bench-mfimage", *flags)

    def push(self, reference: str, *flags: str) -> None:
        """Build into the registry."""
        self.mfimage("build", reference, "--push", "-t", f"{self.address}/ours:1", *flags)

    def forget(self) -> None:
        """Remove everything that mfimage built; the target's lock stays beside the package."""
        shutil.rmtree(self.folder / "cache", ignore_errors=True)
        run(["docker", "image", "rm", "-f", "bench-mfimage"])

    def large(self) -> str:
        """Return a copy of the package with an additional artifact of 2 GB."""
        from dataclasses import replace

        from mfimage.package.spec import ArtifactRef
        from mfimage.package.store import open_package

        package = open_package(self.bind(0))
        path = self.folder / "large"
        block = os.urandom(50_000_000)
        with path.open("wb") as file:
            for _ in range(LARGE // len(block)):
                file.write(block)
        blob = package.store.put_file(path)
        path.unlink()
        ref = ArtifactRef(
            digest=blob.digest, size=blob.size, encoding="gzip+pickle-v4", type="builtins.bytes"
        )
        spec = replace(package.spec, artifacts={**package.spec.artifacts, "large": ref})
        return package.store.write(spec)


def peak_memory(command: list[str], **kwargs: object) -> float:
    """Return the peak memory, in megabytes, of a command or one of its processes."""
    code = (
        "import json, resource, subprocess, sys\n"
        "done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)\n"
        "print(json.dumps([done.returncode, "
        "resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]))"
    )
    status, kilobytes = json.loads(run([sys.executable, "-c", code, *command], **kwargs))
    if status:
        sys.exit(f"{' '.join(command)}: exit code {status}")
    return float(kilobytes) / 1000


def first_200(image: str) -> float:
    """Return seconds from ``docker run`` to the first 200 of /readyz."""
    start = time.perf_counter()
    container = run(["docker", "run", "-d", "-p", "127.0.0.1::8000", image])
    try:
        host, _, port = (
            run(["docker", "port", container, "8000/tcp"]).splitlines()[0].partition(":")
        )
        while time.perf_counter() - start < 60:
            try:
                connection = http.client.HTTPConnection(host, int(port), timeout=2)
                connection.request("GET", "/readyz")
                if connection.getresponse().status == 200:
                    return time.perf_counter() - start
            except (OSError, http.client.HTTPException):
                pass
            time.sleep(0.01)
        sys.exit(run(["docker", "logs", container]))
    finally:
        run(["docker", "rm", "-f", container])


def row(
    name: str, ours: list[float], theirs: list[float], goal: float | str, unit: str = "s"
) -> None:
    a, b = statistics.median(ours), statistics.median(theirs)
    print(f"| {name} | {a:.2f} {unit} | {b:.2f} {unit} | {a / b:.2f} | {goal} |", flush=True)


def side_by_side(
    name: str,
    ours: Callable[[int], object],
    theirs: Callable[[int], object],
    goal: float | str,
    *,
    prepare: Callable[[int], None] = lambda number: None,
    rounds: int = ROUNDS,
) -> None:
    """Time both in turns, and print a row of the table."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(1, rounds + 1):
        prepare(number)
        for found, call in zip(times, (ours, theirs), strict=True):
            found.append(timed(lambda call=call, number=number: call(number)))
    row(name, *times, goal)


class Edits:
    """The reference that is built, and what changes it."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.count = 0
        self.reference = bench.bind(0)

    def code(self, number: int) -> None:
        self.count += 1
        self.reference = self.bench.bind(self.count)
        self.bench.edit_by_hand(self.count)

    def artifact(self, number: int) -> None:
        self.bench.train()
        self.code(number)
        self.bench.write_by_hand(self.count, self.reference)


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as text, registry("plain", directory=Path(text)) as running:
        folder = Path(text, "bench")
        folder.mkdir()
        bench = Bench(folder, running.address)
        bench.train()
        edits = Edits(bench)
        bench.write_by_hand(0, edits.reference)
        bench.build(edits.reference)
        bench.push(edits.reference)
        bench.push_by_hand()
        print(f"load {os.getloadavg()[0]:.1f}", file=sys.stderr)
        print("| | mfimage | by hand | ratio | goal |\n|---|---|---|---|---|")
        starts = [timed(lambda: run([sys.executable, "-c", "pass"])) for _ in range(ROUNDS)]
        _compare(bench, edits)
        _images(bench, edits)
        print(f"| Python's start | {statistics.median(starts):.2f} s | | | |")
        command = [
            str(BIN / "mfimage"), "build", bench.large(), "--push", "-t", f"{bench.address}/large:1"
        ]  # fmt: skip
        found = peak_memory(command, cwd=bench.folder, env=bench.env)
        print(f"| peak memory, artifact of 2 GB | {found:.0f} MB | | | 200 MB |", flush=True)
        print(f"load {os.getloadavg()[0]:.1f}", file=sys.stderr)


def _compare(bench: Bench, edits: Edits) -> None:
    few = max(2, ROUNDS // 2)
    for name, goal, flags in (("cold", 0.5, ()), ("cold, `--no-compile`", "-", ("--no-compile",))):
        side_by_side(
            f"{name}, into the engine", lambda _, flags=flags: bench.build(edits.reference, *flags),
            lambda _: bench.build_by_hand("--no-cache"), goal,
            prepare=lambda _: bench.forget(), rounds=few,
        )  # fmt: skip
    # The first push after `forget` finds the image and compresses nothing; the next one does.
    for _ in range(2):
        edits.code(0)
        bench.build(edits.reference)
        bench.push(edits.reference)
    for name, goal, prepare in (
        ("code edit", ("0.5 s", "0.3 s"), edits.code),
        ("new 50 MB artifact", ("-", "-"), edits.artifact),
    ):
        side_by_side(
            f"{name}, into the engine", lambda _: bench.build(edits.reference),
            lambda _: bench.build_by_hand(), goal[0], prepare=prepare,
        )  # fmt: skip
        side_by_side(
            f"{name}, into a registry", lambda _: bench.push(edits.reference),
            lambda _: bench.push_by_hand(), goal[1], prepare=prepare,
        )  # fmt: skip


def _images(bench: Bench, edits: Edits) -> None:
    def size(name: str) -> float:
        return int(run(["docker", "inspect", "-f", "{{.Size}}", name])) / 1e6

    bench.build(edits.reference)
    row("image size", [size("bench-mfimage")], [size("bench-hand")], 1.03, "MB")
    for name, goal, flags in (("", 1.1, ()), (", `--no-compile`", "-", ("--no-compile",))):
        bench.build(edits.reference, *flags)
        side_by_side(
            f"`docker run` to first 200{name}", lambda _: first_200("bench-mfimage"),
            lambda _: first_200("bench-hand"), goal,
        )  # fmt: skip


if __name__ == "__main__":
    main()
