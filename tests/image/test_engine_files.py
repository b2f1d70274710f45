from __future__ import annotations

import hashlib
from collections import deque
from pathlib import Path
from typing import Any

import pytest

from mfimage.image.engine_files import FileSync
from mfimage.image.engine_grpc import CallError, GrpcServer
from mfimage.image.engine_wire import encode_bytes, encode_int, fields, last_bytes
from mfimage.image.plan.files import ContextFile
from tests.support.fake_engine import GrpcClient

STAT, REQUEST, DATA, FINISH, ERROR = range(5)
FINISHED = encode_int(1, FINISH)


def want(number: int) -> bytes:
    return encode_int(1, REQUEST) + encode_int(3, number)


def transfer(files: list[ContextFile], *packets: bytes, **metadata: str) -> list[dict[int, Any]]:
    """Ask for files; return the packets that came."""
    server = GrpcServer({"/Diff": FileSync(files)})
    headers, answers = GrpcClient().call(server.receive, "/Diff", *packets, **metadata)
    assert headers["grpc-status"] == "0", headers
    return [dict(fields(answer)) for answer in answers]


def stats(packets: list[dict[int, Any]]) -> list[dict[int, Any]]:
    return [
        dict(fields(bytes(packet[2])))
        for packet in packets
        if packet.get(1) == STAT and 2 in packet
    ]


def paths(packets: list[dict[int, Any]]) -> list[str]:
    return [bytes(stat[1]).decode() for stat in stats(packets)]


def make(*names: str) -> list[ContextFile]:
    return [ContextFile(path=name, content=name.encode()) for name in names]


def test_folders_come_before_their_files_and_in_the_order_of_path_components() -> None:
    files = make("a.txt", "a/b/c", "a-b/c", "Dockerfile", "a/a")
    packets = transfer(files, FINISHED)
    assert paths(packets) == ["Dockerfile", "a", "a/a", "a/b", "a/b/c", "a-b", "a-b/c", "a.txt"]
    assert packets[-1][1] == FINISH


def test_only_what_is_asked_for_is_sent(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"x" * 700_000)
    files = [*make("a", "b"), ContextFile(path="c", content=tmp_path / "big")]
    packets = transfer(files, want(2), want(1), FINISHED)
    received: dict[object, bytes] = {}
    ended = []
    for packet in packets:
        if packet[1] == DATA and 4 in packet:
            received[packet[3]] = received.get(packet[3], b"") + bytes(packet[4])
        elif packet[1] == DATA:
            ended.append(packet[3])
    assert received == {2: b"x" * 700_000, 1: b"b"}
    assert ended == [2, 1]


def test_a_file_is_described() -> None:
    file = ContextFile(path="run", content=b"abc", mode=0o755)
    (stat,) = stats(transfer([file], FINISHED))
    assert stat[2] == 0o755
    assert stat[5] == 3
    assert int(stat[6]) // 10**9 == 315_532_800


def test_another_content_of_equal_size_has_another_time_in_the_same_second() -> None:
    one = ContextFile(path="a", content=b"aaaa").mtime_ns()
    other = ContextFile(path="a", content=b"aaab").mtime_ns()
    assert one != other
    assert one // 10**9 == other // 10**9


def test_the_time_depends_on_the_content_alone(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    digest = "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"
    times = {
        ContextFile(path="a", content=b"content").mtime_ns(),
        ContextFile(path="b", content=tmp_path / "a").mtime_ns(),
        ContextFile(path="c", content=tmp_path / "absent", digest=digest).mtime_ns(),
    }
    assert len(times) == 1


@pytest.mark.parametrize("name", ["followpaths", "include_patterns"])
@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("Dockerfile", ["Dockerfile"]),
        (".dockerignore", []),
        ("code", ["code", "code/a.py", "code/sub", "code/sub/b.py"]),
        ("/code/sub/", ["code", "code/sub", "code/sub/b.py"]),
        ("code/*.py", ["code", "code/a.py"]),
        ("./code/a.py", ["code", "code/a.py"]),
        (".", ["Dockerfile", "code", "code/a.py", "code/sub", "code/sub/b.py", "codes"]),
    ],
)
def test_the_engine_may_ask_for_a_part(name: str, pattern: str, found: list[str]) -> None:
    files = make("Dockerfile", "code/a.py", "code/sub/b.py", "codes")
    assert paths(transfer(files, FINISHED, **{name: pattern})) == found


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    sync = FileSync([ContextFile(path="a", content=tmp_path / "gone")])
    with pytest.raises(CallError, match=r"cannot read .*gone: No such file"):
        list(sync({}, deque()))


def test_a_content_that_does_not_fit_its_digest_is_not_finished() -> None:
    good = ContextFile(path="a", content=b"content")
    file = ContextFile(path="a", content=b"c0ntent", digest=hashlib.sha256(b"content").hexdigest())
    assert file.mtime_ns() == good.mtime_ns()
    server = GrpcServer({"/Diff": FileSync([file])})
    headers, answers = GrpcClient().call(server.receive, "/Diff", want(0), FINISHED)
    assert headers["grpc-status"] == "15"
    assert dict(fields(answers[-1]))[4] == b"c0ntent"


def test_the_engines_own_error_ends_the_transfer() -> None:
    error = encode_int(1, ERROR) + encode_bytes(4, b"disk full")
    transfer_ = FileSync(make("a"))({}, deque([error]))
    with pytest.raises(CallError, match="disk full"):
        list(transfer_)


def test_a_request_for_what_is_no_file_is_left_alone() -> None:
    packets = transfer(make("a/b"), want(0), want(99), FINISHED)
    assert [packet[1] for packet in packets] == [STAT, STAT, STAT, FINISH]
    assert last_bytes(FINISHED, 2) == b""
