"""Pods of a RayCluster as containers, started and probed as KubeRay 1.7 does it.

KubeRay replaces the image's entrypoint by bash, writes ``ray start`` from ``rayStartParams`` and a
few parameters of its own, sorted, and asks each node whether it is well.
"""

from __future__ import annotations

import json
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TOKEN = "0123456789abcdef" * 2
_OWN = {
    "block": "true",
    "dashboard-agent-listen-port": "52365",
    "metrics-export-port": "8080",
    "memory": "1000000000",
}
# Before Ray 2.53; since then HTTP GET /api/healthz, which says both.
_RAYLET = (
    "wget --tries 1 -T 2 -q -O- http://localhost:52365/api/local_raylet_healthz | grep success"
)
_GCS = "wget --tries 1 -T 10 -q -O- http://localhost:8265/api/gcs_healthz | grep success"
_BOTH = "wget --tries 1 -T 10 -q -O- http://localhost:52365/api/healthz"
_SUBMIT = """\
if ! ray job status --address http://$RAY_DASHBOARD_ADDRESS {id} >/dev/null 2>&1 ; \
then ray job submit --address http://$RAY_DASHBOARD_ADDRESS --no-wait --submission-id {id} \
-- {entrypoint} ; fi ; \
ray job logs --address http://$RAY_DASHBOARD_ADDRESS --follow {id}"""


def start_command(params: Mapping[str, str], *, head: bool, cpus: str, address: str) -> str:
    """Return what KubeRay has bash run."""
    whole = {"num-cpus": cpus, **_OWN, **params}
    if not head:
        whole["address"] = address
    words = [
        f" --{name} " if whole[name] == "true" else f" --{name}={whole[name]} "
        for name in sorted(whole)
    ]
    return f"ulimit -n 65536; ray start {'--head' if head else ''} {''.join(words)}"


def docker(*words: str, check: bool = True, timeout: float = 120) -> str:
    done = subprocess.run(
        ["docker", *words], capture_output=True, text=True, check=False, timeout=timeout
    )
    assert not check or done.returncode == 0, done.stderr
    return done.stdout.strip() if done.returncode == 0 else ""


def until(
    found: Callable[[], Any], seconds: float = 120, what: str = "it", every: float = 0.2
) -> Any:
    """Wait for something to be true, and return it."""
    limit = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < limit, f"{what} is not there after {seconds} s"
        time.sleep(every)
    return value


class RayCluster:
    """Containers that are a head, workers and submitters.

    Parameters
    ----------
    image : str
        What all of them run.
    spec : mapping
        A manifest's ``rayClusterSpec``.
    data : Path
        The folder that is ``/data`` in all of them.
    """

    def __init__(self, image: str, spec: Mapping[str, Any], data: Path) -> None:
        self.name = f"mfimage-{uuid.uuid4().hex[:8]}"
        self._image = image
        self._head = spec["headGroupSpec"]["rayStartParams"]
        self._worker = spec["workerGroupSpecs"][0]["rayStartParams"]
        self._data = data
        self._names: list[str] = []
        docker("network", "create", self.name)

    def _run(self, name: str, command: str, env: Mapping[str, str] = {}) -> str:
        name = f"{self.name}-{name}"
        self._names.append(name)
        given = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            # Serve restarts a proxy that takes longer, and it may on two busy processors.
            "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
            **env,
        }
        words = [word for key, value in given.items() for word in ("-e", f"{key}={value}")]
        words += ["--user", "1000", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
        words += ["--network", self.name, "--shm-size", "256m", "-v", f"{self._data}:/data"]
        docker("run", "-d", "--name", name, *words, "--entrypoint", "/bin/bash", self._image,
               "-c", command)  # fmt: skip
        return name

    @property
    def _address(self) -> str:
        return f"{self.name}-head:6379"

    def start(self, workers: int) -> list[str]:
        """Start a head and workers; return the workers' names, once all are well."""
        head = self._run(
            "head", start_command(self._head, head=True, cpus="1", address=self._address)
        )
        command = start_command(self._worker, head=False, cpus="1", address=self._address)
        # The init container's, which KubeRay gives each worker. Each try imports Ray, so the first
        # one waits for the port.
        port = f"/dev/tcp/{self._address.replace(':', '/')}"
        ready = (
            f"until (: <{port}) 2>/dev/null; do sleep 0.5; done; "
            f"until ray health-check --address {self._address} >/dev/null 2>&1; do sleep 1; done"
        )
        started = [self._run(f"worker{n}", f"{ready}; {command}") for n in range(workers)]
        self.until_well(head, f"{_RAYLET} && {_GCS} && {_BOTH}")
        for worker in started:
            self.until_well(worker, f"{_RAYLET} && {_BOTH}")
        return started

    def until_well(self, container: str, probe: str) -> None:
        """Poll a probe as the kubelet does."""
        until(
            lambda: docker("exec", container, "bash", "-c", probe, check=False),
            what=f"{container}: {probe}",
            every=1,
        )

    def submit(self, entrypoint: str) -> str:
        """Start what KubeRay submits a job with; return its container."""
        env = {"RAY_DASHBOARD_ADDRESS": f"{self.name}-head:8265"}
        return self._run("submitter", _SUBMIT.format(id="job-1", entrypoint=entrypoint), env)

    def ip(self, container: str) -> str:
        """Return where a container is."""
        [found] = json.loads(docker("inspect", container))
        return str(found["NetworkSettings"]["Networks"][self.name]["IPAddress"])

    def close(self) -> None:
        docker("rm", "-f", *self._names, check=False)
        docker("network", "rm", self.name, check=False)


@contextmanager
def ray_cluster(image: str, spec: Mapping[str, Any], data: Path) -> Iterator[RayCluster]:
    """Make a cluster that ends with the block."""
    made = RayCluster(image, spec, data)
    try:
        yield made
    finally:
        made.close()


def logs(container: str) -> str:
    done = subprocess.run(
        ["docker", "logs", container], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True
    )
    return done.stdout.decode(errors="replace")


def lines(paths: Sequence[Path]) -> list[str]:
    return [line for path in sorted(paths) for line in path.read_text().splitlines()]
