"""mfimage build against a hand-written Dockerfile of the same content, side by side.

Run it with ``python -m benchmarks.build``. Both install the same lock with uv in a build stage,
with cache mounts, on the same base. Cold means: no layer cached, package files at hand.
"""

from __future__ import annotations

import http.client
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "5"))
BIN = Path(sys.executable).parent

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
    """The same function in both forms, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hand = folder / "hand"
        self.docker = docker()
        self.bundle = os.environ.get("SSL_CERT_FILE")
        (folder / "train.py").write_text(TRAIN)
        self.hand.mkdir()
        self.env = {**os.environ, "DOCKER_BUILDKIT": "1", "METAFLOW_USER": "bench"}
        # Both sides run from compiled files, as everywhere but in some test environments.
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

    def build(self, reference: str, *flags: str) -> None:
        self.mfimage("build", reference, "-t", "bench-mfimage", *flags)


def first_200(image: str) -> float:
    """Return seconds from `docker run` to the first answer of /readyz."""
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


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as text:
        bench = Bench(Path(text))
        bench.train()
        reference = bench.bind(0)
        bench.write_by_hand(0, reference)
        bench.build(reference)
        bench.build_by_hand()
        print("| | mfimage | by hand | ratio | goal |\n|---|---|---|---|---|")
        cold: tuple[list[float], list[float]] = ([], [])
        for _ in range(max(2, ROUNDS // 2)):
            cold[0].append(timed(lambda: bench.build(reference, "--no-cache")))
            cold[1].append(timed(lambda: bench.build_by_hand("--no-cache")))
        row("cold build", *cold, 1.1)
        edit: tuple[list[float], list[float]] = ([], [])
        for number in range(1, ROUNDS + 1):
            reference = bench.bind(number)
            bench.edit_by_hand(number)
            edit[0].append(timed(lambda r=reference: bench.build(r)))
            edit[1].append(timed(bench.build_by_hand))
        row("code edit", *edit, 1.1)
        new: tuple[list[float], list[float]] = ([], [])
        for number in range(1, ROUNDS + 1):
            bench.train()
            reference = bench.bind(number)
            bench.write_by_hand(number, reference)
            new[0].append(timed(lambda r=reference: bench.build(r)))
            new[1].append(timed(bench.build_by_hand))
        row("new 50 MB artifact", *new, 1.1)
        sizes = [
            int(run(["docker", "inspect", "-f", "{{.Size}}", f"bench-{n}"]))
            for n in ("mfimage", "hand")
        ]
        row("image size", [sizes[0] / 1e6], [sizes[1] / 1e6], 1.03, "MB")
        start: tuple[list[float], list[float]] = ([], [])
        for _ in range(ROUNDS):
            start[0].append(first_200("bench-mfimage"))
            start[1].append(first_200("bench-hand"))
        row("docker run to first 200", *start, 1.1)


if __name__ == "__main__":
    main()
