"""The contracts of platforms by a real server: their own clients, their variables, bad requests."""

from __future__ import annotations

import json
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mfimage.image.checks.contract import platform_checks
from mfimage.image.checks.platforms import PLATFORMS
from mfimage.image.checks.report import Failed
from mfimage.package.spec import Example, parse_spec
from mfimage.runtime.records.run import Tolerance
from mfimage.runtime.serving.served import Served
from mfimage.runtime.settings import Settings
from tests.runtime.packages import Source, make_folder, make_functions
from tests.runtime.servers import Server, running, until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("platforms")]

SOURCE = """
from typing import TypedDict

class Flower(TypedDict):
    length: float
    names: list[str]
    petals: int | None

class Counted(TypedDict):
    length: float
    count: int
    text: str

@json_function(batch=True)
def predict(flowers: list[Flower]) -> list[Counted]:
    return [
        {"length": f["length"], "count": len(f["names"]), "text": "|".join(f["names"])}
        for f in flowers
    ]
"""
EXAMPLES = [
    ({"length": 5.1, "names": ["é"], "petals": 3}, {"length": 5.1, "count": 1, "text": "é"}),
    ({"length": 5, "names": [], "petals": None}, {"length": 5.0, "count": 0, "text": ""}),
]
CLIENTS = ("tritonclient[http]>=2.50", "kserve>=0.15", "mlflow-skinny>=2.20", "pandas", "scipy")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("platforms") / "fn", SOURCE, examples=EXAMPLES)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with running(folder) as started:
        yield started.until_ready()


def served_by(folder: Path) -> Served:
    path = folder / "function.json"
    return Served.alone(parse_spec(path.read_bytes(), where=str(path)))


# As platforms start it


def at_vertex(folder: Path) -> tuple[Server, dict[str, str]]:
    environ = {**PLATFORMS["vertex"].env, "AIP_HTTP_PORT": "0", "PORT": "1"}
    return Server(folder, **environ), environ


@pytest.mark.parametrize("name", PLATFORMS)
def test_a_server_has_the_contract(name: str, folder: Path, server: Server) -> None:
    served, own = served_by(folder), None
    try:
        if name == "vertex":
            own, environ = at_vertex(folder)
            server = own
            served = served.placed(Settings.from_environ(environ))
            until(lambda: server.get("/health").status_code == 200)
            (line,) = (each for each in own.log if "AIP_STORAGE_URI" in each["message"])
            assert line["level"] == "info"
        checks = platform_checks(served, name)
        assert sum(len(check.expected.examples) for check in checks) >= len(EXAMPLES)
        for check in checks:
            assert check.run(("127.0.0.1", server.port), served)
    finally:
        if own is not None:
            own.process.kill()
            own.wait()


@pytest.mark.parametrize("name", PLATFORMS)
def test_another_result_is_found(name: str, folder: Path, server: Server) -> None:
    spec = served_by(folder).specs["predict"]
    other = Example(input=EXAMPLES[0][0], output={**EXAMPLES[0][1], "count": 7})
    settings = Settings.from_environ({"AIP_PREDICT_ROUTE": "/v1/models/predict:predict"})
    served = Served.alone(_replace(spec, examples=(other,))).placed(settings)
    checks = [each for each in platform_checks(served, name) if each.expected.examples]
    assert checks
    for check in checks:
        with pytest.raises(Failed, match=r'count"\]: expected 7'):
            check.run(("127.0.0.1", server.port), served, Tolerance())


def _replace(spec: Any, **given: Any) -> Any:
    import dataclasses

    return dataclasses.replace(spec, **given)


def test_what_knative_and_cloud_run_do(folder: Path) -> None:
    """``PORT`` is theirs; SIGTERM comes while a request is in flight, which is answered."""
    with running(folder, PORT="0", K_SERVICE="flowers", MFIMAGE_DRAIN="0") as server:
        server.until_ready()
        body = json.dumps(EXAMPLES[0][0])
        with httpx.Client(base_url=server.url) as client:
            assert client.post("/predict", content=body).json()["count"] == 1
            server.signal()
            assert server.wait(10) == 0


# By the platforms' own clients


@pytest.fixture(scope="module")
def clients() -> Path:
    """Return a Python that has the clients; it is kept for the next run."""
    if (uv := shutil.which("uv")) is None:
        pytest.skip("uv is not installed")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = Path(tempfile.gettempdir()) / f"mfimage-contract-clients-{version}"
    python, complete = folder / "bin" / "python", folder / "complete"
    if not complete.exists():
        shutil.rmtree(folder, ignore_errors=True)
        for command in (
            [uv, "venv", "--quiet", "--python", sys.executable, str(folder)],
            [uv, "pip", "install", "--quiet", "--python", str(python), *CLIENTS],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"the clients cannot be installed: {done.stderr[-300:]}")
        complete.touch()
    return python


