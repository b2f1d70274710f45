"""``fn.serve()``: a server in the background that outlives nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from mfimage.errors import BackendError, OptionError
from mfimage.load import JsonFunction, _opened
from mfimage.runtime.worker import lifeline
from mfimage.serve import FunctionServer
from tests.support.packages import make_package

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where servers unpack packages."""
    folder = tmp_path_factory.mktemp("tmp")
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


@pytest.fixture(scope="module")
def fn(tmp_path_factory: pytest.TempPathFactory) -> JsonFunction:
    return _opened(make_package(tmp_path_factory.mktemp("root")))


def post(url: str, value: object) -> object:
    request = urllib.request.Request(f"{url}/predict", data=json.dumps(value).encode())
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


def is_open(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def until_closed(port: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while is_open(port):
        assert time.monotonic() < deadline, "the port is still open"
        time.sleep(0.02)


def port_of(server: FunctionServer) -> int:
    return int(server.url.rpartition(":")[2])


def test_a_server_from_start_to_stop(fn: JsonFunction, temporary: Path) -> None:
    server = fn.serve(max_batch=7)
    assert repr(server) == f"<Server of predict at {server.url}>"
    assert post(server.url, {"x": 4}) == {"y": 12}
    assert '"ready: POST /predict"' in server.logs()
    bundle = server._repr_mimebundle_(include=None, exclude=None)
    assert bundle["text/plain"] == repr(server)
    assert f'<iframe src="{server.url}/" title="predict"' in bundle["text/html"]
    for _ in range(2):
        server.stop()
    assert not is_open(port_of(server))
    assert (repr(server), server._repr_html_()) == ("<Server of predict, stopped>", None)
    until_empty(temporary)


def until_empty(folder: Path) -> None:
    deadline = time.monotonic() + 5
    while found := list(folder.iterdir()):
        assert time.monotonic() < deadline, found
        time.sleep(0.02)


def test_only_this_machine_can_connect(fn: JsonFunction) -> None:
    with fn.serve() as server:
        assert server.url.startswith("http://127.0.0.1:")
        with socket.socket() as sock:
            sock.settimeout(5)
            assert sock.connect_ex(("127.0.0.2", port_of(server))) != 0
        given = port_of(server)
    with fn.serve(given) as server:
        assert port_of(server) == given


def test_a_page_of_another_origin_may_embed_it(
    fn: JsonFunction, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notebook has another origin than the server."""
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/al<i>ce/")
    with fn.serve() as server:
        path = f"/user/al&lt;i&gt;ce/proxy/{port_of(server)}/"
        assert f'<iframe src="{path}"' in str(server._repr_html_())
        request = urllib.request.Request(server.url, headers={"Accept": "text/html"})
        with urllib.request.urlopen(request, timeout=30) as response:
            assert not response.headers.get("X-Frame-Options")
            assert "frame-ancestors 'none'" not in response.headers.get(
                "Content-Security-Policy", ""
            )


def test_what_a_server_refuses_is_refused_before_it_starts(fn: JsonFunction) -> None:
    with pytest.raises(OptionError, match="threads: expected a whole number from 1 to 4096"):
        fn.serve(threads=0)
    with pytest.raises(OptionError, match="unknown setting 'thread'") as caught:
        fn.serve(thread=1)
    assert "threads" in str(caught.value.hint)
    with pytest.raises(OptionError, match=r"cannot listen on 192\.0\.2\.1:0"):
        fn.serve(host="192.0.2.1")
    with fn.serve() as server:  # which would answer in the name of the other
        port = port_of(server)
        with pytest.raises(OptionError, match=f"cannot listen on 127.0.0.1:{port}: Address alr"):
            fn.serve(port)


def test_a_platforms_own_port_does_not_outrank_what_is_given(
    fn: JsonFunction, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAGEMAKER_BIND_TO_PORT", "1")
    with fn.serve(access_log=False) as server:
        assert post(server.url, {"x": 1}) == {"y": 3}


def test_a_server_that_fails_says_why(
    fn: JsonFunction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = _opened(make_package(tmp_path, {"predict.py": "raise ValueError('of that')"}))
    with pytest.raises(BackendError, match=r"(?s)ended with exit code 1: .*ValueError: of that"):
        broken.serve()
    slow = _opened(make_package(tmp_path, {"predict.py": "import time; time.sleep(60)"}))
    with pytest.raises(BackendError, match="was not ready after 1 s: "):
        slow.serve(start_timeout=1)
    (tmp_path / "uvicorn.py").write_text("raise ModuleNotFoundError(name='uvicorn')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(BackendError, match="serve: uvicorn is not installed here") as caught:
        fn.serve()
    assert caught.value.hint == "pip install 'mfimage[serve]'"


OWNER = """
import multiprocessing, os, sys, time
from mfimage.load import _opened

fn = _opened(sys.argv[1])
servers = [fn.serve(), fn.serve(workers=2)]
if sys.argv[2] == "kill":
    multiprocessing.get_context("fork").Process(target=time.sleep, args=(20,)).start()
elif not os.fork():  # it stops nothing, though it ends as Python does
    servers[0].stop()
    sys.exit()
else:
    os.wait()
print(*(server.url.rpartition(":")[2] for server in servers), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def owner(fn: JsonFunction, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """A process with a server in one process and one in several, and what it has forked."""
    command = [sys.executable, "-W", "ignore", "-c", OWNER, fn.reference, request.param]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    with process:
        yield process
        os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("owner", ["kill", "exit"], indirect=True)
def test_nothing_is_left_when_the_kernel_ends(
    owner: subprocess.Popen[str], temporary: Path, request: pytest.FixtureRequest
) -> None:
    """Also when a process that the kernel has forked goes on."""
    assert owner.stdin
    assert owner.stdout
    ports = [int(text) for text in owner.stdout.readline().split()]
    assert [is_open(port) for port in ports] == [True, True]
    if "kill" in request.node.name:
        owner.kill()
    else:
        owner.stdin.close()
    for port in ports:
        until_closed(port, 2)
    until_empty(temporary)


def test_a_process_that_does_not_end_by_itself_is_killed() -> None:
    """As one whose model computes in C and lets no signal through."""
    code = (
        "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    )
    reader, writer = os.pipe()
    command = [sys.executable, "-I", lifeline.__file__, str(reader), sys.executable, "-c", code]
    with subprocess.Popen(command, pass_fds=[reader], stdout=subprocess.PIPE) as process:
        os.close(reader)
        assert process.stdout
        process.stdout.readline()
        os.close(writer)
        assert process.wait(10) == -signal.SIGKILL


def test_a_server_that_is_no_longer_used_ends(fn: JsonFunction) -> None:
    """A cell that is run again leaves no server of the first time."""
    server = fn.serve()
    port = port_of(server)
    del server
    until_closed(port, 2)
