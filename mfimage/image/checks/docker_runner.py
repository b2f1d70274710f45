"""Running an image by the Docker engine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import docker
import docker.errors

from mfimage.errors import EngineError
from mfimage.image.checks.report import Failed
from mfimage.image.checks.runner import LOG_LINES, Address, ContainerOptions
from mfimage.image.engine import Engine
from mfimage.image.engine_connect import engine_errors
from mfimage.image.find.info import ImageInfo
from mfimage.image.find.run import image_at
from mfimage.image.oci.outputs import docker_archive
from mfimage.image.registry.location import Location
from mfimage.masking import Masker

# Finds what a process that was killed could not remove.
_LABEL = "io.mfimage.test"


class DockerRunner:
    """Runs an image that the engine has; see `ImageRunner`."""

    name = "docker"
    own_network = True

    def __init__(self, api: docker.APIClient, info: ImageInfo) -> None:
        self._api: Any = api
        self.info = info

    def read(self, path: str) -> bytes | None:
        """Return a file of the image; None if there is none."""
        return Engine(self._api).read_file(self.info.id, path)

    @contextmanager
    def start(self, launch: ContainerOptions) -> Iterator[DockerContainer]:
        """Run a container until the block ends."""
        with engine_errors(f"creating a container of {self.info.id}"):
            identity = self._create(launch)
        try:
            with engine_errors(f"starting a container of {self.info.id}"):
                try:
                    self._api.start(identity)
                except docker.errors.APIError as error:
                    # An engine that has no network, say, is no fault of the image's.
                    if error.is_client_error():
                        raise Failed(f"it cannot be started: {error.explanation}") from None
                    raise
            yield DockerContainer(self._api, identity, launch.port)
        finally:
            self._remove(identity)

    def _create(self, launch: ContainerOptions) -> str:
        local = _host(self._api) is None
        ports = {launch.port: ("127.0.0.1", None) if local else None} if launch.port else {}
        limits = self._api.create_host_config(
            port_bindings=ports,
            read_only=launch.read_only,
            tmpfs={"/tmp": ""} if launch.read_only else None,  # noqa: S108  (its own)
            cap_drop=["ALL"] if launch.no_capabilities else None,
            security_opt=["no-new-privileges"] if launch.no_new_privileges else None,
            # Whatever driver the engine logs by, this one can be read back.
            log_config=docker.types.LogConfig(type="json-file"),
        )
        created = self._api.create_container(
            self.info.id,
            entrypoint=list(launch.entrypoint) or None,
            user=launch.user,
            environment=dict(launch.env),
            ports=list(ports),
            host_config=limits,
            labels={_LABEL: "1"},
        )
        identity: str = created["Id"]
        return identity

    def _remove(self, container: str) -> None:
        # It may be gone already, and an engine that is gone has told so before.
        with contextlib.suppress(docker.errors.APIError, EngineError), engine_errors("removing it"):
            self._api.remove_container(container, force=True, v=True)


class DockerContainer:
    """A container of the engine's; see `Container`."""

    def __init__(self, api: Any, identity: str, port: int | None) -> None:
        self._api = api
        self._id = identity
        self._port = port
        self._redact = Masker([])

    def addresses(self) -> Sequence[Address]:
        """Return where its port is published, and where a neighbour container reaches it."""
        network = self._inspect()["NetworkSettings"]
        published = (network.get("Ports") or {}).get(f"{self._port}/tcp") or ()
        found: list[Address] = [
            (_host(self._api) or each["HostIp"], int(each["HostPort"]))
            for each in published
            if ":" not in each["HostIp"]
        ]
        # From inside a container, the engine's host is somewhere else.
        own = [each.get("IPAddress") for each in (network.get("Networks") or {}).values()]
        return found + [(address, self._port) for address in own if address and self._port]

    def exit_code(self) -> int | None:
        """Return the exit code; None while it runs."""
        state = self._inspect()["State"]
        return None if state["Running"] else int(state["ExitCode"])

    def log(self, lines: int | None = LOG_LINES) -> str:
        """Return the last lines of stdout and stderr, or all of them."""
        with engine_errors("reading the log of a container"):
            text = self._api.logs(self._id, tail="all" if lines is None else lines)
        return self._redact(text.decode(errors="replace"))

    def execute(self, command: Sequence[str]) -> str:
        """Run a command in it; return what it prints."""
        with engine_errors(f"running {command[0]} in a container"):
            started = self._api.exec_create(self._id, list(command))["Id"]
            output: bytes = self._api.exec_start(started)
        return output.decode(errors="replace")

    def terminate(self) -> None:
        """Send SIGTERM to its first process."""
        with engine_errors("sending SIGTERM to a container"):
            try:
                self._api.kill(self._id, signal="SIGTERM")
            except docker.errors.APIError as error:
                if error.status_code != 409:  # it has ended already
                    raise

    def _inspect(self) -> Any:
        with engine_errors("looking at a container"):
            return self._api.inspect_container(self._id)


def _host(api: Any) -> str | None:
    """Return the engine's host; None if it is this machine."""
    found = urlsplit(api.base_url)
    return found.hostname if found.scheme in ("http", "https") else None


@contextmanager
def open_docker(
    api: docker.APIClient,
    image: str,
    location: Location | None,
    *,
    say: Callable[[str], None],
) -> Iterator[DockerRunner]:
    """See that the engine has an image: it is pulled, or loaded until the block ends.

    Parameters
    ----------
    api : docker.APIClient
        The engine; closed at the end.
    image, location : str, Location or None
        Which image; where it lies, if not in an engine or a registry.
    say : callable
        Told of what happens.

    Raises
    ------
    RegistryError, BuildError
        If there is no such image.
    EngineError
        If its containers cannot be called.
    """
    with Engine(api) as engine:
        if urlsplit(api.base_url).hostname == "ssh":
            raise EngineError(
                "the containers of an engine behind ssh cannot be called from here",
                hint="run mfimage test where the engine is",
            )
        if location is not None:
            with _loaded(engine, location) as info:
                yield DockerRunner(api, info)
            return
        known = engine.inspect(image)
        if known is None:
            say(f"pulling {image}")
            known = engine.pull(image)
        yield DockerRunner(api, known)


@contextmanager
def _loaded(engine: Engine, location: Location) -> Iterator[ImageInfo]:
    """Let the engine have an image until the block ends, or longer if it had it before."""
    with image_at(location) as (image, info):
        had = engine.inspect(info.id) is not None
        engine.load(docker_archive([image], ()))
        try:
            yield info
        finally:
            if not had:
                engine.remove(info.id, force=True)
