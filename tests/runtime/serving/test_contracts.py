"""The contracts of other platforms, in this process."""

from __future__ import annotations

import asyncio
import functools
import json
import math
import struct
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypedDict

import httpx
import pytest
from typing_extensions import NotRequired

from tests.runtime.apps import Served, served
from tests.runtime.packages import live


class Person(TypedDict):
    name: str
    age: int
    size: NotRequired[float | None]


class Greeting(TypedDict):
    text: str
    age: int


def greet(data: Person) -> Greeting:
    if data["age"] < 0:
        raise RuntimeError("secret reason")
    return {"text": f"hello {data['name']}", "age": data["age"] + 1}


SIZES: list[int] = []


def greet_all(data: list[Person]) -> list[Greeting]:
    SIZES.append(len(data))
    return [greet(person) for person in data]


def total(data: list[float]) -> float:
    return math.fsum(data)


def anything(data: dict[str, Any]) -> dict[str, Any]:
    return data


ADA, BOB = {"name": "Ada", "age": 36}, {"name": "Bob", "age": 40}
HELLO = [{"text": "hello Ada", "age": 37}, {"text": "hello Bob", "age": 41}]
TENSORS = [
    {"name": "name", "shape": [2], "datatype": "BYTES", "data": ["Ada", "Bob"]},
    {"name": "age", "shape": [2, 1], "datatype": "INT64", "data": [36, 40]},
]
INFER = "/v2/models/greet/infer"
JSON = {"content-type": "application/json"}


async def post(it: Served, path: str, value: Any, **headers: str) -> httpx.Response:
    return await it.post(path, json.dumps(value), **{**JSON, **headers})


def synchronous(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **given: Any) -> None:
        asyncio.run(test(*args, **given))

    return run


@pytest.fixture
def no_sizes() -> Iterator[None]:
    SIZES.clear()
    yield
    SIZES.clear()


# Open Inference Protocol


@synchronous
async def test_oip_describes_the_server_and_its_models() -> None:
    async with served(live(greet)) as it:
        for path, expected in {
            "/v2/health/live": {"live": True},
            "/v2/health/ready": {"ready": True},
            "/v2/models": {"models": ["greet"]},
            "/v2/models/greet/ready": {"name": "greet", "ready": True},
        }.items():
            assert (await it.client.get(path)).json() == expected
        assert (await it.client.get("/v2")).json()["extensions"] == ["binary_tensor_data"]
        described = (await it.client.get("/v2/models/greet")).json()
        assert [each["name"] for each in described["inputs"]] == ["name", "age", "size"]
        assert described["outputs"][1] == {"name": "age", "datatype": "INT64", "shape": [-1]}


@synchronous
async def test_oip_infers() -> None:
    async with served(live(greet)) as it:
        reply = await post(it, INFER, {"id": "7", "inputs": TENSORS})
        assert reply.json() == {
            "model_name": "greet",
            "id": "7",
            "outputs": [
                {
                    "name": "text", "shape": [2], "datatype": "BYTES",
                    "data": ["hello Ada", "hello Bob"],
                },
                {"name": "age", "shape": [2], "datatype": "INT64", "data": [37, 41]},
            ],
        }  # fmt: skip
        chosen = await post(it, INFER, {"inputs": TENSORS, "outputs": [{"name": "age"}]})
        assert [each["name"] for each in chosen.json()["outputs"]] == ["age"]
        assert chosen.json()["id"] == chosen.headers["x-request-id"]


@synchronous
async def test_oip_in_binary() -> None:
    async with served(live(greet)) as it:
        ages = struct.pack("<2q", 36, 40)
        inputs = [
            TENSORS[0],
            {
                "name": "age", "shape": [2], "datatype": "INT64",
                "parameters": {"binary_data_size": len(ages)},
            },
        ]  # fmt: skip
        head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
        length = {"inference-header-content-length": str(len(head))}
        reply = await it.post(INFER, head + ages, **length)
        size = int(reply.headers["inference-header-content-length"])
        assert reply.headers["content-type"] == "application/octet-stream"
        assert json.loads(reply.content[:size])["outputs"][1]["parameters"] == {
            "binary_data_size": 16
        }
        assert reply.content.endswith(struct.pack("<2q", 37, 41))


