"""The table of calls through a real server, and through ``mfimage call``."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from mfimage.errors import OutputError, RecordError
from mfimage.function.avro import AvroSerializer
from mfimage.package.archive import unpack
from mfimage.package.store import open_package
from mfimage.runtime.loading.loader import LiveFunction, load_function
from mfimage.runtime.records import run
from mfimage.runtime.records.files import open_sink
from mfimage.runtime.records.formats import choose_format
from tests.backends.calls import CALLS, Call, Caller, check
from tests.runtime.servers import Server, running, until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def servers(
    bound_calls: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Server]]:
    """A server for each function, all at once."""
    with ExitStack() as stack:
        started = {}
        for name, reference in bound_calls.items():
            folder = tmp_path_factory.mktemp(name)
            package = open_package(reference)
            unpack(package.spec, package.store, folder)
            started[name] = stack.enter_context(running(folder))
        for server in started.values():
            until(lambda server=server: is_ready(server))
        yield started


def is_ready(server: Server) -> bool:
    try:
        return server.get("/readyz").status_code == 200
    except httpx.ConnectError:
        return False


JSON = {"Content-Type": "application/json"}  # an avro function assumes none


def over_http(servers: Mapping[str, Server]) -> Caller:
    def ask(name: str, record: Any) -> Any:
        body = json.dumps(record).encode()
        answer = httpx.post(f"{servers[name].url}/{name}", content=body, headers=JSON, timeout=60)
        return outcome(answer.status_code, json.loads(answer.content))

    return ask


def in_a_list(servers: Mapping[str, Server]) -> Caller:
    def ask(name: str, record: Any) -> Any:
        body = json.dumps([record]).encode()
        answer = httpx.post(
            f"{servers[name].url}/{name}/batch", content=body, headers=JSON, timeout=60
        )
        if answer.status_code != 200:  # the list itself is no JSON
            return outcome(answer.status_code, json.loads(answer.content))
        (item,) = json.loads(answer.content)
        problem = item.get("error")
        return outcome(problem["status"], problem) if problem else item["result"]

    return ask


class Answered(Exception):
    """A problem document."""

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        super().__init__(problem.get("detail", ""))
        self.status = status
        self.problem = problem


def outcome(status: int, answer: Any) -> Any:
    if status == 200:
        return answer
    raise Answered(status, answer)


@pytest.mark.parametrize("method", [over_http, in_a_list])
@pytest.mark.parametrize("call", CALLS, ids=str)
def test_over_http(call: Call, method: Any, servers: Mapping[str, Server]) -> None:
    if not call.error:
        check(call, method(servers))
        return
    with pytest.raises(Answered) as caught:
        method(servers)(call.function, call.record)
    if call.error == "InputError":
        assert caught.value.status == 422
        if "NaN" not in json.dumps(call.record):  # which is no JSON, whatever the path
            assert str(caught.value).startswith(call.message)
    else:
        # What went wrong inside is for the log.
        assert caught.value.status == 500
        assert "Traceback" not in json.dumps(caught.value.problem)


AVRO = "application/avro"
# Of each function that has Avro schemas, whether lists of its records have one.
IN_AVRO = {
    "area": True, "bloom": True, "cut": True, "doubled": True, "doubled_later": True,
    "fails": True, "later": True, "names": False, "pick": True, "settings": False,
    "typed": True, "wrong": True,
}  # fmt: skip


class AvroPath:
    """A path that takes Avro, by its documentation."""

    def __init__(self, server: Server, path: str) -> None:
        post = server.get("/openapi.json").json()["paths"][path]["post"]
        self.url = server.url + path
        self.takes = post["requestBody"]["content"].get(AVRO)
        self.gives = post["responses"]["200"]["content"].get(AVRO)

    def ask(self, record: Any) -> Any:
        avro = AvroSerializer()
        body = avro.dumps(record, self.takes["x-avro-schema"])
        answer = httpx.post(self.url, content=body, headers={"Content-Type": AVRO}, timeout=60)
        if answer.status_code != 200:
            return outcome(answer.status_code, json.loads(answer.content))
        assert answer.headers["content-type"] == AVRO
        return avro.loads(answer.content, self.gives["x-avro-schema"])


def test_documented_avro_paths(servers: Mapping[str, Server]) -> None:
    for name, server in servers.items():
        paths = (f"/{name}", f"/{name}/batch")
        documented = [AvroPath(server, path).takes is not None for path in paths]
        assert documented == [name in IN_AVRO, IN_AVRO.get(name, False)], name


@pytest.mark.parametrize("call", [call for call in CALLS if call.function in IN_AVRO], ids=str)
def test_in_avro(call: Call, servers: Mapping[str, Server]) -> None:
    ask = AvroPath(servers[call.function], f"/{call.function}").ask
    if not call.error:
        check(call, lambda _name, record: ask(record))
        return
    # What the schema has no form for cannot even be asked; the rest is refused as in JSON.
    with pytest.raises((Answered, OutputError)) as caught:
        ask(call.record)
    if isinstance(caught.value, Answered):
        assert caught.value.status == (422 if call.error == "InputError" else 500)
        assert caught.value.status == 500 or str(caught.value).startswith(call.message)
    else:
        assert call.error == "InputError"


@pytest.mark.parametrize("call", [call for call in CALLS if IN_AVRO.get(call.function)], ids=str)
def test_in_an_avro_list(call: Call, servers: Mapping[str, Server]) -> None:
    ask = AvroPath(servers[call.function], f"/{call.function}/batch").ask
    try:
        (item,) = ask([call.record])
    except OutputError:
        assert call.error == "InputError"
        return
    if not call.error:
        check(call, lambda _name, _record: item["result"])
    else:
        assert item["error"]["status"] == (422 if call.error == "InputError" else 500)


def write(fn: LiveFunction, lines: Any, sink: Any) -> None:
    run.stop_at_failure(
        run.invoke_each(fn, lines), sink.append_json, sink.flush, name=fn.name, unit="line"
    )


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_by_lines(call: Call, bound_calls: Mapping[str, str], tmp_path: Path) -> None:
    package = open_package(bound_calls[call.function])
    unpack(package.spec, package.store, tmp_path)
    fn = load_function(
        package.spec, code=tmp_path / "code", read_blob=package.read, dedicated=False
    )
    out = io.BytesIO()
    lines = [(1, json.dumps(call.record).encode() + b"\n")]
    try:
        if not call.error:
            with open_sink(out, choose_format("-"), fn) as sink:
                write(fn, lines, sink)
            check(call, lambda _name, _record: json.loads(out.getvalue()))
            return
        with (
            pytest.raises(RecordError) as caught,
            open_sink(out, choose_format("-"), fn) as sink,
        ):
            write(fn, lines, sink)
        assert out.getvalue() == b""
        assert type(caught.value.__cause__).__name__ == call.error
    finally:
        fn.close()
