"""The server against hand-written apps with the same function: FastAPI, and ASGI alone.

Every server is pinned to one core and the load comes from the other. The apps take turns within
each round, so that other work on the machine affects all of them; medians are shown. The
hand-written apps run without uvicorn's access log, the others with theirs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.load import Load, Plan, client, load
from benchmarks.servers import CLIENT_CORE, SERVE, SERVER_CORE, answers, wait_until
from benchmarks.servers import cpu as cpu_of
from benchmarks.servers import running as run_server

FEATURES = ["sepal length (cm)", "sepal width (cm)", "petal length (cm)", "petal width (cm)"]
BODY = json.dumps(dict(zip(FEATURES, [5.1, 3.5, 1.4, 0.2], strict=True)))
BY_HAND, RAW, PLAIN, BATCH = "FastAPI def", "raw ASGI", "mfimage", "mfimage batch=True"

FUNCTIONS = {
    PLAIN: '''
@json_function
def predict(data: dict, params: FunctionParameters) -> dict:
    """Run inference using the bound model."""
    features = [data[f] for f in params.feature_names]
    prediction = params.model.predict([features])[0]
    return {"prediction": int(prediction)}
''',
    BATCH: '''
@json_function(batch=True)
def predict(data: list[dict], params: FunctionParameters) -> list[dict]:
    """Run inference using the bound model."""
    rows = [[record[f] for f in params.feature_names] for record in data]
    return [{"prediction": int(p)} for p in params.model.predict(rows)]
''',
}

APPS = {
    BY_HAND: """
import os, pickle
import uvicorn
from fastapi import FastAPI

with open("model.pkl", "rb") as file:
    model, feature_names = pickle.load(file)
app = FastAPI()

@app.post("/predict")
def predict(payload: dict):
    features = [payload[f] for f in feature_names]
    prediction = model.predict([features])[0]
    return {"prediction": int(prediction)}

@app.get("/readyz")
def readyz():
    return "ready"

uvicorn.run(app, port=int(os.environ["PORT"]), access_log=False, log_level="warning")
""",
    # The function and nothing else: no thread, routes, validation, log, metrics or limits.
    RAW: """
import gc, os, pickle
import orjson, uvicorn

with open("model.pkl", "rb") as file:
    model, feature_names = pickle.load(file)
gc.collect()
gc.freeze()

def predict(data):
    features = [data[f] for f in feature_names]
    prediction = model.predict([features])[0]
    return {"prediction": int(prediction)}

async def app(scope, receive, send):
    body, more = b"", scope["path"] == "/predict"
    while more:
        message = await receive()
        body += message["body"]
        more = message["more_body"]
    result = orjson.dumps(predict(orjson.loads(body))) if body else b"ready"
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(result))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": result})

uvicorn.run(
    app, port=int(os.environ["PORT"]), access_log=False, log_level="warning", lifespan="off"
)
""",
}


@dataclass(kw_only=True)
class App:
    """One server, and its measurements."""

    name: str
    command: list[str]
    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None
    loads: dict[int, list[Load]] = field(default_factory=dict)
    costs: dict[int, list[float]] = field(default_factory=dict)

    def cpu(self) -> float:
        """Return the processor time that it has used, in seconds."""
        assert self.process
        return cpu_of(self.process.pid)


def make_apps(folder: Path) -> list[App]:
    """Train a model and write the apps that serve it."""
    import pickle

    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    from tests.runtime.packages import make_folder

    x, y = load_iris(return_X_y=True)
    model = LogisticRegression(max_iter=500).fit(x, y)
    apps = []
    for port, (name, source) in enumerate((APPS | FUNCTIONS).items(), 18100):
        path = folder / str(port)
        if name in APPS:
            path.mkdir()
            (path / "app.py").write_text(source)
            (path / "model.pkl").write_bytes(pickle.dumps((model, FEATURES)))
            command = [sys.executable, "app.py"]
        else:
            make_folder(path, source, artifacts={"model": model, "feature_names": FEATURES})
            command = [*SERVE]
        apps.append(App(name=name, command=command, folder=path, port=port))
    return apps


@contextlib.contextmanager
def running(apps: list[App]) -> Iterator[None]:
    """Start all apps on the servers' core, and stop them at the end."""
    with contextlib.ExitStack() as stack:
        for app in apps:
            server = run_server(
                app.command, port=app.port, folder=app.folder,
                environ={"MFIMAGE_FUNCTION": str(app.folder)},
            )  # fmt: skip
            app.process = stack.enter_context(server)
        for app in apps:
            wait_until(lambda app=app: answers(app.port, "/readyz"), app.name)  # type: ignore[misc]
        yield


def measure(apps: list[App], connections: int, seconds: float) -> None:
    """Load every app once."""
    for app in apps:
        before = app.cpu()
        plan = Plan(
            port=app.port, paths=("/predict",), body=BODY, connections=connections, seconds=seconds
        )
        seen = load(plan, core=CLIENT_CORE)
        if seen.errors:
            raise SystemExit(f"{app.name}: {seen.errors} errors")
        app.loads.setdefault(connections, []).append(seen)
        cost = (app.cpu() - before) / seen.requests * 1e6
        app.costs.setdefault(connections, []).append(cost)


def show(apps: list[App], connections: int) -> None:
    """Print one block of the table."""
    by_hand, raw = (
        statistics.median(seen.rate for seen in app.loads[connections]) for app in apps[:2]
    )
    print(f"\n{connections} connection{'s' * (connections > 1)}")
    columns = f"{'/ FastAPI':>11}{'/ raw':>8}{'p50 ms':>9}{'p99 ms':>9}{'cpu us/req':>12}"
    print(f"  {'':20}{'req/s':>10}{columns}")
    for app in apps:
        seen = app.loads[connections]
        rate, p50, p99 = (
            statistics.median(getattr(one, name) for one in seen) for name in ("rate", "p50", "p99")
        )
        cost = statistics.median(app.costs[connections])
        ratios = f"{rate / by_hand:11.2f}{rate / raw:8.2f}"
        print(f"  {app.name:20}{rate:10.0f}{ratios}{p50:9.2f}{p99:9.2f}{cost:12.0f}")


def in_turns(
    targets: Sequence[Any],
    measure: Callable[..., None],
    show: Callable[..., None],
    options: argparse.Namespace,
) -> None:
    """Measure all targets in each round, and show them for each number of connections."""
    print(f"load: {client()} on core {CLIENT_CORE}; servers on core {SERVER_CORE}")
    measure(targets, 8, 1.0)  # the first requests import and compile
    for target in targets:
        target.loads.clear()
        target.costs.clear()
    for connections in options.connections:
        for _ in range(options.rounds):
            measure(targets, connections, options.seconds)
        show(targets, connections)


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, nargs="*", default=[1, 8, 64])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        apps = make_apps(Path(folder))
        with running(apps):
            in_turns(apps, measure, show, options)


if __name__ == "__main__":
    main()