@pytest.fixture(scope="module")
def seen(clients: Path, server: Server) -> dict[str, Any]:
    script = Path(__file__).with_name("contract_clients.py")
    done = subprocess.run(
        [clients, str(script), f"127.0.0.1:{server.port}"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


OUTPUTS = {"length": [1.5, 2.0], "count": [2, 2], "text": ["a|b", "c|é"]}
MISSING = "rows[0].petals: missing; rows[1].petals: missing"
UNKNOWN = "no such path; there are predict"


def test_triton_s_client(seen: dict[str, Any]) -> None:
    found = seen["triton"]
    assert found["ready"] == [True] * 3
    assert found["extensions"] == ["binary_tensor_data"]
    assert found["inputs"] == ["length", "names", "petals"]
    for form in ("binary", "json"):
        assert found[f"{form} all"] == OUTPUTS
        assert found[f"{form} one"] == {"count": [2, 2]}
    assert found["errors"] == [
        f"[404] {UNKNOWN}",
        f"[400] {MISSING}",
        f"[404] {UNKNOWN}",
        "[415] expected a body that is not compressed, got gzip",
    ]


def test_kserve_s_client(seen: dict[str, Any]) -> None:
    found = seen["kserve"]
    assert found["ready"] == [True] * 5
    assert found["binary"] == found["json"] == OUTPUTS
    assert found["v1"] == {"predictions": [{"length": 1.0, "count": 0, "text": ""}]}
    for error, expected in zip(
        found["errors"],
        (MISSING, UNKNOWN, "instances[0].length: expected float, got 'x'"),
        strict=True,
    ):
        assert error.startswith(f"{expected}, '4")


def test_mlflow_s_client(seen: dict[str, Any]) -> None:
    found = seen["mlflow"]
    assert found["frame"] == [
        {"length": 1.5, "count": 1, "text": "a"},
        {"length": 2.0, "count": 0, "text": ""},
    ]
    assert found["list"] == [{"length": 1.0, "count": 0, "text": ""}]
    assert found["params"] == found["frame"][1]
    assert '"error_code":"BAD_REQUEST"' in found["error"]
    assert "dataframe_split[0].names: missing" in found["error"]


# Bad requests: no 5xx that is not the function's own

_ANY: dict[str, Any] = {"description": "any", "content": {"application/json": {}}}
_TENSOR = {
    "type": "object",
    "required": ["name", "shape", "datatype", "data"],
    "properties": {
        "name": {"enum": ["length", "names", "petals", "other"]},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "datatype": {"enum": ["FP64", "BYTES", "INT32", "BOOL", "FP16", "UINT64", "other"]},
        "data": {"type": "array"},
        "parameters": {"type": "object"},
    },
}
_RECORDS = {"type": "array", "items": {"type": "object"}}
_BODIES = {
    "/v2/models/predict/infer": {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "inputs": {"type": "array", "items": _TENSOR},
            "outputs": {"type": "array", "items": {"type": "object"}},
            "parameters": {"type": "object"},
        },
    },
    "/v1/models/predict:predict": {"type": "object", "properties": {"instances": _RECORDS}},
    "/invocations": {
        "anyOf": [
            {"type": "object", "properties": {"dataframe_records": _RECORDS}},
            {"type": "object", "properties": {"inputs": {}}, "required": ["inputs"]},
            {
                "type": "object",
                "required": ["dataframe_split"],
                "properties": {
                    "dataframe_split": {
                        "type": "object",
                        "properties": {
                            "columns": {"type": "array", "items": {"type": "string"}},
                            "data": {"type": "array", "items": {"type": "array"}},
                        },
                    }
                },
            },
            {},
        ]
    },
}


def test_schemathesis(server: Server, tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("schemathesis")
    if not program.exists():
        pytest.skip("schemathesis is not installed")
    paths: dict[str, Any] = {
        path: {
            "post": {
                "requestBody": {
                    "content": {"application/json": {"schema": schema}}, "required": True
                },
                "responses": {"default": _ANY},
            }
        }
        for path, schema in _BODIES.items()
    }  # fmt: skip
    document = {"openapi": "3.1.0", "info": {"title": "platforms", "version": "1"}, "paths": paths}
    (tmp_path / "openapi.json").write_text(json.dumps(document))
    done = subprocess.run(
        [
            program, "run", tmp_path / "openapi.json", "--url", server.url, "--max-examples", "40",
            "--phases", "fuzzing", "--seed", "1", "--no-color", "--checks", "not_a_server_error",
        ],
        capture_output=True, text=True, check=False, timeout=200, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    # With a warning that most are refused, as they should be.
    assert re.search(r"\d+ generated, \d+ passed\n", done.stdout), done.stdout


_STRANGE: tuple[Any, ...] = (
    None, True, -1, 0, 10**9, 2**63, 2**64, 10**400, 1e308, 0.5, "", "length", "\ud800", "x" * 300,
    [], {}, [[]], [{}], [[1], [2, 3]], {"a": {}}, float("nan"), float("inf"),
)  # fmt: skip


def _mutated(value: Any, chance: random.Random) -> Any:
    """Return a value in which one part is another, is missing or is there twice."""
    if not isinstance(value, dict | list) or not value or chance.random() < 0.15:
        return chance.choice(_STRANGE)
    made = value.copy()
    key = chance.choice(list(made) if isinstance(made, dict) else range(len(made)))
    action = chance.random()
    if action < 0.1:
        del made[key]
    elif action < 0.2 and isinstance(made, list):
        made.append(made[key])
    else:
        made[key] = _mutated(made[key], chance)
    return made


def test_mutated_requests(server: Server) -> None:
    record = EXAMPLES[0][0]
    tensors = [
        {"name": "length", "shape": [2], "datatype": "FP64", "data": [1.5, 2]},
        {"name": "names", "shape": [2, 1], "datatype": "BYTES", "data": [["a"], ["b"]]},
        {"name": "petals", "shape": [2, 1], "datatype": "INT32", "data": [1, 2]},
    ]
    bodies: list[tuple[str, Any]] = [
        (
            "/v2/models/predict/infer",
            {"inputs": tensors, "outputs": [{"name": "count"}]},
        ),
        ("/v1/models/predict:predict", {"instances": [record, record]}),
        ("/invocations", record),
        ("/invocations", [record, record]),
        ("/invocations", {"inputs": {"length": [1], "names": [["a"]], "petals": [1]}}),
        (
            "/invocations",
            {"dataframe_split": {"columns": list(record), "data": [list(record.values())]}},
        ),
    ]
    chance = random.Random(1)
    statuses = set()
    with httpx.Client(base_url=server.url, timeout=30) as client:
        for path, body in bodies:
            assert client.post(path, json=body).status_code == 200
            for _ in range(300):
                text = json.dumps(_mutated(body, chance))
                reply = client.post(path, content=text)
                statuses.add(reply.status_code)
                assert reply.status_code in (200, 400), (path, text, reply.text)
        statuses |= {_binary(client, chance) for _ in range(300)}
    assert statuses == {200, 400}
    assert server.messages("error") == []


def _binary(client: httpx.Client, chance: random.Random) -> int:
    """Send tensors in binary whose sizes, shapes or data may lie; return the status."""
    data = struct.pack("<d", 1.5) + struct.pack("<I", 1) + b"a" + struct.pack("<q", 3)
    sizes, shapes = [8, 5, 8], [[1], [1, 1], [1]]
    if chance.random() < 0.5:
        sizes[chance.randrange(3)] = chance.choice([0, -1, 4, 10**12, 2**64])
    if chance.random() < 0.5:
        shapes[chance.randrange(3)] = chance.choice([[10**12], [2**40, 2**40], [0], [1, 0], []])
    if chance.random() < 0.5:
        at = chance.randrange(len(data))
        data = data[:at] + bytes([chance.randrange(256)]) + data[at + chance.randrange(3) :]
    inputs = [
        {"name": name, "shape": shape, "datatype": kind, "parameters": {"binary_data_size": size}}
        for name, shape, kind, size in zip(
            ("length", "names", "petals"), shapes, ("FP64", "BYTES", "INT64"), sizes, strict=True
        )
    ]
    head = json.dumps({"inputs": inputs}).encode()
    length = chance.choice([len(head)] * 8 + [len(head) - 1, len(head) + 1, 0, 10**9])
    headers = {"inference-header-content-length": str(length)}
    reply = client.post("/v2/models/predict/infer", content=head + data, headers=headers)
    assert reply.status_code in (200, 400), reply.text
    return reply.status_code


# Several functions


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two functions; their code has a module of one name, so one is in a process of its own."""
    source = (
        "@json_function\ndef predict(data: dict) -> dict:\n    return {{'a': data['a'] * {}}}\n"
    )
    functions = {
        name: Source(source=source.format(factor)) for name, factor in (("emea", 2), ("apac", 3))
    }
    folder = make_functions(tmp_path_factory.mktemp("several") / "fn", functions)
    with running(folder) as started:
        yield started.until_ready()


def test_several_functions_by_name(several: Server) -> None:
    for name, factor in (("emea", 2), ("apac", 3)):
        tensors = [{"name": "a", "shape": [2], "datatype": "INT64", "data": [1, 5]}]
        reply = several.post(f"/v2/models/{name}/infer", {"inputs": tensors})
        assert reply.json()["outputs"][0]["data"] == [factor, 5 * factor]
        reply = several.post(f"/v1/models/{name}:predict", {"instances": [{"a": 1}]})
        assert reply.json() == {"predictions": [{"a": factor}]}
        headers = {"x-amzn-sagemaker-custom-attributes": f"function={name}"}
        reply = several.post("/invocations", {"a": 1}, headers=headers)
        assert reply.json() == {"a": factor}
    assert set(several.get("/v2/models").json()["models"]) == {"apac", "emea"}
    unknown = several.post("/v2/models/predict/infer", {})
    assert unknown.json()["error"].endswith("apac, emea")
    reply = several.post("/invocations", {"a": 1})
    assert (reply.status_code, reply.json()["error_code"]) == (404, "RESOURCE_DOES_NOT_EXIST")
    assert reply.json()["detail"].endswith("there are apac, emea")