@pytest.mark.usefixtures("no_sizes")
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v2/models/greet_all/infer", {"inputs": TENSORS}),
        ("/v1/models/greet_all:predict", {"instances": [ADA, BOB]}),
        ("/invocations", {"dataframe_records": [ADA, BOB]}),
    ],
)
@synchronous
async def test_a_batch_function_gets_all_rows_in_one_call(path: str, body: Any) -> None:
    async with served(live(greet_all, batch=True), batch_wait=0.05) as it:
        assert (await post(it, path, body)).status_code == 200
        assert SIZES == [2]


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        ({"inputs": [TENSORS[0]]}, 400, "rows[0].age: missing; rows[1].age: missing"),
        ({"inputs": []}, 400, "inputs: expected a list of tensors"),
        ({"inputs": TENSORS, "id": 7}, 400, "id: expected text"),
        ({"inputs": TENSORS, "parameters": 7}, 400, "parameters: expected an object"),
        ({"inputs": TENSORS, "outputs": [{"name": "x"}]}, 400, "outputs: expected text, age;"),
        ({"inputs": TENSORS, "outputs": 7}, 400, "outputs: expected a list"),
        ([], 400, "body: expected an object"),
        (
            {"inputs": [{**TENSORS[0], "data": ["\ud800", "b"]}, TENSORS[1]]}, 400,
            "body: not JSON",
        ),
        (
            {"inputs": [TENSORS[0], {**TENSORS[1], "data": [-1, 1]}]}, 500,
            "the function failed; the log has the reason under this request's id",
        ),
    ],
)  # fmt: skip
@synchronous
async def test_oip_errors(body: Any, status: int, error: str) -> None:
    async with served(live(greet)) as it:
        reply = await post(it, INFER, body)
        assert reply.status_code == status
        assert reply.headers["content-type"] == "application/json"
        assert reply.json().keys() == {"error"}
        assert reply.json()["error"].startswith(error)


@pytest.mark.parametrize(
    ("headers", "status", "error"),
    [
        ({"content-type": "text/csv"}, 415, "expected application/json, or inference-header"),
        ({"content-encoding": "gzip"}, 415, "expected a body that is not compressed"),
        (
            {"inference-header-content-length": "x"},
            400,
            "inference-header-content-length: expected",
        ),
        ({"inference-header-content-length": "99"}, 400, "inference-header-content-length: the"),
    ],
)
@synchronous
async def test_oip_headers(headers: dict[str, str], status: int, error: str) -> None:
    async with served(live(greet)) as it:
        reply = await it.post(INFER, b"{}", **headers)
        assert (reply.status_code, reply.json()["error"][: len(error)]) == (status, error)


@pytest.mark.parametrize(
    "path", ["/v2/models/other/infer", "/v2/models/greet/versions/1/infer", "/v1/models/a:predict"]
)
@synchronous
async def test_an_unknown_model_is_an_error_of_the_protocol_that_lists_those_there_are(
    path: str,
) -> None:
    async with served(live(greet)) as it:
        reply = await post(it, path, {})
        assert (reply.status_code, reply.json()) == (
            404,
            {"error": "no such path; there are greet"},
        )


@synchronous
async def test_not_ready() -> None:
    async with served(live(greet), load=False) as it:
        for path in ("/v2/health/ready", "/v2/models/greet/ready", "/v1/models/greet"):
            reply = await it.client.get(path)
            assert (reply.status_code, reply.json()) == (
                503,
                {"error": "the function is still loading"},
            )
        assert (await it.client.get("/v2/models/greet")).status_code == 200
        assert (await it.client.get("/ping")).status_code == 503
        reply = await post(it, "/invocations", ADA)
        assert (reply.status_code, reply.json()["error_code"]) == (503, "TEMPORARILY_UNAVAILABLE")


# KServe v1, and Vertex AI


@synchronous
async def test_kserve_v1() -> None:
    async with served(live(greet)) as it:
        assert (await it.client.get("/v1/models")).json() == {"models": ["greet"]}
        ready = await it.client.get("/v1/models/greet")
        assert ready.json() == {"name": "greet", "ready": True}
        reply = await post(it, "/v1/models/greet:predict", {"instances": [ADA, BOB]})
        assert reply.json() == {"predictions": HELLO}
        none = await post(it, "/v1/models/greet:predict", {"instances": []})
        assert none.json() == {"predictions": []}
        assert (await it.client.get("/")).json()["status"] == "alive"


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({}, "instances: expected a list of records"),
        ({"instances": [ADA, {"name": 1}]}, "instances[1].name: expected str, got 1"),
        ({"instances": [[1, 2]]}, "instances[0]: expected dict"),
    ],
)
@synchronous
async def test_kserve_v1_errors(body: Any, error: str) -> None:
    async with served(live(greet)) as it:
        reply = await post(it, "/v1/models/greet:predict", body)
        assert reply.status_code == 400
        assert reply.json()["error"].startswith(error)


