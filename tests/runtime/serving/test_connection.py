"""Limits from a connection's first byte on, and clients as they are; over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from mfimage.runtime.serving.http.server import Server
from mfimage.runtime.serving.service import InFlight
from mfimage.runtime.settings import Settings
from tests.runtime.apps import Served, served
from tests.runtime.packages import live

RECORD = b"POST /double HTTP/1.1\r\nhost: x\r\n"
BODY = b"content-length: 2\r\n\r\n21"
HEALTH = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
H2C = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEA\r\n"
LARGE = 32 * 1024**2


def double(data: int) -> int:
    return data * 2


def enlarge(data: int) -> str:
    return "x" * LARGE


class Client:
    def __init__(self, port: int) -> None:
        self._port = port

    async def __aenter__(self) -> Client:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    async def send(self, *parts: bytes) -> None:
        for part in parts:
            self.writer.write(part)
            with contextlib.suppress(ConnectionError):
                await self.writer.drain()
            await asyncio.sleep(0.02)

    async def receive(self) -> tuple[int, dict[str, str], bytes]:
        head = await self.reader.readuntil(b"\r\n\r\n")
        line, *lines = head.decode().strip().split("\r\n")
        headers = dict(each.split(": ", 1) for each in lines)
        body = await self.reader.readexactly(int(headers["content-length"]))
        return int(line.split()[1]), headers, body

    async def ask(self, *parts: bytes) -> tuple[int, dict[str, str], bytes]:
        await self.send(*parts)
        return await self.receive()

    async def is_closed(self) -> bool:
        with contextlib.suppress(ConnectionError):
            return await self.reader.read() == b""
        return True


@dataclass
class Listening:
    served: Served
    server: Server
    port: int

    def connect(self) -> Client:
        return Client(self.port)

    def requests(self) -> dict[tuple[str, str], float]:
        return self.served.requests()

    def waiting(self) -> InFlight:
        assert self.served.service.inflight is not None
        return self.served.service.inflight


@contextlib.asynccontextmanager
async def listening(fn: Any = double, **given: Any) -> AsyncIterator[Listening]:
    async with served(live(fn), **given) as it:
        server = Server(it.app, Settings(**given), None)
        server.config.load()
        state = server.server_state

        def connect() -> asyncio.Protocol:
            made: asyncio.Protocol = server.config.http_protocol_class(
                config=server.config, server_state=state, app_state={}
            )
            return made

        sockets = await asyncio.get_running_loop().create_server(connect, "127.0.0.1", 0)
        server._sweep()
        yield Listening(it, server, sockets.sockets[0].getsockname()[1])
        sockets.close()


def run(test: Callable[[Listening], Awaitable[None]], fn: Any = double, **given: Any) -> None:
    async def go() -> None:
        async with listening(fn, **given) as it:
            await asyncio.wait_for(test(it), 60)

    asyncio.run(go())


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.02)


def problem(answer: tuple[int, dict[str, str], bytes]) -> tuple[int, str]:
    status, headers, body = answer
    assert headers["content-type"] == "application/problem+json"
    document = json.loads(body)
    assert (document["status"], document["request_id"]) == (status, headers["x-request-id"])
    return status, document["detail"]


def test_requests_in_one_packet_get_their_responses_in_order() -> None:
    head = HEALTH.replace(b"GET", b"HEAD")
    chunked = b"transfer-encoding: chunked\r\n\r\n1\r\n2\r\n1\r\n2\r\n0\r\n\r\n"
    old = RECORD.replace(b"1.1", b"1.0")

    async def test(it: Listening) -> None:
        it.server.server_state.default_headers = [(b"date", b"today")]
        async with it.connect() as client:
            await client.send(RECORD + BODY + head + RECORD + chunked + old + BODY)
            assert (await client.receive())[2] == b"42"
            empty = await client.reader.readuntil(b"\r\n\r\n")
            assert empty.startswith(b"HTTP/1.1 200 OK\r\n")
            assert empty.endswith(b"\r\ndate: today\r\n\r\n")
            status, headers, body = await client.receive()
            assert (status, body, "connection" in headers) == (200, b"44", False)
            status, headers, body = await client.receive()
            assert (status, body, headers["connection"]) == (200, b"42", "close")
            assert await client.is_closed()
        assert it.requests()["record", "200"] == 3.0
        await until(lambda: not it.server.server_state.tasks)

    run(test)


def test_a_client_that_asks_first_is_asked_for_its_body() -> None:
    async def test(it: Listening) -> None:
        async with it.connect() as client:
            await client.send(RECORD + b"expect: 100-continue\r\n" + BODY[:-2])
            assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            assert (await client.ask(b"21"))[2] == b"42"
            # What has sent it already needs no leave.
            assert (await client.ask(RECORD + b"expect: 100-continue\r\n" + BODY))[0] == 200

    run(test)


@pytest.mark.parametrize(
    "parts",
    [
        [RECORD + H2C + BODY],
        [RECORD + H2C + BODY[:-2], BODY[-2:]],
        [RECORD + H2C[:30], H2C[30:] + BODY],
        [RECORD + H2C + b"transfer-encoding: chunked\r\n\r\n", b"2\r\n21\r\n0\r\n\r\n"],
        [RECORD + b"connection: upgrade\r\nupgrade: websocket\r\n" + BODY],
    ],
)
def test_an_upgrade_that_is_offered_is_ignored_and_the_body_read(parts: list[bytes]) -> None:
    """Java's client offers h2c with every request; llhttp takes the body for another protocol."""

    async def test(it: Listening) -> None:
        async with it.connect() as client:
            assert (await client.ask(*parts))[::2] == (200, b"42")
            assert (await client.ask(*parts))[::2] == (200, b"42")
            await client.send(parts[0] + b"".join(parts[1:]) + HEALTH)
            assert (await client.receive())[0] == (await client.receive())[0] == 200

    run(test)


