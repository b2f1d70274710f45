"""The server with hundreds of clients that send slowly or not at all.

Each row opens that many connections, which stall in their headers, in a body of 64 KiB, or before
their first byte, and then measures requests of a good client beside them.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.servers import SERVE, answers, memory, running, wait_until
from tests.runtime.packages import make_folder

PORT = 18110
SOURCE = """
@json_function
def predict(data: float) -> float:
    return data
"""
POST = b"POST /predict HTTP/1.1\r\nhost: x\r\n"
STALLED = {
    "none": b"",
    "silent": b"",
    "in headers": POST + b"x: " + b"a" * 1000,
    "in bodies": POST + b"content-length: 65536\r\n\r\n" + b" " * 65535,
}


def times(method: str, path: str, body: bytes | None, count: int) -> tuple[float, float]:
    """Return the median and the 99th percentile of a request's time in milliseconds."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=30)
    taken = []
    for _ in range(count):
        begin = time.perf_counter()
        connection.request(method, path, body)
        response = connection.getresponse()
        response.read()
        taken.append((time.perf_counter() - begin) * 1e3)
        assert response.status == 200
    connection.close()
    return statistics.median(taken), statistics.quantiles(taken, n=100)[98]


@contextlib.contextmanager
def stalled(count: int, start: bytes) -> Iterator[None]:
    """Hold connections that have sent only the start of a request."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", PORT)))
            client.sendall(start)
        time.sleep(1.0)
        yield


def main() -> None:
    """Print one line for each kind of client."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--requests", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_folder(Path(folder, "fn"), SOURCE)
        function = Path(folder, "fn")
        environ = {"MFIMAGE_FUNCTION": str(function)}
        with running(SERVE, port=PORT, folder=function, core=None, environ=environ) as server:
            wait_until(lambda: answers(PORT, "/readyz"), "the server")
            print(f"{options.clients} clients   /healthz p50, p99   /predict p50, p99 ms   MiB")
            for kind, start in STALLED.items():
                with stalled(options.clients if kind != "none" else 0, start):
                    health = times("GET", "/healthz", None, options.requests)
                    record = times("POST", "/predict", b"1.5", options.requests)
                    size = memory(server.pid)
                row = "".join(f"{value:10.2f}" for value in (*health, *record))
                print(f"{kind:12}{row}{size:8.0f}")
            server.terminate()
            begin = time.monotonic()
            code = server.wait(60)
            print(f"SIGTERM: exit {code} after {time.monotonic() - begin:.1f} s")


if __name__ == "__main__":
    main()