@synchronous
async def test_vertex_ai_s_paths_outrank_the_server_s_own() -> None:
    settings = {"health_route": "/healthz", "predict_route": "/greet"}
    async with served(live(greet), load=False, **settings) as it:
        assert (await it.client.get("/healthz")).status_code == 503
    async with served(live(greet), **settings) as it:
        assert (await it.client.get("/healthz")).status_code == 200
        body = {"instances": [ADA], "parameters": {"confidence": 0.5}}
        assert (await post(it, "/greet", body)).json() == {"predictions": HELLO[:1]}
        refused = await post(it, "/greet", ADA)
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.json()["detail"] == "instances: expected a list of records"


# SageMaker and MLflow


@pytest.mark.parametrize(
    ("kind", "body", "accept", "answer"),
    [
        ("application/json", json.dumps(ADA), "*/*", HELLO[0]),
        ("application/json", json.dumps([ADA, BOB]), "", HELLO),
        ("", json.dumps(ADA), "application/json", HELLO[0]),
        ("text/csv", "Ada,36\nBob,40\n", "application/json", {"predictions": HELLO}),
        ("text/csv; header=present", "age,name\n36,Ada", "", {"predictions": HELLO[:1]}),
        ("application/json", json.dumps({"dataframe_records": [ADA]}), "", HELLO[:1]),
        (
            "application/json; charset=utf-8",
            json.dumps({"dataframe_split": {"columns": ["age", "name"], "data": [[36, "Ada"]]}}),
            "", HELLO[:1],
        ),
        ("application/json", json.dumps({"inputs": {"age": [36], "name": ["Ada"]}}), "", HELLO[:1]),
        ("application/json", json.dumps({"inputs": [ADA], "params": {"a": 1}}), "", HELLO[:1]),
        ("application/json", json.dumps({"instances": [ADA]}), "", HELLO[:1]),
        ("application/json", '{"instances":[{"name":"Ada","age":36,"size":NaN}]}', "", HELLO[:1]),
    ],
)  # fmt: skip
@synchronous
async def test_invocations(kind: str, body: str, accept: str, answer: Any) -> None:
    required = live(greet) if "csv" not in kind or "header" in kind else live(shorter)
    headers = {"content-type": kind, "accept": accept}
    async with served(required) as it:
        reply = await it.post("/invocations", body, **{k: v for k, v in headers.items() if v})
        assert reply.status_code == 200, reply.text
        frames = ("dataframe", "inputs", "instances")
        wrapped = any(f'"{each}' in body for each in frames)
        assert reply.json() == ({"predictions": answer} if wrapped else answer)


class Named(TypedDict):
    name: str
    age: int


def shorter(data: Named) -> Greeting:
    return {"text": f"hello {data['name']}", "age": data["age"] + 1}


@synchronous
async def test_json_lines_and_csv_as_responses() -> None:
    lines = json.dumps(ADA) + "\n\n" + json.dumps(BOB)
    async with served(live(greet)) as it:
        kind = {"content-type": "application/jsonlines"}
        reply = await it.post("/invocations", lines, **kind)
        assert reply.headers["content-type"] == "application/jsonlines"
        assert [json.loads(line) for line in reply.text.splitlines()] == HELLO
        reply = await it.post("/invocations", lines, **kind, accept="text/csv")
        assert (reply.headers["content-type"], reply.text) == (
            "text/csv",
            "hello Ada,37\nhello Bob,41\n",
        )
        reply = await it.post("/invocations", lines, **kind, accept="application/json")
        assert reply.json() == HELLO
        reply = await it.post("/invocations", lines, **kind, accept="image/png")
        assert reply.status_code == 406


@synchronous
async def test_a_list_is_a_record_of_a_function_of_lists() -> None:
    async with served(live(total)) as it:
        assert (await post(it, "/invocations", [1, 2])).json() == 3
        csv = await it.post("/invocations", "1,2\n3,4\n", **{"content-type": "text/csv"})
        assert csv.json() == {"predictions": [3, 7]}
        reply = await it.post(
            "/invocations", "1,2\n3,4\n", **{"content-type": "text/csv", "accept": "text/csv"}
        )
        assert reply.text == "3.0\n7.0\n"


class Signal(TypedDict):
    inputs: list[int]


