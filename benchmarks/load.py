"""Load for a server on this machine: ``wrk`` where it is installed, else raw sockets."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_SCRIPT = """
wrk.method = "POST"
wrk.body = {body}
wrk.headers["Content-Type"] = "application/json"
local paths, requests, at = {paths}, {{}}, 0
init = function()
  for i, path in ipairs(paths) do requests[i] = wrk.format(nil, path) end
end
request = function()
  at = at % #requests + 1
  return requests[at]
end
"""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a client measured; times in milliseconds."""

    rate: float
    p50: float
    p99: float
    requests: int
    errors: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to send, to which paths in turn, over how many connections, for how long."""

    port: int
    paths: tuple[str, ...]
    body: str
    connections: int
    seconds: float


def client() -> str:
    """Return the name of the load generator that is used."""
    return "wrk" if shutil.which("wrk") else "asyncio raw sockets"


def load(plan: Plan, *, core: int) -> Load:
    """Send the same record over and over, from ``core``."""
    run = _by_wrk if shutil.which("wrk") else _by_sockets
    return run(["taskset", "-c", str(core)], plan)


def _by_wrk(pin: list[str], plan: Plan) -> Load:
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "post.lua")
        paths = "{" + ", ".join(map(json.dumps, plan.paths)) + "}"
        script.write_text(_SCRIPT.format(body=json.dumps(plan.body), paths=paths))
        command = [*pin, "wrk", "--latency", "-t1", f"-c{plan.connections}", f"-d{plan.seconds:g}s"]
        command += ["-s", str(script), f"http://127.0.0.1:{plan.port}"]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    errors = sum(map(int, re.findall(r"Non-2xx or 3xx responses: (\d+)", out)))
    for found in re.findall(r"Socket errors: (.*)", out):
        errors += sum(map(int, re.findall(r"\d+", found)))
    requests = re.search(r"(\d+) requests in", out)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", out)
    assert requests
    assert rate
    return Load(
        rate=float(rate[1]),
        p50=_percentile(out, 50),
        p99=_percentile(out, 99),
        requests=int(requests[1]),
        errors=errors,
    )


def _percentile(out: str, percent: int) -> float:
    found = re.search(rf"{percent}%\s+([\d.]+)(us|ms|s)\b", out)
    assert found
    return float(found[1]) * _UNITS[found[2]]


def _by_sockets(pin: list[str], plan: Plan) -> Load:
    command = [*pin, sys.executable, __file__, json.dumps(asdict(plan))]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return Load(**json.loads(out))


class _Connection(asyncio.Protocol):
    """Sends the next request when the last response has arrived."""

    def __init__(self, requests: Iterator[bytes], times: list[float], until: float) -> None:
        self._requests = requests
        self._times = times
        self._until = until
        self._buffer = b""
        self.errors = 0
        self.over = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._sent = time.perf_counter()
        self._transport.write(next(self._requests))  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, _, body = self._buffer.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        if length is None or len(body) < int(length[1]):
            return
        now = time.perf_counter()
        self._times.append(now - self._sent)
        self.errors += not self._buffer.startswith(b"HTTP/1.1 200")
        self._buffer = b""
        if now > self._until:
            self._transport.close()
        else:
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        self.errors += exc is not None
        self.over.set_result(None)


async def _measure(plan: Plan) -> Load:
    head = "HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    rest = f"{head}content-length: {len(plan.body)}\r\n\r\n{plan.body}"
    requests = itertools.cycle([f"POST {path} {rest}".encode() for path in plan.paths])
    times: list[float] = []
    begin = time.perf_counter()
    loop = asyncio.get_running_loop()
    pairs = [
        await loop.create_connection(
            lambda: _Connection(requests, times, begin + plan.seconds), "127.0.0.1", plan.port
        )
        for _ in range(plan.connections)
    ]
    await asyncio.gather(*(connection.over for _, connection in pairs))
    times.sort()
    return Load(
        rate=len(times) / (time.perf_counter() - begin),
        p50=times[len(times) // 2] * 1e3,
        p99=times[int(len(times) * 0.99)] * 1e3,
        requests=len(times),
        errors=sum(connection.errors for _, connection in pairs),
    )


if __name__ == "__main__":
    _load = asyncio.run(_measure(Plan(**json.loads(sys.argv[1]))))
    sys.stdout.write(json.dumps(asdict(_load)))
