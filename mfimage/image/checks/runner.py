"""Running an image in the Docker engine, for the checks."""

from __future__ import annotations

import contextlib
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

import docker
import docker.errors

from mfimage.errors import EngineError, ReferenceNotFound
from mfimage.image.checks.report import Failed
from mfimage.image.docker.engine import Engine, engine_errors
from mfimage.image.find.info import ImageInfo
from mfimage.image.find.places import ENGINE, FILES, FoundImage, find_image, may_be_pulled
from mfimage.image.oci.config import recompose
from mfimage.image.oci.outputs import docker_archive
from mfimage.image.secrets.scan import Reader
from mfimage.masking import mask_urls
from mfimage.package.platforms import machine_platform

Address = tuple[str, int]
# Marks the containers that a process which was killed could not remove.
_LABEL = "io.mfimage.test"
_POLL = 0.05
LOG_LINES = 20  # enough for a traceback's end, short enough to be read


@dataclass(frozen=True, kw_only=True)
class ContainerOptions:
    """How to start a container."""

    entrypoint: tuple[str, ...] = ()  # replaces the image's entrypoint and command
    command: tuple[str, ...] = ()  # replaces the image's command
    user: str | None = None  # uid:gid
    read_only: bool = False  # with an empty /tmp in memory
    no_capabilities: bool = False
    no_new_privileges: bool = False  # programs with the setuid bit gain nothing
    env: Mapping[str, str] = field(default_factory=dict)
    port: int | None = None  # the one that will be called


class ImageRunner:
    """Runs containers of an image that the engine has."""

    name = "docker"

    def __init__(self, api: docker.APIClient, info: ImageInfo) -> None:
        self._api: Any = api
        self.info = info

    def read(self, path: str) -> bytes | None:
        """Return a file of the image; None if there is none."""
        return Engine(self._api).read_file(self.info.id, path)

    def files(self, path: str) -> dict[str, bytes]:
        """Return the files of a folder of the image, by path below it."""
        reader = cast(BinaryIO, Reader(Engine(self._api).export(self.info.id, path)))
        with tarfile.open(fileobj=reader, mode="r|") as tar:
            return {
                member.name.partition("/")[2]: file.read()
                for member in tar
                if (file := tar.extractfile(member)) is not None
            }

    @contextmanager
    def start(self, launch: ContainerOptions) -> Iterator[Container]:
        """Run a container until the block ends."""
        with engine_errors(f"creating a container of {self.info.id}"):
            identity = self._create(launch)
        try:
            with engine_errors(f"starting a container of {self.info.id}"):
                try:
                    self._api.start(identity)
                except docker.errors.APIError as error:
                    # That an engine has no network, say, is not the image's fault.
                    if error.is_client_error():
                        raise Failed(f"it cannot be started: {error.explanation}") from None
                    raise
            yield Container(self._api, identity, launch.port)
        finally:
            # It may be gone already, and an engine that is gone has been reported before.
            gone = (docker.errors.APIError, EngineError)
            with contextlib.suppress(*gone), engine_errors("removing it"):
                self._api.remove_container(identity, force=True, v=True)

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
        created: dict[str, str] = self._api.create_container(
            self.info.id,
            entrypoint=list(launch.entrypoint) or None,
            command=list(launch.command) or None,
            user=launch.user,
            environment=dict(launch.env),
            ports=list(ports),
            host_config=limits,
            labels={_LABEL: "1"},
        )
        return created["Id"]


class Container:
    """A container that was started."""

    def __init__(self, api: Any, identity: str, port: int | None) -> None:
        self._api = api
        self._id = identity
        self._port = port

    def addresses(self) -> Sequence[Address]:
        """Return where its port may be reached, likeliest first."""
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
        return mask_urls(text.decode(errors="replace"))

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
        with engine_errors("inspecting a container"):
            return self._api.inspect_container(self._id)


def _host(api: Any) -> str | None:
    """Return the engine's host; None if it is this machine."""
    found = urlsplit(api.base_url)
    return found.hostname if found.scheme in ("http", "https") else None


@contextmanager
def open_image(
    api: docker.APIClient, image: str, *, say: Callable[[str], None]
) -> Iterator[ImageRunner]:
    """Run containers of an image, which is pulled or, until the block ends, loaded."""
    with Engine(api) as engine:
        if urlsplit(api.base_url).hostname == "ssh":
            raise EngineError(
                "the containers of an engine behind ssh cannot be called from here",
                hint="run mfimage test where the engine is",
            )
        try:
            found = find_image(image, places=(FILES, ENGINE))
        except ReferenceNotFound:
            if not may_be_pulled(image):
                raise
            say(f"pulling {image}")
            info = engine.pull(image)
        else:
            info = found.info
            if found.place is FILES:
                with _loaded(engine, found):
                    yield ImageRunner(api, info)
                return
        yield ImageRunner(api, info)


@contextmanager
def _loaded(engine: Engine, found: FoundImage) -> Iterator[None]:
    """Load an image until the block ends; it stays if the engine had it before."""
    with found.open(machine_platform()) as stored:
        image = recompose(stored)
        had = engine.inspect(image.id) is not None
        engine.load(docker_archive([image], ()))
        try:
            yield
        finally:
            if not had:
                engine.remove(image.id, force=True)


def wait_for_end(container: Container, timeout: float) -> int | None:
    """Wait until a container ends; return its exit code, None if it did not."""
    deadline = time.monotonic() + timeout
    while (code := container.exit_code()) is None:
        if time.monotonic() > deadline:
            return None
        time.sleep(_POLL)
    return code
