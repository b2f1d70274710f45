"""Media types beside JSON, through the server's app."""

from __future__ import annotations

import ast
import asyncio
import json
import logging
import threading
from collections.abc import Mapping
from typing import Any

import pytest

from mfimage.errors import Fault, OutputError, SchemaError
from mfimage.runtime.serving import content
from tests.runtime.apps import served
from tests.runtime.codecs import LITERAL, Literals
from tests.runtime.packages import live
from tests.runtime.serving.test_app import BAD, FAILING, FUNCTIONS, GOOD, fn_of, problem

JSON = "application/json"
IN = {"Content-Type": LITERAL}
OUT = {"Accept": LITERAL}


class Watched(Literals):
    """Remembers where it was called, and writes no 13."""

    def __init__(self) -> None:
        self.threads: set[int] = set()

    def loads(self, data: bytes, schema: Any) -> Any:
        self.threads.add(threading.get_ident())
        return super().loads(data, schema)

    def dumps(self, value: Any, schema: Any) -> bytes:
        self.threads.add(threading.get_ident())
        if value in (13, {"result": 13}) or (isinstance(value, list) and {"result": 13} in value):
            raise OutputError([Fault(path="result", message="13 cannot be written")])
        return super().dumps(value, schema)


class NoLists(Literals):
    def schema(self, json_schema: Mapping[str, Any], *, name: str) -> Any:
        if json_schema.get("type") == "array":
            raise SchemaError("data: no lists")
        return super().schema(json_schema, name=name)


class Broken(Literals):
    name = "broken"
    media_type = "application/x-broken"

    def schema(self, json_schema: Mapping[str, Any], *, name: str) -> Any:
        raise KeyError("oh")


class NoValue(Literals):
    name = "novalue"
    media_type = "application/x-novalue"

    def schema(self, json_schema: Mapping[str, Any], *, name: str) -> Any:
        return {1, 2}


@pytest.fixture
def form(monkeypatch: pytest.MonkeyPatch) -> Watched:
    """The one serializer that is known."""
    serializer = Watched()
    know(monkeypatch, serializer)
    return serializer


def know(monkeypatch: pytest.MonkeyPatch, *known: Any) -> None:
    monkeypatch.setattr(content, "serializers", lambda: {each.name: each for each in known})


def literal(response: Any) -> Any:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == LITERAL
    return ast.literal_eval(response.text)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_record_is_answered_in_the_form_that_was_asked_for(name: str, form: Watched) -> None:
    async def run() -> None:
        async with served(fn_of(name)) as it:
            path = f"/{name}"
            answer = await it.post(path, repr(GOOD), **IN)
            assert literal(answer) == "hello Ada"
            assert answer.headers["vary"] == "accept"
            assert literal(await it.post(path, json.dumps(GOOD), **OUT)) == "hello Ada"
            mixed = await it.post(path, repr(GOOD), **IN, Accept=JSON)
            assert (mixed.json(), mixed.headers["content-type"]) == ("hello Ada", JSON)
            bad = problem(await it.post(path, repr(BAD), **IN, **OUT))
            assert (bad["status"], bad["detail"]) == (422, "data.age: expected int, got 'x'")
            torn = problem(await it.post(path, b"{'name':", **IN))
            assert (torn["status"], torn["errors"][0]["path"]) == (422, "data")
            assert torn["errors"][0]["message"].startswith(f"not {LITERAL}: SyntaxError")
            no_value = problem(await it.post(path, b"{'name': {1}}", **IN))
            assert no_value["errors"] == [{"path": "data.name", "message": "set has no JSON form"}]
            assert problem(await it.post(path, repr(FAILING), **IN))["status"] == 500
            refused = await it.post(path, repr(GOOD), **{"Content-Type": "text/csv"})
            assert problem(refused)["status"] == 415
            assert refused.headers["accept-post"] == f"{JSON}, {LITERAL}"
            refused = await it.post(path, repr(GOOD), **IN, Accept="text/csv")
            assert problem(refused)["title"] == "Not Acceptable"
            assert refused.headers["vary"] == "accept"
            large = await it.post(path, b"'" + b"x" * 2**24 + b"'", **IN)
            assert problem(large)["status"] == 413
            assert threading.get_ident() not in form.threads

    asyncio.run(run())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_list_is_answered_in_the_form_that_was_asked_for(name: str, form: Watched) -> None:
    async def run() -> None:
        async with served(fn_of(name), max_batch=3) as it:
            path = f"/{name}/batch"
            records = [GOOD, BAD, FAILING, GOOD]
            items = literal(await it.post(path, repr(records), **IN))
            assert items == (await it.post(path, json.dumps(records))).json()
            assert items == literal(await it.post(path, json.dumps(records), **OUT))
            assert [item.get("result") for item in items] == ["hello Ada", None, None, "hello Ada"]
            assert [item["error"]["status"] for item in items[1:3]] == [422, 500]
            assert literal(await it.post(path, "[]", **IN)) == []
            for body in (b"{'a': 1}", b"[", b"3"):
                refused = problem(await it.post(path, body, **IN))
                assert (refused["status"], refused["errors"][0]["path"]) == (422, "records")
            assert threading.get_ident() not in form.threads

    asyncio.run(run())


