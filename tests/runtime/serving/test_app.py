from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
import threading
import time
from typing import Any, TypedDict
from urllib.parse import urljoin

import httpx
import pytest

from mfimage.runtime.calls.queue import Stopping
from tests.runtime.apps import Served, samples, served
from tests.runtime.packages import live


class Person(TypedDict):
    name: str
    age: int


def greet(data: Person) -> str:
    """Greet a person."""
    if data["age"] < 0:
        raise RuntimeError("secret reason")
    return f"hello {data['name']}"


def greet_all(data: list[Person]) -> list[str]:
    return [greet(person) for person in data]


async def greet_later(data: Person) -> str:
    await asyncio.sleep(0)
    return greet(data)


GOOD = {"name": "Ada", "age": 36}
BAD = {"name": "Ada", "age": "x"}
FAILING = {"name": "Ada", "age": -1}
FUNCTIONS = {"greet": greet, "greet_all": greet_all, "greet_later": greet_later}


def fn_of(name: str) -> Any:
    return live(FUNCTIONS[name], batch=name == "greet_all")


def problem(response: httpx.Response) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert document["type"] == "about:blank"
    assert document["status"] == response.status_code
    assert document["request_id"] == response.headers["x-request-id"]
    return dict(document)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_record_is_answered_or_refused_alike_by_every_kind_of_function(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with served(fn_of(name)) as it:
            good = await it.post(f"/{name}", json.dumps(GOOD))
            assert (good.status_code, good.json()) == (200, "hello Ada")
            assert good.headers["content-type"] == "application/json"
            bad = problem(await it.post(f"/{name}", json.dumps(BAD)))
            assert (bad["status"], bad["title"]) == (422, "Unprocessable Content")
            assert bad["errors"] == [{"path": "data.age", "message": "expected int, got 'x'"}]
            assert bad["detail"] == "data.age: expected int, got 'x'"
            torn = problem(await it.post(f"/{name}", b'{"name":'))
            assert torn["status"] == 422
            assert torn["errors"][0]["message"].startswith("not JSON")
            failed = problem(
                await it.post(f"/{name}", json.dumps(FAILING), **{"X-Request-Id": "abc-1"})
            )
            assert (failed["status"], failed["request_id"]) == (500, "abc-1")
            assert "secret" not in json.dumps(failed)

    asyncio.run(run())
    (record,) = (record for record in caplog.records if record.levelno >= logging.ERROR)
    assert record.request_id == "abc-1"
    assert record.exc_info
    assert "secret reason" in str(record.exc_info[1])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_list_is_answered_item_by_item_in_order(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with served(fn_of(name), max_batch=3) as it:
            records = [GOOD, BAD, FAILING, {**GOOD, "name": "Bob"}] * 3
            response = await it.post(f"/{name}/batch", json.dumps(records))
            assert response.status_code == 200
            items = response.json()
            assert len(items) == len(records)
            for start in range(0, len(items), 4):
                good, bad, failed, other = items[start : start + 4]
                assert good == {"result": "hello Ada"}
                assert other == {"result": "hello Bob"}
                assert bad["error"]["status"] == 422
                assert bad["error"]["errors"][0]["path"] == "data.age"
                assert failed["error"]["status"] == 500
            assert (await it.post(f"/{name}/batch", "[]")).json() == []
            not_a_list = problem(await it.post(f"/{name}/batch", json.dumps(GOOD)))
            assert not_a_list["status"] == 422
            assert not_a_list["errors"][0]["path"] == "records"

    asyncio.run(run())
    (record,) = (record for record in caplog.records if record.levelno >= logging.ERROR)
    assert "failed for 3 of 12 records" in record.getMessage()


def test_a_large_list_is_answered() -> None:
    async def run() -> None:
        async with served(fn_of("greet_all")) as it:
            records = [{**GOOD, "name": f"n{number}"} for number in range(5000)]
            items = (await it.post("/greet_all/batch", json.dumps(records))).json()
            assert [item["result"] for item in items] == [f"hello n{n}" for n in range(5000)]
            found = samples(it.metrics)
            assert found["mfimage_batch_size_sum", ""] == 5000
            calls = found["mfimage_batch_size_count", ""]
            assert found["mfimage_batch_size_bucket", "le=64.0"] == calls

    asyncio.run(run())


def test_what_cannot_be_answered_is_a_problem_document() -> None:
    async def run() -> None:
        async with served(fn_of("greet"), max_body=100) as it:
            large = json.dumps({"name": "x" * 100, "age": 1})
            assert problem(await it.post("/greet", large))["status"] == 413

            async def parts() -> Any:
                yield b'{"name": "'
                for _ in range(100):
                    yield b"x" * 10

            assert problem(await it.post("/greet", parts()))["status"] == 413
            kind = await it.post("/greet", json.dumps(GOOD), **{"Content-Type": "text/csv"})
            assert problem(kind)["status"] == 415
            assert kind.headers["accept-post"].split(", ")[0] == "application/json"
            for path in ("/greet/", "/nothing", "/greet/batch/x"):
                assert problem(await it.post(path, "1"))["status"] == 404
            wrong = await it.client.get("/greet")
            assert problem(wrong)["status"] == 405
            assert wrong.headers["allow"] == "POST"
            wrong = await it.client.delete("/healthz")
            assert problem(wrong)["status"] == 405
            assert wrong.headers["allow"] == "GET, HEAD"

    asyncio.run(run())


def test_curl_s_default_type_is_taken_for_json() -> None:
    async def run() -> None:
        async with served(fn_of("greet")) as it:
            form = {"Content-Type": "application/x-www-form-urlencoded"}
            assert (await it.post("/greet", json.dumps(GOOD), **form)).status_code == 200

    asyncio.run(run())


def test_before_the_function_is_loaded_only_health_answers() -> None:
    async def run() -> None:
        async with served(fn_of("greet"), load=False) as it:
            assert (await it.client.get("/healthz")).status_code == 200
            for response in (
                await it.client.get("/readyz"),
                await it.post("/greet", json.dumps(GOOD)),
                await it.post("/greet/batch", "[]"),
                await it.client.get("/"),
            ):
                assert problem(response)["detail"] == "the function is still loading"
                assert response.status_code == 503
                assert response.headers["retry-after"] == "1"

    asyncio.run(run())


def test_the_pages() -> None:
    async def run() -> None:
        async with served(fn_of("greet")) as it:
            about = (await it.client.get("/")).json()
            assert about.keys() == {"name", "digest", "pathspec", "version", "status"}
            assert about["pathspec"] == "Flow/1/train/2"
            assert (await it.client.get("/readyz")).json() == {"status": "ready"}
            head = await it.client.head("/readyz")
            assert (head.status_code, head.content) == (200, b"")
            assert "swagger" in (await it.client.get("/docs")).text
            assert "redoc" in (await it.client.get("/redoc")).text
            assert "mfimage_requests_total" in (await it.client.get("/metrics")).text

    asyncio.run(run())


def test_head_is_answered_wherever_get_is() -> None:
    async def run() -> None:
        async with served(fn_of("greet")) as it:
            paths = [route.path for route in it.app.routes if route.method == "GET"]
            assert {"/", "/metrics", "/docs", "/openapi.json"} <= set(paths)
            for path in paths:
                got, head = await it.client.get(path), await it.client.head(path)
                assert (head.status_code, head.content) == (got.status_code, b"")
                assert head.headers["content-type"] == got.headers["content-type"]

    asyncio.run(run())


def test_the_pages_need_no_internet_and_find_their_files_behind_a_prefix() -> None:
    async def run() -> None:
        async with served(fn_of("greet")) as it:
            for page in ("/docs", "/redoc"):
                text = (await it.client.get(page)).text
                assert "//" not in text.replace("// ", "").replace("//docs", "")
                found = re.findall(r"""(?:src|href|spec-url)="([^"#]+)"|url: '([^']+)'""", text)
                links = {one or other for one, other in found}
                assert "openapi.json" in links
                assert len(links) >= 3
                for link in links:
                    assert urljoin(f"http://h/models/iris{page}", link).startswith(
                        "http://h/models/iris/"
                    )
                    response = await it.client.get(urljoin(f"http://test{page}", link))
                    assert (response.status_code, len(response.content) > 500) == (200, True)

    asyncio.run(run())


def test_the_document_has_the_prefix_under_which_it_is_published() -> None:
    async def run() -> None:
        async with served(fn_of("greet"), root_path="/models/iris") as it:
            for headers, prefix in (
                ({}, "/models/iris"),
                ({"X-Forwarded-Prefix": "/by/proxy/"}, "/by/proxy"),
                ({"X-Forwarded-Prefix": "<script>"}, "/models/iris"),
            ):
                document = await it.client.get("/openapi.json", headers=headers)
                assert document.json()["servers"] == [{"url": prefix}]
            for root in ("", "/models/iris"):
                response = await it.post(f"{root}/greet", json.dumps(GOOD))
                assert response.json() == "hello Ada"
                assert (await it.client.get(f"{root}/")).status_code == 200

    asyncio.run(run())


def test_pages_of_other_origins_call_the_server_only_if_they_are_listed() -> None:
    page = {"Origin": "https://a.example"}
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-key"}

    async def run() -> None:
        async with served(fn_of("greet")) as it:
            for response in (
                await it.post("/greet", json.dumps(GOOD), **page),
                await it.client.options("/greet", headers=page | ask),
            ):
                assert not [name for name in response.headers if "access-control" in name]
            assert response.status_code == 405
        async with served(fn_of("greet"), cors_origins=("https://a.example",)) as it:
            response = await it.client.options("/greet", headers=page | ask)
            assert response.status_code == 200
            assert response.headers["access-control-allow-origin"] == "https://a.example"
            assert response.headers["access-control-allow-methods"] == "POST"
            assert response.headers["access-control-allow-headers"] == "x-key"
            for body in (GOOD, BAD):  # the page must be able to read errors, too
                response = await it.post("/greet", json.dumps(body), **page)
                assert response.headers["access-control-allow-origin"] == "https://a.example"
                assert "origin" in response.headers["vary"]
            other = {"Origin": "https://b.example"}
            for response in (
                await it.post("/greet", json.dumps(GOOD), **other),
                await it.client.options("/greet", headers=other | ask),
            ):
                assert "access-control-allow-origin" not in response.headers
            assert it.requests()["other", "200"] == 2
        async with served(fn_of("greet"), cors_origins=("*",)) as it:
            response = await it.post("/greet", json.dumps(GOOD), **page)
            assert response.headers["access-control-allow-origin"] == "*"

    asyncio.run(run())


def test_a_byte_order_mark_is_ignored() -> None:
    async def run() -> None:
        async with served(fn_of("greet")) as it:
            body = json.dumps(GOOD).encode("utf-8-sig")
            assert (await it.post("/greet", body)).json() == "hello Ada"
            body = json.dumps([GOOD]).encode("utf-8-sig")
            assert (await it.post("/greet/batch", body)).json() == [{"result": "hello Ada"}]

    asyncio.run(run())


@pytest.mark.parametrize("name", ["metrics", "healthz", "docs", "batch"])
def test_a_function_may_have_the_name_of_a_page(name: str) -> None:
    def any_name(data: int) -> int:
        return data + 1

    any_name.__name__ = name

    async def run() -> None:
        async with served(live(any_name)) as it:
            assert (await it.post(f"/{name}", "1")).json() == 2
            assert (await it.post(f"/{name}/batch", "[1]")).json() == [{"result": 2}]
            page = await it.client.get(f"/{name}")
            assert page.status_code == (405 if name == "batch" else 200)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("given", "kept"),
    [("trace:1/a=b@c", True), ('x"y', False), ("a b", False), ("x" * 129, False), ("", False)],
)
def test_a_request_id_is_echoed_or_made(given: str, kept: bool) -> None:
    async def run() -> tuple[httpx.Response, Served]:
        async with served(fn_of("greet")) as it:
            return await it.post("/greet", json.dumps(GOOD), **{"X-Request-Id": given}), it

    response, it = asyncio.run(run())
    assert (response.headers["x-request-id"] == given) == kept
    (entry,) = map(json.loads, it.lines.data.splitlines())
    assert entry["request_id"] == response.headers["x-request-id"]
    assert (entry["method"], entry["path"], entry["status"]) == ("POST", "/greet", 200)


def test_a_slow_call_gets_504_and_leaves_its_place_to_others() -> None:
    go = threading.Event()

    def slow(data: bool) -> bool:
        return go.wait(20) if data else False

    async def run() -> None:
        async with served(live(slow), timeout=0.2, threads=2, max_waiting=3) as it:
            for _ in range(2):
                late = problem(await it.post("/slow", "true"))
                assert (late["status"], late["detail"]) == (504, "no answer within 0.2 s")
                assert it.in_flight() == 0
            # Both threads are held. Three wait, the fourth finds no place; all are answered.
            answers = await asyncio.gather(*(it.post("/slow", "false") for _ in range(4)))
            assert sorted(answer.status_code for answer in answers) == [503, 504, 504, 504]
            await asyncio.sleep(0.1)
            assert (await it.client.get("/readyz")).status_code == 503
            assert (await it.client.get("/healthz")).status_code == 200
            go.set()
            assert (await it.post("/slow", "false")).json() is False
            assert (await it.client.get("/readyz")).status_code == 200

    asyncio.run(run())


def test_a_list_keeps_what_was_done_in_time() -> None:
    def nap(data: float) -> float:
        time.sleep(data)
        return data

    async def run() -> None:
        async with served(live(nap), timeout=0.3, threads=1) as it:
            items = (await it.post("/nap/batch", "[0.0, 0.5, 0.0]")).json()
            assert items[0] == {"result": 0.0}
            assert [item["error"]["status"] for item in items[1:]] == [504, 504]

    asyncio.run(run())


def test_draining_answers_and_asks_to_connect_elsewhere() -> None:
    async def run() -> None:
        async with served(fn_of("greet")) as it:
            assert "connection" not in (await it.client.get("/healthz")).headers
            it.services.drain()
            assert problem(await it.client.get("/readyz"))["status"] == 503
            for response in (
                await it.post("/greet", json.dumps(GOOD)),
                await it.client.get("/"),
                await it.client.get("/healthz"),
            ):
                assert response.status_code == 200
                assert response.headers["connection"] == "close"

    asyncio.run(run())


def test_what_the_end_of_the_grace_period_cuts_off_gets_503() -> None:
    go = threading.Event()

    def slow(data: int) -> int:
        go.wait(20)
        return data

    async def run() -> None:
        async with served(live(slow)) as it:
            task = asyncio.create_task(it.post("/slow", "1"))
            while not it.service.inflight:
                await asyncio.sleep(0.01)
            it.service.inflight.stop()
            response = problem(await task)
            assert response["status"] == 503
            assert response["detail"] == "the server is shutting down"
            go.set()

    asyncio.run(run())
    assert str(Stopping()) == ""


def test_a_result_that_does_not_fit_is_this_side_s_error(caplog: pytest.LogCaptureFixture) -> None:
    def wrong(data: int) -> int:
        return "x" if data else float("nan")  # type: ignore[return-value]

    async def run() -> None:
        async with served(live(wrong)) as it:
            document = problem(await it.post("/wrong", "1"))
            assert document["status"] == 500
            assert document["errors"] == [{"path": "result", "message": "expected int, got 'x'"}]
            assert problem(await it.post("/wrong", "0"))["status"] == 500

    asyncio.run(run())
    assert sum(record.levelno >= logging.ERROR for record in caplog.records) == 2


def test_a_function_that_exits_is_a_500_and_the_server_lives(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def leave(data: int) -> int:
        if data:
            sys.exit(3)
        return data

    async def run() -> None:
        async with served(live(leave)) as it:
            assert problem(await it.post("/leave", "1"))["status"] == 500
            items = (await it.post("/leave/batch", "[1, 0]")).json()
            assert [next(iter(item)) for item in items] == ["error", "result"]

    asyncio.run(run())
    assert caplog.records


def test_requests_are_counted_by_endpoint_and_status() -> None:
    async def run() -> None:
        async with served(fn_of("greet")) as it:
            await it.post("/greet", json.dumps(GOOD))
            await it.post("/greet", json.dumps(BAD))
            await it.post("/greet/batch", "[]")
            await it.client.get("/nothing")
            await it.client.get("/healthz")
            await it.client.get("/metrics")
            assert it.requests() == {
                ("record", "200"): 1,
                ("record", "422"): 1,
                ("batch", "200"): 1,
                ("other", "404"): 1,
            }
            assert it.in_flight() == 0

    asyncio.run(run())


def test_a_client_that_leaves_is_counted_as_such() -> None:
    go = threading.Event()
    called: list[int] = []

    def slow(data: int) -> int:
        called.append(data)
        go.wait(20)
        return data

    async def run() -> None:
        async with served(live(slow), threads=1) as it:
            tasks = [asyncio.create_task(_leave(it, b"%d" % number)) for number in range(2)]
            await asyncio.gather(*tasks)
            assert it.requests() == {("record", "499"): 2}
            assert it.in_flight() == 0
            go.set()
            assert (await it.post("/slow", "7")).json() == 7
            assert called == [0, 7]  # the second had left before its turn

    asyncio.run(run())


async def _leave(it: Served, body: bytes) -> None:
    messages = [{"type": "http.request", "body": body}, {"type": "http.disconnect"}]

    async def receive() -> Any:
        return messages.pop(0) if messages else await asyncio.sleep(60)

    async def send(message: Any) -> None:
        raise AssertionError("nobody is there")

    scope = {"type": "http", "method": "POST", "path": "/slow", "headers": []}
    await it.app(scope, receive, send)
