"""The platforms' contracts against the server's own route, with the same function.

One server, pinned to one core; its routes take turns within each round, and the load comes from
the other core. With ``--reference PYTHON``, an interpreter that has mlserver, mlserver-sklearn and
mlflow, MLServer and ``mlflow models serve`` serve the same model beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.load import Load, Plan, load
from benchmarks.servers import CLIENT_CORE, SERVE, answers, cpu_of_all, wait_until
from benchmarks.servers import running as run_server
from benchmarks.serving import BATCH, BODY, FEATURES, FUNCTIONS, in_turns

_PORT, _BATCH_PORT, _MLSERVER_PORT, _MLFLOW_PORT = 18201, 18204, 18202, 18203
_VALUES = [5.1, 3.5, 1.4, 0.2]
_COLUMNS = json.dumps({
    "inputs": [
        {"name": name, "shape": [1], "datatype": "FP64", "data": [value]}
        for name, value in zip(FEATURES, _VALUES, strict=True)
    ]
})  # fmt: skip
_MATRIX = json.dumps({
    "inputs": [{"name": "predict", "shape": [1, 4], "datatype": "FP64", "data": _VALUES}]
})  # fmt: skip
_FRAME = json.dumps({"dataframe_split": {"columns": FEATURES, "data": [_VALUES]}})
_INSTANCES = json.dumps({"instances": [json.loads(BODY)]})

_TRAIN = """
import sys, joblib, mlflow.sklearn
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

x, y = load_iris(return_X_y=True, as_frame=True)
model = LogisticRegression(max_iter=500).fit(x, y)
joblib.dump(LogisticRegression(max_iter=500).fit(x.values, y), "model.joblib")
mlflow.sklearn.save_model(model, "mlflow")
"""


@dataclass(kw_only=True)
class Target:
    """A route of a server."""

    name: str
    port: int
    path: str
    body: str
    process: int = 0
    loads: dict[int, list[Load]] = field(default_factory=dict)
    costs: dict[int, list[float]] = field(default_factory=dict)

    def cpu(self) -> float:
        """Return the processor time that its server has used, in seconds."""
        return cpu_of_all(self.process)


def targets(*, references: bool) -> list[Target]:
    """Return what is measured; the first is the server's own route."""
    found = []
    for name, port in (("", _PORT), (" batch=True", _BATCH_PORT)):
        found += [
            Target(name=f"own{name}", port=port, path="/predict", body=BODY),
            Target(name=f"OIP{name}", port=port, path="/v2/models/predict/infer", body=_COLUMNS),
            Target(name=f"MLflow{name}", port=port, path="/invocations", body=_FRAME),
            Target(name=f"SageMaker{name}", port=port, path="/invocations", body=BODY),
            Target(
                name=f"KServe v1{name}", port=port, path="/v1/models/predict:predict",
                body=_INSTANCES,
            ),
        ]  # fmt: skip
    if references:
        path = "/v2/models/iris/infer"
        found[5:5] = [  # beside the plain function, which they are compared with
            Target(name="MLServer", port=_MLSERVER_PORT, path=path, body=_MATRIX),
            Target(name="mlflow models serve", port=_MLFLOW_PORT, path="/invocations", body=_FRAME),
        ]
    return found


def commands(
    folder: Path, python: str | None
) -> Iterator[tuple[int, list[str], Path, dict[str, str]]]:
    """Train the model; yield port, command, folder and variables of each server."""
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    from tests.runtime.packages import make_folder

    x, y = load_iris(return_X_y=True)
    artifacts = {"model": LogisticRegression(max_iter=500).fit(x, y), "feature_names": FEATURES}
    for (name, source), port in zip(FUNCTIONS.items(), (_PORT, _BATCH_PORT), strict=True):
        own = make_folder(folder / ("batch" if name == BATCH else "plain"), source,
                          artifacts=artifacts)  # fmt: skip
        yield port, [*SERVE], own, {"MFIMAGE_FUNCTION": str(own)}
    if python is None:
        return
    subprocess.run([python, "-c", _TRAIN], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    settings = {"http_port": _MLSERVER_PORT, "grpc_port": 18205, "metrics_port": 18206,
                "parallel_workers": 0, "host": "127.0.0.1"}  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(settings))
    model = {"name": "iris", "implementation": "mlserver_sklearn.SKLearnModel",
             "parameters": {"uri": "model.joblib"}}  # fmt: skip
    (folder / "model-settings.json").write_text(json.dumps(model))
    programs = Path(python).parent
    yield _MLSERVER_PORT, [str(programs / "mlserver"), "start", "."], folder, {}
    serve = [str(programs / "mlflow"), "models", "serve", "-m", "mlflow", "-p", str(_MLFLOW_PORT)]
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    yield _MLFLOW_PORT, [*serve, "--env-manager", "local"], folder, {"PATH": path}


@contextlib.contextmanager
def running(folder: Path, python: str | None) -> Iterator[dict[int, int]]:
    """Run the servers on their core; give their process ids by their ports."""
    with contextlib.ExitStack() as stack:
        pids = {}
        for port, command, where, environ in commands(folder, python):
            log = stack.enter_context((where / f"log-{port}").open("wb"))
            server = run_server(command, port=port, folder=where, environ=environ, log=log)
            pids[port] = stack.enter_context(server).pid
        yield pids


def wait(target: Target) -> None:
    """Wait until a target answers its request."""
    wait_until(
        lambda: answers(target.port, target.path, target.body.encode()), target.name, seconds=120
    )


def measure(found: Sequence[Target], connections: int, seconds: float) -> None:
    """Load every target once."""
    for target in found:
        plan = Plan(
            port=target.port, paths=(target.path,), body=target.body, connections=connections,
            seconds=seconds,
        )  # fmt: skip
        before = target.cpu()
        seen = load(plan, core=CLIENT_CORE)
        if seen.errors:
            raise SystemExit(f"{target.name}: {seen.errors} errors")
        cost = (target.cpu() - before) / seen.requests * 1e6
        target.costs.setdefault(connections, []).append(cost)
        target.loads.setdefault(connections, []).append(seen)


def show(found: Sequence[Target], connections: int) -> None:
    """Print one block of the table; ratios are to the server's own route."""
    print(f"\n{connections} connection{'s' * (connections > 1)}")
    print(f"  {'':24}{'req/s':>10}{'ratio':>8}{'p50 ms':>9}{'p99 ms':>9}{'cpu us/req':>12}")
    base = 1.0
    for target in found:
        rate, p50, p99 = (
            statistics.median(getattr(one, name) for one in target.loads[connections])
            for name in ("rate", "p50", "p99")
        )
        base = rate if target.name.startswith("own") else base
        cost = statistics.median(target.costs[connections])
        print(f"  {target.name:24}{rate:10.0f}{rate / base:8.2f}{p50:9.2f}{p99:9.2f}{cost:12.0f}")


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, nargs="*", default=[1, 8, 64])
    parser.add_argument("--reference", metavar="PYTHON")
    options = parser.parse_args()
    found = targets(references=options.reference is not None)
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), options.reference) as pids:
        for target in found:
            target.process = pids[target.port]
            wait(target)
        in_turns(found, measure, show, options)


if __name__ == "__main__":
    main()
