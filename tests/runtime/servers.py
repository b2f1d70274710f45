"""Real servers: the entrypoint in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

PATIENCE = 60


class Server:
    """A running server and its log."""

    def __init__(
        self, folder: Path, *, command: Sequence[str] | None = None, **environ: str
    ) -> None:
        given = {"PORT": "0", "MFIMAGE_HOST": "127.0.0.1", "MFIMAGE_DRAIN": "0", **environ}
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MFIMAGE", "PROMETH"))}
        self.process = subprocess.Popen(
            command or [sys.executable, "-m", "mfimage.runtime", "serve", "--folder", str(folder)],
            env={**kept, **given},
            stdout=subprocess.PIPE,
        )
        self.log: list[dict[str, Any]] = []
        self.printed: list[str] = []
        self._ports: queue.Queue[int] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self._port = 0

    def _read(self) -> None:
        assert self.process.stdout
        with self.process.stdout as lines:
            for line in lines:
                try:
                    entry = json.loads(line)
                except ValueError:
                    self.printed.append(line.decode())
                    continue
                self.log.append(entry)
                if "port" in entry:
                    self._ports.put(entry["port"])

    @property
    def port(self) -> int:
        self._port = self._port or self._ports.get(timeout=PATIENCE)
        return self._port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=PATIENCE)

    def post(self, path: str, value: Any, **options: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=value, timeout=PATIENCE, **options)

    def until_ready(self) -> Server:
        until(lambda: self.get("/readyz").status_code == 200)
        return self

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float = PATIENCE) -> int:
        code = self.process.wait(timeout)
        self._reader.join(PATIENCE)
        return code

    def messages(self, level: str) -> list[dict[str, Any]]:
        return [entry for entry in self.log if entry["level"] == level]


def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextlib.contextmanager
def running(folder: Path, **environ: str) -> Iterator[Server]:
    """Run a server and see that it ends."""
    server = Server(folder, **environ)
    try:
        yield server
    finally:
        server.process.kill()
        server.wait()
