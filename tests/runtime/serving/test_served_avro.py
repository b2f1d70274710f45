"""Avro through a real server, spoken by fastavro from the schemas that the server documents."""

from __future__ import annotations

import asyncio
import io
import json
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import fastavro
import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.runtime.packages import make_folder
from tests.runtime.servers import PATIENCE, Server, running

pytestmark = pytest.mark.slow

AVRO = "application/avro"
IN = {"Content-Type": AVRO}
SOURCE = """
from typing_extensions import NotRequired, TypedDict
from mfimage.function.decorator import avro_function
from mfimage.function.serializers import register_serializer

class Flower(TypedDict):
    petals: int
    name: NotRequired[str]

class Grade(TypedDict):
    grade: int
    name: str | None

class Shouts:
    name = "shout"
    media_type = "text/x-shout"

    def schema(self, json_schema, *, name):
        return None

    def dumps(self, value, schema):
        import json
        return json.dumps(value).upper().encode()

    def loads(self, data, schema):
        import json
        return json.loads(data.decode().lower())

register_serializer(Shouts)

@avro_function(batch=True)
def predict(data: list[Flower]) -> list[Grade]:
    return [{"grade": each["petals"] * 2, "name": each.get("name")} for each in data]
"""
TOTAL = """
from mfimage.function.decorator import avro_function

@avro_function
def predict(data: list[float]) -> float:
    return sum(data)
"""
EXPLICIT = """
from mfimage.function.decorator import avro_function

POINT = {"type": "record", "name": "geo.Point", "fields": [
    {"name": "x", "type": "float"}, {"name": "y", "type": "float"}]}

@avro_function(schema=POINT, output_schema={"type": "array", "items": POINT})
def predict(data: dict[str, float]) -> list[dict[str, float]]:
    return [data, data]
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = make_folder(tmp_path_factory.mktemp("avro") / "fn", SOURCE)
    with running(folder, MFIMAGE_BATCH_WAIT="0.005") as started:
        yield started.until_ready()


class Client:
    """Knows of a server what ``/openapi.json`` says."""

    def __init__(self, server: Server, path: str = "/predict") -> None:
        post = server.get("/openapi.json").json()["paths"][path]["post"]
        self.url = server.url + path
        self.takes = post["requestBody"]["content"]
        self.gives = post["responses"]["200"]["content"]

    def send(self, body: bytes, **headers: str) -> httpx.Response:
        return httpx.post(self.url, content=body, headers=headers, timeout=PATIENCE)

    def write(self, record: Any) -> bytes:
        out = io.BytesIO()
        fastavro.schemaless_writer(out, self.takes[AVRO]["x-avro-schema"], record)
        return out.getvalue()

    def read(self, answer: httpx.Response) -> Any:
        assert (answer.status_code, answer.headers["content-type"]) == (200, AVRO), answer.text
        schema = self.gives[AVRO]["x-avro-schema"]
        file = io.BytesIO(answer.content)
        value = fastavro.schemaless_reader(file, schema, None)
        assert not file.read()
        return value

    def ask(self, record: Any, **headers: str) -> Any:
        return self.read(self.send(self.write(record), **{"Content-Type": AVRO}, **headers))


def test_a_record_is_answered(server: Server) -> None:
    client = Client(server)
    assert client.ask({"petals": 3, "name": "iris"}) == {"grade": 6, "name": "iris"}
    assert client.ask({"petals": 3, "name": None}) == {"grade": 6, "name": None}
    body = client.write({"petals": -1})
    as_json = client.send(body, **IN, Accept="application/json")
    assert (as_json.json(), as_json.headers["vary"]) == ({"grade": -2, "name": None}, "accept")
    answer = client.send(b'{"petals": 3}', Accept=AVRO)
    assert answer.status_code == 415  # it does not say that it is JSON
    answer = client.send(b'{"petals": 3}', Accept=AVRO, **{"Content-Type": "application/json"})
    assert client.read(answer) == {"grade": 6, "name": None}
    shouted = client.send(b'{"PETALS": 3, "NAME": "Rose"}', **{"Content-Type": "text/x-shout"})
    assert shouted.text == '{"GRADE": 6, "NAME": "ROSE"}'
    assert shouted.headers["content-type"] == "text/x-shout"


def test_a_list_is_answered(server: Server) -> None:
    client = Client(server, "/predict/batch")
    answers = client.ask([{"petals": 1}, {"petals": 2**62}, {"petals": 2, "name": "x"}])
    assert [item.get("result") for item in answers] == [
        {"grade": 2, "name": None}, None, {"grade": 4, "name": "x"},
    ]  # fmt: skip
    problem = answers[1]["error"]
    assert problem["status"] == 500
    assert problem["errors"][0]["path"] == "result.grade"
    assert client.ask([]) == []


def test_what_is_wrong_is_told_in_json(server: Server) -> None:
    client, errors = Client(server), server.messages("error")
    body = client.write({"petals": 3, "name": "iris"})
    for wrong in (body[:-1], b"", body + b"x"):
        answer = client.send(wrong, **IN)
        assert answer.headers["content-type"] == "application/problem+json"
        assert (answer.status_code, answer.json()["errors"][0]["path"]) == (422, "data")
    answer = client.send(body, **IN, Accept="text/csv")
    assert (answer.status_code, AVRO in answer.json()["detail"]) == (406, True)
    answer = client.send(body, **{"Content-Type": "text/csv"})
    assert answer.status_code == 415
    assert answer.headers["accept-post"] == f"application/json, {AVRO}, text/x-shout"
    assert server.messages("error") == errors


@pytest.mark.parametrize("path", ["/predict", "/predict/batch"])
def test_any_bytes_are_answered_or_refused(server: Server, path: str) -> None:
    client = Client(server, path)
    good = client.write({"petals": 3, "name": "iris"} if path == "/predict" else [{"petals": 3}])

    @settings(
        max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(st.binary(max_size=40) | st.tuples(st.integers(0, len(good)), st.binary(max_size=4)).map(
        lambda cut: good[: cut[0]] + cut[1] + good[cut[0] :]))  # fmt: skip
    def send(body: bytes) -> None:
        answer = connection.post(client.url, content=body, headers=IN)
        assert answer.status_code in (200, 422), (body, answer.text)
        if answer.status_code == 422:
            assert answer.json()["errors"][0]["path"].startswith(("data", "records"))

    with httpx.Client(timeout=PATIENCE) as connection:
        send()


def test_records_that_wait_join_one_call(server: Server) -> None:
    client = Client(server)

    bodies = [client.write({"petals": n}) for n in range(100)]
    limits = httpx.Limits(max_connections=50, max_keepalive_connections=50)

    async def flood() -> list[Any]:
        async with httpx.AsyncClient(timeout=PATIENCE, limits=limits) as connection:
            posts = [connection.post(client.url, content=body, headers=IN) for body in bodies]
            return [client.read(answer)["grade"] for answer in await asyncio.gather(*posts)]

    calls, records = count_batches(server)
    assert asyncio.run(flood()) == [2 * n for n in range(100)]
    now_calls, now_records = count_batches(server)
    assert now_records - records == 100
    assert now_calls - calls < 50


def count_batches(server: Server) -> tuple[float, float]:
    lines = server.get("/metrics").text.splitlines()
    found = {line.split()[0]: float(line.split()[-1]) for line in lines if not line.startswith("#")}
    return found.get("mfimage_batch_size_count", 0.0), found.get("mfimage_batch_size_sum", 0.0)


@pytest.mark.parametrize("path", ["/predict", "/predict/batch"])
def test_a_large_body_does_not_hold_up_the_health_endpoints(tmp_path, path: str) -> None:
    with running(make_folder(tmp_path / "fn", TOTAL)) as server, ThreadPoolExecutor(1) as pool:
        server.until_ready()
        count = 1_000_000
        numbers = varint(count) + struct.pack("<d", 0.5) * count + b"\0"
        body = numbers if path == "/predict" else b"\x02" + numbers + b"\0"
        client = Client(server, path)
        call = pool.submit(client.send, body, **IN)
        times = []
        with httpx.Client() as connection:
            while not call.done():
                begin = time.monotonic()
                assert connection.get(server.url + "/healthz").status_code == 200
                times.append(time.monotonic() - begin)
        answer = client.read(call.result())
        assert answer == (500_000.0 if path == "/predict" else [{"result": 500_000.0}])
        assert len(times) > 5
        assert sorted(times)[len(times) // 2] < 0.1


def varint(number: int) -> bytes:
    out, rest = bytearray(), number << 1
    while rest > 0x7F:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes([*out, rest])


def test_schemas_that_were_given_are_the_ones_that_are_spoken(tmp_path) -> None:
    with running(make_folder(tmp_path / "fn", EXPLICIT)) as server:
        server.until_ready()
        client = Client(server)
        assert client.takes[AVRO]["x-avro-schema"]["name"] == "geo.Point"
        point = {"x": 1.5, "y": -2.0}
        assert client.ask(point) == [point, point]
        lists = Client(server, "/predict/batch")
        assert lists.ask([point]) == [{"result": [point, point]}]
        plain = client.send(json.dumps(point).encode(), **{"Content-Type": "application/json"})
        assert plain.json() == [point, point]
