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

from mfimage.package.store import open_package
from mfimage.package.unpack import unpack
from mfimage.runtime import records
from mfimage.runtime.loader import load_function
from tests.backends.calls import CALLS, Call, Way, check
from tests.runtime.servers import Server, running, until


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


def over_http(servers: Mapping[str, Server]) -> Way:
    def ask(name: str, record: Any) -> Any:
        body = json.dumps(record).encode()
        answer = httpx.post(f"{servers[name].url}/{name}", content=body, timeout=60)
        return outcome(answer.status_code, json.loads(answer.content))

    return ask


def in_a_list(servers: Mapping[str, Server]) -> Way:
    def ask(name: str, record: Any) -> Any:
        body = json.dumps([record]).encode()
        answer = httpx.post(f"{servers[name].url}/{name}/batch", content=body, timeout=60)
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


@pytest.mark.parametrize("way", [over_http, in_a_list])
@pytest.mark.parametrize("call", CALLS, ids=str)
def test_over_http(call: Call, way: Any, servers: Mapping[str, Server]) -> None:
    if not call.error:
        check(call, way(servers))
        return
    with pytest.raises(Answered) as caught:
        way(servers)(call.function, call.record)
    if call.error == "InputError":
        assert caught.value.status == 422
        if "NaN" not in json.dumps(call.record):  # which is no JSON, whatever the path
            assert str(caught.value).startswith(call.message)
    else:
        # What went wrong inside is for the log.
        assert caught.value.status == 500
        assert "Traceback" not in json.dumps(caught.value.problem)


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_by_lines(call: Call, bound_calls: Mapping[str, str], tmp_path: Path) -> None:
    package = open_package(bound_calls[call.function])
    unpack(package.spec, package.store, tmp_path)
    fn = load_function(
        package.spec, code=tmp_path / "code", read_blob=package.read, dedicated=False
    )
    out = io.BytesIO()
    lines = io.BytesIO(json.dumps(call.record).encode() + b"\n")
    try:
        if not call.error:
            records.call(fn, lines, out)
            check(call, lambda _name, _record: json.loads(out.getvalue()))
            return
        with pytest.raises(records.RecordFailed) as caught:
            records.call(fn, lines, out)
        assert out.getvalue() == b""
        assert type(caught.value.__cause__).__name__ == call.error
    finally:
        fn.close()
