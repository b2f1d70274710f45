"""The function behind Ray Serve: its routes anywhere, its arguments, and a real replica."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, TypedDict

import httpx
import pytest

from mfimage.errors import BackendError, OptionError
from mfimage.function.serializers import _registered, register_serializer
from mfimage.runtime.ray.serve import Replica, ServeArgs, _application, changed, takes_lists
from mfimage.runtime.ray_worker import build
from mfimage.runtime.settings import Settings
from tests.runtime.codecs import LITERAL, Literals
from tests.runtime.packages import Source, live, make_folder, make_functions
from tests.support.docker import free_port
from tests.support.ray import SETTINGS

pytestmark = pytest.mark.slow

PREDICT = """
from typing import TypedDict
class Record(TypedDict):
    n: int

@json_function(batch=True)
def predict(records: list[Record], params: FunctionParameters) -> list[int]:
    time.sleep(sum(max(record["n"], 0) for record in records) / 10)
    return [len(records) for record in records]
"""


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Let the next package have a module of the same name."""
    path = [*sys.path]
    yield
    sys.path[:] = path
    sys.modules.pop("served", None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "fn", PREDICT)


@contextlib.asynccontextmanager
async def replica(folder: Path, root: str = "") -> Any:
    """A replica without Ray, and a client that sees it below a route prefix."""
    made = Replica.__new__(Replica)
    await made.__init__(str(folder))
    transport = httpx.ASGITransport(made.mounted, root_path=root)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield made, client
    await made._retire(made._services)


def answers(folder: Path, root: str, *asked: tuple[str, str, Any]) -> list[httpx.Response]:
    async def ask() -> list[httpx.Response]:
        async with replica(folder, root) as (_, client):
            return [await client.request(how, path, json=body) for how, path, body in asked]

    return asyncio.run(ask())


@pytest.mark.parametrize("root", ["", "/predict", "/models/a"])
def test_the_prefix_is_where_the_function_is(folder: Path, root: str) -> None:
    at = root or "/predict"
    one, many, batch, bad, wrong, document, docs, script, *nowhere = answers(
        folder,
        root,
        ("POST", at, {"n": -1}),
        ("POST", at, [{"n": -1}, {}]),
        ("POST", f"{at}/batch", [{"n": -1}]),
        ("POST", at, 5),
        ("GET", f"{at}/batch", None),
        ("GET", f"{root}/openapi.json", None),
        ("GET", f"{root}/docs", None),
        ("GET", f"{root}/docs/swagger-ui-bundle.js", None),
        ("POST", f"{at}/predict", {"n": -1}),
        ("GET", f"{root}/metrics", None),
        ("GET", f"{at}/batch/x", None),
    )
    assert (one.status_code, one.json()) == (200, 1)
    assert many.json()[0] == {"result": 1}
    assert many.json()[1]["error"]["errors"] == [{"path": "records.n", "message": "missing"}]
    assert batch.json() == [{"result": 1}]
    assert (bad.status_code, bad.headers["content-type"]) == (422, "application/problem+json")
    assert wrong.status_code == 405
    assert [*document.json()["paths"]] == [at, f"{at}/batch"]
    assert "url: 'openapi.json'" in docs.text  # from {root}/docs on
    assert script.headers["content-type"] == "text/javascript"
    assert [each.status_code for each in nowhere] == [404, 404, 404]


def test_health_at_the_root_is_the_servers(folder: Path) -> None:
    *found, wrong = answers(
        folder, "", ("GET", "/healthz", None), ("GET", "/readyz", None), ("POST", "/", [{"n": -1}])
    )
    assert wrong.status_code == 405
    assert [each.json()["status"] for each in found] == ["alive", "ready"]
    assert answers(folder, "/x", ("GET", "/x/healthz", None))[0].status_code == 404


def test_a_list_is_one_record_where_the_function_takes_lists(tmp_path: Path) -> None:
    source = "@json_function\ndef predict(data: list[int]) -> int:\n    return sum(data)\n"
    folder = make_folder(tmp_path / "fn", source)
    one, many = answers(
        folder, "", ("POST", "/predict", [1, 2]), ("POST", "/predict/batch", [[1], [2]])
    )
    assert one.json() == 3
    assert many.json() == [{"result": 1}, {"result": 2}]