@synchronous
async def test_a_record_with_a_member_of_mlflow_s_is_a_record() -> None:
    async with served(live(inputs)) as it:
        assert (await post(it, "/invocations", {"inputs": [1, 2]})).json() == 3
    async with served(live(anything)) as it:
        assert (await post(it, "/invocations", {"inputs": [{"a": 1}]})).json() == {
            "predictions": [{"a": 1}]
        }
        other = {"inputs": [1], "more": 2}
        assert (await post(it, "/invocations", other)).json() == other


def inputs(data: Signal) -> int:
    return sum(data["inputs"])


@pytest.mark.parametrize(
    ("kind", "body", "status", "detail"),
    [
        ("application/json", "{", 400, "body: not JSON"),
        ("application/json", '{"name":"a","age":NaN}', 400, "records[0]: expected int"),
        ("application/json", '[{"name":1}]', 400, "records[0].name: expected str, got 1"),
        ("application/json", '{"inputs":[],"instances":[]}', 400, "body: expected one of"),
        ("application/json", '{"dataframe_split":{}}', 400, "dataframe_split: expected"),
        ("application/jsonlines", '{"name":"a","age":1}\n{', 400, "lines[1]: not JSON"),
        ("text/csv", "name,age\nAda,x", 400, "rows[0].age: expected int, got 'x'"),
        ("text/csv", "\xff", 400, "line 1: expected a header"),
        ("application/x-npy", "", 415, "expected application/json or application/jsonlines or"),
        ("application/json", '{"name":"a","age":-1}', 500, "the function failed"),
    ],
)
@synchronous
async def test_invocations_refused(kind: str, body: str, status: int, detail: str) -> None:
    async with served(live(greet)) as it:
        reply = await it.post("/invocations", body, **{"content-type": kind})
        document = reply.json()
        assert (reply.status_code, document["status"]) == (status, status)
        assert document["detail"].startswith(detail)
        assert document["message"] == document["detail"]
        expected = "INTERNAL_ERROR" if status == 500 else "BAD_REQUEST"
        assert document["error_code"] == expected


@synchronous
async def test_csv_of_records_that_are_not_flat() -> None:
    async with served(live(anything)) as it:
        reply = await it.post("/invocations", "a\n1", **{"content-type": "text/csv"})
        assert reply.status_code == 415
        assert "records of anything are not rows" in reply.json()["detail"]
        reply = await post(it, "/invocations", {"a": [1]}, accept="text/csv")
        assert reply.status_code == 406


@pytest.mark.parametrize(
    "headers",
    [
        {"x-amzn-sagemaker-custom-attributes": "trace=1,function=greet"},
        {},
    ],
)
@synchronous
async def test_sagemaker_s_custom_attributes_name_a_function(headers: dict[str, str]) -> None:
    async with served(live(greet)) as it:
        assert (await post(it, "/invocations", ADA, **headers)).json() == HELLO[0]
        it.services.default = None
        reply = await post(it, "/invocations", ADA, **headers)
        assert (reply.status_code == 200) is bool(headers)
        if not headers:
            assert (
                reply.json()["detail"] == "MFIMAGE_DEFAULT_FUNCTION is not set, and there are greet"
            )
            assert reply.json()["error_code"] == "RESOURCE_DOES_NOT_EXIST"
        unknown = {"x-amzn-sagemaker-custom-attributes": "function=other"}
        reply = await post(it, "/invocations", ADA, **unknown)
        assert reply.json()["detail"] == "there is no function 'other', but greet"


@synchronous
async def test_a_large_request_is_converted_in_a_thread() -> None:
    people = [{"name": f"p{index}", "age": index} for index in range(3000)]
    async with served(live(greet_all, batch=True), max_waiting=10_000) as it:
        reply = await post(it, "/invocations", {"instances": people})
        assert len(reply.json()["predictions"]) == 3000
        tensors = [
            {"name": "name", "shape": [3000], "datatype": "BYTES", "data": ["x" * 30] * 3000},
            {"name": "age", "shape": [3000], "datatype": "INT64", "data": list(range(3000))},
        ]
        reply = await post(it, "/v2/models/greet_all/infer", {"inputs": tensors})
        assert reply.json()["outputs"][1]["data"][-1] == 3000


@synchronous
async def test_rows_count_as_requests_of_many_records() -> None:
    async with served(live(greet)) as it:
        await post(it, INFER, {"inputs": TENSORS})
        await post(it, INFER, {"inputs": []})
        assert it.requests() == {("batch", "200"): 1, ("batch", "400"): 1}
