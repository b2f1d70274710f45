"""A Docker engine, base images, registries and containers, for fixtures to hand out.

Plain functions and context managers: `tests/conftest.py` decides how long things live.
"""

from __future__ import annotations

import atexit
import functools
import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

# The container that sweeps up after testcontainers cannot be pulled everywhere. To be set before
# testcontainers is imported, which reads it once.
os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")

import docker
from testcontainers.core.container import DockerContainer
from testcontainers.core.labels import LABEL_SESSION_ID, SESSION_ID

from mfimage.errors import EngineError
from mfimage.image.docker.command import DockerCommand

HERE = Path(__file__).parent
RegistryKind = Literal["plain", "auth", "tls", "mtls"]


class Unavailable(Exception):
    """What a script said when it could not provide something."""


@functools.cache
def ensure_engine() -> str:
    """Start a Docker engine if none answers; return its address.

    Raises
    ------
    Unavailable
        If there is none, with what to do.
    """
    address = _script("engine", timeout=600)
    ensure_client()
    return address


@functools.cache
def ensure_compose() -> tuple[str, ...]:
    """Return the command that runs Docker Compose, which is installed if it can be.

    Raises
    ------
    Unavailable
        If there is none.
    """
    return tuple(_script("compose", timeout=600).split())


@functools.cache
def ensure_client() -> None:
    """Let ``docker`` on PATH be one that can build: with buildx, or older than 23.

    Raises
    ------
    Unavailable
        If there is none.
    """
    try:
        DockerCommand.find()
    except EngineError as error:
        old = old_client()
        if old is None:
            raise Unavailable(str(error)) from None
        os.environ["PATH"] = f"{old}{os.pathsep}{os.environ['PATH']}"


@functools.cache
def old_client() -> Path | None:
    """Return a folder with a ``docker`` that builds without buildx, if there is one on PATH."""
    for folder in os.get_exec_path():
        path = Path(folder, "docker")
        if path.is_file():
            shown = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
            version = re.match(r"Docker version (\d+)", shown.stdout)
            if version and int(version[1]) < 23:
                alone = tempfile.mkdtemp(prefix="mfimage-docker-")
                atexit.register(shutil.rmtree, alone, ignore_errors=True)
                Path(alone, "docker").symlink_to(path)
                return Path(alone)
    return None


@functools.cache
def buildx_config() -> Path:
    """Return a folder for DOCKER_CONFIG with the buildx plugin in it.

    Raises
    ------
    Unavailable
        If there is none.
    """
    return Path(_script("buildx", timeout=600))


@functools.cache
def ensure_base_image(python: str = "3.11") -> str:
    """Pull or make ``python:X.Y-slim``; return its tag."""
    ensure_engine()
    _script("base-image", python, timeout=1200)
    return f"python:{python}-slim"


@dataclass(frozen=True, kw_only=True)
class Registry:
    """A running registry.

    Attributes
    ----------
    address : str
        ``host:port``, to begin image references with.
    username, password : str, optional
        Where it wants them.
    ca : Path, optional
        Its certificate, where it speaks TLS.
    """

    address: str
    username: str | None = None
    password: str | None = None
    ca: Path | None = None

    @property
    def url(self) -> str:
        return f"{'https' if self.ca else 'http'}://{self.address}"


@contextmanager
def registry(kind: RegistryKind = "plain", *, directory: Path) -> Iterator[Registry]:
    """Run a registry on a free port, with its data below `directory`."""
    port = str(free_port())
    env = {"MFIMAGE_REGISTRY_DIR": str(directory / f"registry-{kind}-{port}")}
    address = _script("registry", "start", kind, port, env=env)
    try:
        yield Registry(
            address=address,
            username="mfimage" if kind in ("auth", "tls") else None,
            password="mfimage-test" if kind in ("auth", "tls") else None,
            ca=Path(env["MFIMAGE_REGISTRY_DIR"]) / "ca.crt" if "tls" in kind else None,
        )
    finally:
        _script("registry", "stop", kind, port, env=env)


@contextmanager
def container(
    image: str,
    *,
    command: str | list[str] | None = None,
    ports: tuple[int, ...] = (),
    env: Mapping[str, str] | None = None,
    tmpfs: tuple[str, ...] = (),
    **options: Any,
) -> Iterator[DockerContainer]:
    """Run a container for as long as the block lasts.

    Parameters
    ----------
    image : str
        What to run.
    command : str or list of str, optional
        Instead of the image's own.
    ports : tuple of int
        To publish; `address` tells where.
    env : mapping of str to str, optional
        Variables.
    tmpfs : tuple of str
        Folders to keep in memory.
    **options
        Further arguments of docker-py's ``containers.run``, such as ``user`` or ``read_only``.
    """
    prepared = DockerContainer(image).with_kwargs(**options).with_exposed_ports(*ports)
    for folder in tmpfs:
        prepared = prepared.with_tmpfs_mount(folder)
    for name, value in (env or {}).items():
        prepared = prepared.with_env(name, value)
    if command is not None:
        prepared = prepared.with_command(command)
    with prepared as running:
        yield running


def address(running: DockerContainer, port: int) -> str:
    """Return ``host:port`` under which a container's port is reached."""
    return f"{running.get_container_host_ip()}:{running.get_exposed_port(port)}"


def sweep() -> None:
    """Remove the containers that this process's tests left behind."""
    client = docker.from_env()
    try:
        label = f"{LABEL_SESSION_ID}={SESSION_ID}"
        for leftover in client.containers.list(all=True, filters={"label": label}):
            leftover.remove(force=True, v=True)
    finally:
        client.close()


def host_ca_bundle() -> Path | None:
    """Return the CA bundle that this machine is told to trust, if it is told.

    Behind a proxy that signs TLS traffic anew, a build needs it to install anything: hand it over
    as the build secret ``ca``.
    """
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT"):
        if value := os.environ.get(name):
            bundle = Path(value)
            if bundle.is_file():
                return bundle
    return None


def free_port() -> int:
    """Return a TCP port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _script(
    name: str, *arguments: str, env: Mapping[str, str] | None = None, timeout: float = 60
) -> str:
    result = subprocess.run(
        [str(HERE / name), *arguments],
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if result.returncode:
        raise Unavailable(result.stderr.strip() or f"{name} failed")
    return result.stdout.strip()
