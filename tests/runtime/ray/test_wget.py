"""KubeRay's probes, verbatim, with our ``wget``."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.support.docker import free_port

WGET = """#!/bin/sh
exec {python} -c "import sys; from mfimage.runtime.ray.wget import main
sys.exit(main(sys.argv[1:]))" "$@"
"""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        found = self.path == "/api/healthz"
        self.send_response(200 if found else 503)
        self.end_headers()
        self.wfile.write(b"success" if found else b"failure")

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.fixture
def shell(tmp_path):
    wget = tmp_path / "wget"
    wget.write_text(WGET.format(python=sys.executable))
    wget.chmod(0o755)

    def run(command: str) -> subprocess.CompletedProcess[str]:
        env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[3])}
        return subprocess.run(
            ["bash", "-c", command], env=env, capture_output=True, text=True, check=False
        )

    return run


def test_a_probe_of_a_healthy_server(shell, port):
    done = shell(f"wget --tries 1 -T 2 -q -O- http://localhost:{port}/api/healthz | grep success")
    assert (done.returncode, done.stdout) == (0, "success\n")


def test_a_probe_of_an_unhealthy_server(shell, port):
    done = shell(f"wget --tries 1 -T 2 -q -O- http://localhost:{port}/api/other | grep success")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


def test_errors_are_printed_without_q(shell, port):
    done = shell(f"wget -O- http://localhost:{port}/api/other")
    assert done.returncode == 8
    assert "server returned 503" in done.stderr
    done = shell(f"wget -T 1 -O- http://127.0.0.1:{free_port()}/")
    assert done.returncode == 4
    assert "Connection refused" in done.stderr


def test_unknown_options_and_schemes_are_refused(shell):
    done = shell("wget --mirror -O- http://localhost/")
    assert done.returncode == 2
    assert "--mirror" in done.stderr
    assert shell("wget -O- file:///etc/passwd").returncode == 2


def test_output_to_a_file(shell, port, tmp_path):
    assert (
        shell(f"wget -q -O {tmp_path}/response http://localhost:{port}/api/healthz").returncode == 0
    )
    assert (tmp_path / "response").read_text() == "success"