def test_many_upgrades_in_one_packet_are_no_recursion() -> None:
    async def test(it: Listening) -> None:
        async with it.connect() as client:
            one = b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"
            await client.send(one * 1500)
            for _ in range(1500):
                assert (await client.receive())[0] == 200

    run(test)


@pytest.mark.parametrize("sent", [BODY[:-1], b"transfer-encoding: chunked\r\n\r\n5\r\n2"])
def test_a_body_that_stalls_gets_408_and_is_counted(sent: bytes) -> None:
    async def test(it: Listening) -> None:
        async with it.connect() as client:
            answer = await client.ask(RECORD + sent)
            assert problem(answer) == (
                408, "the request did not arrive within 0.3 s (MFIMAGE_TIMEOUT)",
            )  # fmt: skip
            assert await client.is_closed()
        assert it.requests() == {("record", "408"): 1}
        assert len(it.waiting()) == 0

    run(test, timeout=0.3)


@pytest.mark.parametrize("sent", [b"P", RECORD, RECORD + b"x: "])
def test_headers_that_stall_get_408_and_are_counted(sent: bytes) -> None:
    async def test(it: Listening) -> None:
        async with it.connect() as client:
            assert problem(await client.ask(sent))[0] == 408
            assert await client.is_closed()
        async with it.connect() as client:  # after a good request, too
            assert (await client.ask(RECORD + BODY))[0] == 200
            assert problem(await client.ask(sent))[0] == 408
        assert it.requests() == {("other", "408"): 2, ("record", "200"): 1}
        assert b'"status":408' in it.served.lines.data

    run(test, timeout=0.3)


def test_a_body_that_stalls_after_its_response_is_not_waited_for() -> None:
    async def test(it: Listening) -> None:
        async with it.connect() as client:
            start = RECORD + b"content-type: text/csv\r\ncontent-length: 9\r\n\r\n1"
            assert problem(await client.ask(start, b"2"))[0] == 415
            await client.send(b"3")
            assert await client.is_closed()

    run(test, timeout=0.3)


def test_a_client_that_never_sends_is_closed() -> None:
    async def test(it: Listening) -> None:
        async with it.connect() as silent, it.connect() as blank, it.connect() as used:
            await blank.send(b"\r\n")
            assert (await used.ask(HEALTH))[0] == 200
            for client in (silent, blank, used):
                assert await client.is_closed()

    run(test, keep_alive=1, timeout=2.0)


@pytest.mark.parametrize(
    "sent",
    [
        HEALTH[:-2] + b"x: " + b"a" * 70_000 + b"\r\n\r\n",
        HEALTH[:-2] + b"x: " + b"a" * 70_000,
        HEALTH[:-2] + b"x: a\r\n" * 12_000 + b"\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        HEALTH + HEALTH[:-2] + b"x: " + b"a" * 70_000 + b"\r\n\r\n",
    ],
)
def test_headers_over_64_kib_get_431(sent: bytes) -> None:
    async def test(it: Listening) -> None:
        async with it.connect() as client:
            await client.send(sent)
            if sent.startswith(HEALTH):
                assert (await client.receive())[0] == 200
                # The first response may be under way when the second request is refused.
            else:
                assert problem(await client.receive())[0] == 431
                assert it.requests() == {("other", "431"): 1}
            await client.is_closed()

    run(test)


@pytest.mark.parametrize(
    "flood",
    [
        RECORD + b"x: ",
        RECORD + b"transfer-encoding: chunked\r\n\r\n2;x=",
        RECORD + b"transfer-encoding: chunked\r\n\r\n2\r\n21\r\n0\r\nx: ",
        RECORD + b"transfer-encoding: chunked\r\n\r\n2\r\n21\r\n0\r\nx: y\r\nx: ",
    ],
)
def test_endless_headers_extensions_and_trailers_are_cut_off(flood: bytes) -> None:
    """Each was kept, and copied with every packet: 48 MiB of a header took minutes."""

    async def test(it: Listening) -> None:
        async with it.connect() as client:
            await client.send(flood)
            for _ in range(64):
                client.writer.write(b"a" * 65536)
                with contextlib.suppress(ConnectionError):
                    await client.writer.drain()
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                assert problem(await client.receive())[0] == 431
            await until(lambda: not it.server.server_state.connections)
        (counted,) = it.requests()
        assert counted[1] == "431"

    run(test)