@pytest.mark.parametrize("parts", [[], [b" "], [b"[1"]])
def test_a_body_that_stalls_ends_the_request(
    folder: Path, parts: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first byte of its body nothing limited its time."""
    monkeypatch.setenv("MFIMAGE_TIMEOUT", "0.2")

    async def stall() -> AsyncIterator[bytes]:
        for part in parts:
            yield part
        await asyncio.sleep(60)

    async def ask() -> httpx.Response:
        async with replica(folder) as (_, client):
            return await client.post("/predict", content=stall())

    response = asyncio.run(asyncio.wait_for(ask(), 30))
    assert response.status_code == 408
    assert response.headers["content-type"] == "application/problem+json"


def test_other_forms_are_no_lists(folder: Path) -> None:
    """The first byte of another form may be that of a list in JSON."""
    register_serializer(Literals)

    async def ask() -> list[httpx.Response]:
        async with replica(folder) as (_, client):
            headers = {"content-type": LITERAL}
            return [
                await client.post(path, content=content, headers=headers)
                for path, content in (
                    ("/predict", b"{'n': -1}"),
                    ("/predict", b"[{'n': -1}]"),
                    ("/predict/batch", b"[{'n': -1}]"),
                )
            ]

    try:
        one, refused, many = asyncio.run(ask())
    finally:
        del _registered["literal"]
    assert (one.status_code, one.content, refused.status_code) == (200, b"1", 422)
    assert many.content == b"[{'result': 1}]"


class Record(TypedDict):
    n: int


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        (int, False),
        (dict, False),
        (Record, False),
        (Record | None, False),
        (list[int], True),
        (tuple[int, int], True),
        (int | list[str], True),
        (Any, True),
    ],
)
def test_which_functions_take_lists(hint: Any, expected: bool) -> None:
    def predict(data):
        return data

    predict.__annotations__ = {"data": hint}
    assert takes_lists(live(predict).input_schema) == expected


def test_new_settings_hold_from_the_next_request_on(folder: Path) -> None:
    async def ask() -> None:
        async with replica(folder) as (made, client):
            slow = asyncio.create_task(client.post("/predict", json={"n": 5}))
            await asyncio.sleep(0.1)
            await made.reconfigure({"timeout": 0.2, "max_batch": 1})
            late = await client.post("/predict", json={"n": 5})
            assert late.status_code == 504
            assert (await slow).json() == 1
            await made.check_health()
            # A call that never ends holds the only thread, and more wait.
            stuck = [client.post("/predict", json={"n": 20}) for _ in range(3)]
            assert {each.status_code for each in await asyncio.gather(*stuck)} == {504}
            waiting = asyncio.create_task(client.post("/predict", json={"n": 1}))
            await asyncio.sleep(0.4)
            with pytest.raises(BackendError, match="predict: calls that take longer"):
                await made.check_health()
            await waiting

    asyncio.run(ask())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"replicas": 2}, "replicas: there is no such argument"),
        ({"num_replicas": 1, "autoscaling_config": {}}, "num_replicas: autoscaling_config is"),
        ({"autoscaling_config": {"most": 1}}, "autoscaling_config.most: there is no such"),
        ({"autoscaling_config": {"min_replicas": 3, "max_replicas": 1}}, "refuses the arguments"),
        ({"ray_actor_options": {"cpus": 1}}, "refuses the arguments .*cpus"),
        ({"user_config": {"port": 1}}, "user_config.port: there is no such argument"),
        ({"user_config": {"max_batch": 0}}, "user_config.max_batch: expected a whole number"),
        ({"user_config": {"timeout": "1"}}, "user_config.timeout: expected seconds"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_arguments_that_cannot_be_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch, args: Any, message: str
) -> None:
    monkeypatch.setenv("MFIMAGE_FUNCTION", str(folder))
    with pytest.raises(OptionError, match=message):
        build(args)


def test_arguments_reach_serve() -> None:
    scaling = {"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 8}
    options = ServeArgs.of({"autoscaling_config": scaling, "user_config": {"timeout": 3}}).options()
    assert options["autoscaling_config"] == scaling
    assert options["max_ongoing_requests"] == 128
    assert changed(Settings(), options["user_config"]).timeout == 3


WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(["ray.serve", "uvicorn", "fastapi", "starlette"]))
from mfimage.runtime.__main__ import main
from mfimage.runtime.ray_worker import build
try:
    build({})
except Exception as error:
    print(error)
sys.exit(main(["serve"]))
"""


def test_an_image_without_serve_says_how_to_get_it(folder: Path) -> None:
    env = {**os.environ, "MFIMAGE_TARGET": "ray", "MFIMAGE_FUNCTION": str(folder)}
    command = [sys.executable, "-c", WITHOUT]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == "serve: this image has no Ray Serve (ray.serve is missing)\n"
    assert done.stderr == (
        f"error: {done.stdout}hint: mfimage build REFERENCE --target ray --with serve\n"
    )


def test_one_of_several_functions_must_be_chosen(tmp_path: Path) -> None:
    sources = {name: Source(source=PREDICT) for name in ("one", "two")}
    made = make_functions(tmp_path / "fn", sources)
    with pytest.raises(OptionError, match="this image has several") as caught:
        _application(made, {})
    assert caught.value.hint == "one of: one, two"
    with pytest.raises(OptionError, match="'three' is not here"):
        _application(made, {"function": "three"})


# A real one


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """What ``docker run IMAGE`` runs for two functions, and its address."""
    sources = {name: Source(source=PREDICT + f"# {name}") for name in ("one", "two")}
    folder = make_functions(tmp_path / "fn", sources)
    port = free_port()
    env = {**os.environ, **SETTINGS, "MFIMAGE_TARGET": "ray", "MFIMAGE_HOST": "127.0.0.1"}
    env |= {"MFIMAGE_TIMEOUT": "8", "PORT": str(port)}
    command = [sys.executable, "-m", "mfimage.runtime", "serve", "--folder", str(folder)]
    with subprocess.Popen(command, env=env) as process:
        url = f"http://127.0.0.1:{port}"
        limit = time.monotonic() + 90
        while True:
            with contextlib.suppress(httpx.HTTPError):
                paths = ("/one/openapi.json", "/two/openapi.json")
                if all(httpx.get(url + path).status_code == 200 for path in paths):
                    break
            assert process.poll() is None
            assert time.monotonic() < limit
            time.sleep(0.2)
        try:
            yield process, url
        finally:
            process.kill()


@pytest.mark.ray
def test_each_function_has_a_deployment_that_bounds_bodies_and_ends_with_none_unanswered(
    server: Any,
) -> None:
    process, url = server
    for name in ("one", "two"):
        assert httpx.post(f"{url}/{name}", json={"n": 0}, timeout=30).json() == 1
        answers = httpx.post(f"{url}/{name}/batch", json=[{"n": 0}, {}], timeout=30).json()
        assert (answers[0], answers[1]["error"]["status"]) == ({"result": 1}, 422)
    address = httpx.URL(url)
    head = b"POST /two HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n"
    with contextlib.ExitStack() as stack:
        stalled = {}
        for sent in (b"", b" ", b'{"n": '):
            client = socket.create_connection((address.host, address.port), timeout=30)
            stalled[sent] = stack.enter_context(client)
            client.sendall(head + sent)
        for sent, client in stalled.items():
            response = client.recv(65536)
            assert response.startswith(b"HTTP/1.1 408"), (sent, response)
            assert b"application/problem+json" in response
    found: list[Any] = []

    def ask() -> None:
        found.append(httpx.post(f"{url}/two", json={"n": 20}, timeout=30))

    asking = [threading.Thread(target=ask) for _ in range(3)]
    for thread in asking:
        thread.start()
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    for thread in asking:
        thread.join()
    assert process.wait(60) == 0
    assert [each.status_code for each in found] == [200, 200, 200]
    assert {each.json() for each in found} <= {1, 2, 3}  # the records of a call