def test_records_of_every_form_join_one_call(form: Watched) -> None:
    began, go = threading.Event(), threading.Event()
    sizes: list[int] = []

    def add(data: list[int]) -> list[int]:
        began.set()
        go.wait(20)
        sizes.append(len(data))
        return [number + 1 for number in data]

    async def run() -> None:
        async with served(live(add, batch=True)) as it:
            first = asyncio.create_task(it.post("/add", "0"))
            while not began.is_set():
                await asyncio.sleep(0.01)
            posts = [it.post("/add", str(n), **(IN if n % 2 else {})) for n in range(1, 40)]
            others = asyncio.gather(*posts)
            while it.service.inflight is None or len(it.service.inflight) < 40:
                await asyncio.sleep(0.01)
            go.set()
            answers = await others
            assert [ast.literal_eval(answer.text) for answer in answers] == list(range(2, 41))
            assert [a.headers["content-type"] for a in answers[:2]] == [LITERAL, JSON]
            assert (await first).json() == 1

    asyncio.run(run())
    assert sizes == [1, 39]


def test_a_result_that_cannot_be_written_fails_alone(
    form: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    def same(data: int) -> int:
        return data

    async def run() -> None:
        async with served(live(same)) as it:
            items = literal(await it.post("/same/batch", "[12, 13, 14]", **OUT))
            assert [item.get("result") for item in items] == [12, None, 14]
            assert items[1]["error"]["status"] == 500
            assert items[1]["error"]["errors"] == [
                {"path": "result", "message": "13 cannot be written"}
            ]

    asyncio.run(run())
    assert "failed for 1 of 3 records" in caplog.text


def test_paths_start_with_the_parameter_s_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def older(person: dict[str, int]) -> int:
        return person["age"] + 1

    know(monkeypatch, Literals())

    async def run() -> None:
        async with served(live(older)) as it:
            for body, path in (
                ("{'age': 'x'}", "person.age"),
                ("{'age': {1}}", "person.age"),
                ("", "person"),
            ):
                errors = problem(await it.post("/older", body, **IN))["errors"]
                assert [error["path"] for error in errors] == [path]

    asyncio.run(run())


def test_a_form_that_has_no_schema_is_left_out_and_the_log_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    know(monkeypatch, NoLists(), Broken(), NoValue())
    caplog.set_level(logging.INFO, "mfimage.serving")
    fn = live(lambda_like)
    found = content.codecs_of(fn.spec, data=fn.data)
    assert list(found) == [LITERAL]
    assert found[LITERAL].many is None
    said = {record.getMessage() for record in caplog.records}
    assert said == {
        f"lambda_like/batch is not served as {LITERAL}: data: no lists",
        "lambda_like is not served as application/x-broken: its serializer failed",
        "lambda_like is not served as application/x-novalue: novalue: schema() must return a "
        "JSON value: schema: set has no JSON form",
    }

    async def run() -> None:
        async with served(fn) as it:
            assert literal(await it.post("/lambda_like", "3", **IN)) == 3
            refused = await it.post("/lambda_like/batch", "[3]", **IN)
            assert problem(refused)["status"] == 415
            assert "vary" not in (await it.post("/lambda_like/batch", "[3]")).headers
            paths = (await it.client.get("/openapi.json")).json()["paths"]
            single, batch = (
                paths[path]["post"]["requestBody"]["content"]
                for path in ("/lambda_like", "/lambda_like/batch")
            )
            assert single.keys() == {JSON, LITERAL}
            assert batch.keys() == {JSON}

    asyncio.run(run())


def lambda_like(data: int) -> int:
    return data