def test_what_fits_into_64_kib_is_served() -> None:
    async def test(it: Listening) -> None:
        async with it.connect() as client:
            large = b"x: " + b"a" * 60_000 + b"\r\n"
            assert (await client.ask(RECORD + large + BODY))[0] == 200
            assert (await client.ask(RECORD + large, BODY))[0] == 200
            padded = b"content-length: 200002\r\n\r\n21" + b" " * 200_000
            assert (await client.ask(RECORD + large + H2C + padded))[::2] == (200, b"42")

    run(test)


def test_what_is_not_http_gets_a_problem_document_and_is_counted() -> None:
    async def test(it: Listening) -> None:
        for sent in (
            b"\x16\x03\x01\x02\x00",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"NO / HTTP/1.1\r\n",
        ):
            async with it.connect() as client:
                status, detail = problem(await client.ask(sent))
                assert (status, detail[:9]) == (400, "not HTTP:")
                assert await client.is_closed()
        assert it.requests() == {("other", "400"): 3}

    run(test)


def test_a_chunk_that_is_not_one_gets_400_and_is_counted_once() -> None:
    async def test(it: Listening) -> None:
        for parts in ([b"zz\r\n"], [b"", b"zz\r\n"], [b"2\r\n21\r\n", b"zz\r\n"]):
            async with it.connect() as client:
                start = RECORD + b"transfer-encoding: chunked\r\n\r\n"
                answer = await client.ask(start + parts[0], *parts[1:])
                assert problem(answer)[0] == 400
                assert await client.is_closed()
        assert it.requests() == {("record", "400"): 3}

    run(test)


def test_nonsense_after_a_request_does_not_cut_off_its_response() -> None:
    async def test(it: Listening) -> None:
        async with it.connect() as client:
            assert (await client.ask(RECORD + BODY + b"\x00nonsense"))[::2] == (200, b"42")
            assert await client.is_closed()

    run(test)


def test_bodies_that_arrive_count_as_waiting() -> None:
    """30 uploads of 15 MiB stood in memory, however many were admitted."""

    async def test(it: Listening) -> None:
        async with it.connect() as one, it.connect() as two, it.connect() as three:
            for client in (one, two):
                await client.send(RECORD + BODY[:-1])
            assert problem(await three.ask(RECORD + BODY[:-1]))[0] == 503
            assert (await three.ask(b"1" + HEALTH))[0] == 200
            for client in (one, two):
                assert (await client.ask(b"1"))[0] == 200
            assert (await three.ask(RECORD + BODY))[0] == 200

    run(test, max_waiting=2)


def test_headers_that_arrive_are_counted_too() -> None:
    async def test(it: Listening) -> None:
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(it.connect()) for _ in range(5)]
            for client in clients:
                await client.send(RECORD)
            await until(lambda: it.requests() == {("other", "503"): 3})

    run(test, max_waiting=2, timeout=5.0)


def test_a_client_that_does_not_read_its_response_is_closed() -> None:
    async def test(it: Listening) -> None:
        async with it.connect() as client:
            await client.send(RECORD.replace(b"double", b"enlarge") + BODY)
            await until(lambda: ("record", "200") in it.requests())
            await until(lambda: not it.server.server_state.connections)
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await client.receive()

    run(test, enlarge, timeout=1.0)


def test_without_a_timeout_bodies_have_the_default_one() -> None:
    async def test(it: Listening) -> None:
        assert it.waiting()._patience == Settings.timeout == 60

    run(test, timeout=0.0)


def test_bodies_in_memory_have_a_limit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """2048 connections with 16 MiB each were admitted."""
    monkeypatch.setattr(Settings, "max_held", 1000)
    start = RECORD + b"content-length: 400\r\n\r\n"

    async def test(it: Listening) -> None:
        async with it.connect() as one, it.connect() as two, it.connect() as three:
            for client in (one, two):
                await client.send(start + b" " * 398)
            answer = await three.ask(start + b" " * 398)
            assert problem(answer) == (503, "request bodies of 1000 bytes in total wait already")
            assert answer[1]["retry-after"] == "1"
            assert it.served.services.bodies.held == 796
            for client in (one, two):
                assert (await client.ask(b"21"))[::2] == (200, b"42")
            assert it.served.services.bodies.held == 0
        async with it.connect() as four:
            assert (await four.ask(start + b" " * 398, b"21"))[0] == 200

    run(test)


def test_bodies_of_calls_that_run_are_in_memory_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Settings, "max_held", 1000)
    release = threading.Event()

    def wait(data: int) -> int:
        release.wait(60)
        return data

    start = RECORD.replace(b"double", b"wait") + b"content-length: 600\r\n\r\n" + b" " * 599

    async def test(it: Listening) -> None:
        async with it.connect() as one, it.connect() as two:
            await one.send(start + b"1")
            await until(lambda: it.served.services.bodies.held == 600)
            assert problem(await two.ask(start + b"1"))[0] == 503
            release.set()
            assert (await one.receive())[0] == 200
            assert it.served.services.bodies.held == 0

    run(test, wait)
