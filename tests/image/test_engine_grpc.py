from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import pytest
from h2.events import DataReceived

from mfimage.image.engine_grpc import CallError, GrpcServer, Handler, Metadata, unary
from tests.support.fake_engine import GrpcClient, request_headers


def shout(request: bytes) -> bytes:
    return request.upper()


def refuse(request: bytes) -> bytes:
    raise CallError(5, "no such thing: 100% gone")


def crash(request: bytes) -> bytes:
    raise RuntimeError(f"leaks {request!r}")


def count(metadata: Metadata, inbox: deque[bytes]) -> Iterator[bytes | None]:
    """Answer each message at once, until one says stop."""
    yield metadata["greeting"][0].encode()
    while True:
        while not inbox:
            yield None
        message = inbox.popleft()
        if message == b"stop":
            return
        yield message * 2


HANDLERS: dict[str, Handler] = {
    "/t/Shout": unary(shout),
    "/t/Refuse": unary(refuse),
    "/t/Crash": unary(crash),
    "/t/Count": count,
    "/t/Grow": unary(lambda request: b"x" * int(request)),
}


@pytest.fixture
def server() -> GrpcServer:
    return GrpcServer(HANDLERS)


@pytest.fixture
def client() -> GrpcClient:
    return GrpcClient()


def test_a_message_is_answered(server: GrpcServer, client: GrpcClient) -> None:
    headers, answers = client.call(server.receive, "/t/Shout", b"hello")
    assert headers[":status"] == "200"
    assert headers["content-type"] == "application/grpc"
    assert headers["grpc-status"] == "0"
    assert answers == [b"HELLO"]


def test_calls_follow_each_other_on_one_connection(server: GrpcServer, client: GrpcClient) -> None:
    for word in (b"a", b"", b"c" * 10_000):
        assert client.call(server.receive, "/t/Shout", word)[1] == [word.upper()]


def test_an_unknown_method_is_unimplemented(server: GrpcServer, client: GrpcClient) -> None:
    headers, answers = client.call(server.receive, "/t/Other", b"")
    assert headers["grpc-status"] == "12"
    assert answers == []


def test_a_refusal_carries_its_code_and_message(server: GrpcServer, client: GrpcClient) -> None:
    headers, _ = client.call(server.receive, "/t/Refuse", b"")
    assert headers["grpc-status"] == "5"
    assert headers["grpc-message"] == "no such thing: 100%25 gone"


def test_a_crash_is_told_without_the_value(server: GrpcServer, client: GrpcClient) -> None:
    headers, _ = client.call(server.receive, "/t/Crash", b"hunter2")
    assert headers["grpc-status"] == "13"
    assert headers["grpc-message"] == "RuntimeError"


def test_a_call_without_a_message_is_refused(server: GrpcServer, client: GrpcClient) -> None:
    headers, _ = client.call(server.receive, "/t/Shout")
    assert headers["grpc-status"] == "3"


def test_a_stream_answers_message_by_message(server: GrpcServer, client: GrpcClient) -> None:
    headers, answers = client.call(
        server.receive, "/t/Count", b"1", b"2", b"stop", b"3", greeting="hi"
    )
    assert headers["grpc-status"] == "0"
    assert answers == [b"hi", b"11", b"22"]


@pytest.mark.parametrize("window", [1, 1000, 65535, 1 << 20])
def test_a_large_answer_keeps_to_the_window(server: GrpcServer, window: int) -> None:
    size = 20_000 if window == 1 else 500_000
    headers, answers = GrpcClient(window).call(server.receive, "/t/Grow", str(size).encode())
    assert headers["grpc-status"] == "0"
    assert answers == [b"x" * size]


def test_a_call_that_is_given_up_does_not_end_the_session(
    server: GrpcServer, client: GrpcClient
) -> None:
    http = client.http
    http.send_headers(1, request_headers("/t/Grow"))
    http.send_data(1, b"\x00\x00\x00\x00\x06999999", end_stream=True)
    first = server.receive(http.data_to_send())  # as much as the window takes
    assert 60_000 < len(first) < 70_000
    for event in http.receive_data(first):
        if isinstance(event, DataReceived):
            http.acknowledge_received_data(event.flow_controlled_length, 1)
    http.reset_stream(1)
    assert client.call(server.receive, "/t/Shout", b"hello")[1] == [b"HELLO"]


def test_a_call_that_is_given_up_at_once_is_not_answered(
    server: GrpcServer, client: GrpcClient
) -> None:
    http = client.http
    http.send_headers(1, request_headers("/t/Shout"))
    http.send_data(1, b"\x00\x00\x00\x00\x01a", end_stream=True)
    http.reset_stream(1)
    server.receive(http.data_to_send())
    assert client.call(server.receive, "/t/Shout", b"hello")[1] == [b"HELLO"]


def test_a_message_too_large_is_refused(server: GrpcServer, client: GrpcClient) -> None:
    http = client.http
    http.send_headers(1, request_headers("/t/Shout"))
    http.send_data(1, b"\x00\x7f\xff\xff\xff")
    headers, _ = client.collect(server.receive, 1)
    assert headers["grpc-status"] == "8"


def test_a_peer_that_speaks_something_else_is_a_connection_error(server: GrpcServer) -> None:
    with pytest.raises(ConnectionError, match="HTTP/2"):
        server.receive(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3)
