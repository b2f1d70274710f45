"""The Docker engine: everything mfimage asks of it, and nothing else talks to one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import docker
import docker.errors

from mfimage.errors import EngineError, RegistryError
from mfimage.image.engine_build import BuildRequest, Context, run_build
from mfimage.image.engine_connect import connect, engine_errors
from mfimage.image.engine_events import BuildEvent
from mfimage.image.engine_reading import export, read_file
from mfimage.image.engine_transfer import OnEvent, load, pull, push, split
from mfimage.image.find.info import ImageInfo

_RUN_TIMEOUT = 60
_PYTHON_VERSION = "import platform; print(platform.python_version())"


def ignore(event: BuildEvent) -> None:
    """Do nothing with an event."""


class Engine:
    """A connection to a Docker engine; use `connect`, and ``with`` to close it.

    Parameters
    ----------
    api : docker.APIClient
        The low-level client.
    """

    def __init__(self, api: docker.APIClient) -> None:
        self._api = api

    @classmethod
    def connect(cls) -> Engine:
        """Connect to the engine that ``docker`` would use: DOCKER_HOST, or the current context.

        Raises
        ------
        EngineError
            If none answers, within three seconds.
        """
        return cls(connect())

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to the engine."""
        self._api.close()

    def build(
        self,
        *,
        context: Context,
        tags: Sequence[str] = (),
        secrets: Mapping[str, bytes] | None = None,
        platform: str | None = None,
        no_cache: bool = False,
        cache_from: Sequence[str] = (),
        build_args: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        dockerfile: str = "Dockerfile",
        target: str | None = None,
        on_event: OnEvent = ignore,
    ) -> str:
        """Build an image by BuildKit.

        Parameters
        ----------
        context : sequence of ContextFile, or iterable of bytes, or binary file
            The context's files, of which the engine fetches what has changed since the last build
            of the same repository. Or a tar, which is sent whole; in GNU or USTAR format, since
            BuildKit reads a PAX header as a file.
        tags : sequence of str
            What to tag the image with.
        secrets : mapping of str to bytes
            By id, for ``RUN --mount=type=secret,id=...``. They reach that step only: not the image,
            not its history, not a log.
        platform : str, optional
            As ``linux/arm64``; the engine's own by default.
        no_cache : bool
            Run every step anew.
        cache_from : sequence of str
            Images in registries whose inline cache may be used.
        build_args : mapping of str to str
            Values for ``ARG``.
        labels : mapping of str to str
            Labels beside the Dockerfile's.
        dockerfile : str
            Its path in the context.
        target : str, optional
            The stage to build; the last by default.
        on_event : callable
            Called in this thread with each `BuildEvent` as it happens.

        Returns
        -------
        str
            The image's ID, ``sha256:...``.

        Raises
        ------
        BuildError
            If a step fails: names the step, ends with the last lines of its log.
        EngineError
            If the engine refuses, or goes away.
        """
        request = BuildRequest(
            tags=tags,
            secrets=secrets or {},
            platform=platform,
            no_cache=no_cache,
            cache_from=cache_from,
            build_args=build_args or {},
            labels=labels or {},
            dockerfile=dockerfile,
            target=target,
        )
        return run_build(self._api, context, request, on_event)

    def inspect(self, ref: str) -> ImageInfo | None:
        """Return what the engine knows of an image; None if it does not have it."""
        with engine_errors(f"inspecting {ref}"):
            untyped: Any = self._api
            try:
                image = untyped.inspect_image(ref)
                history = untyped.history(image["Id"])
            except docker.errors.ImageNotFound:
                return None
        return ImageInfo.from_engine(image, history)

    def pull(
        self, ref: str, *, platform: str | None = None, on_event: OnEvent = ignore
    ) -> ImageInfo:
        """Pull an image; return it.

        Raises
        ------
        RegistryError
            If the registry does not have it, refuses, or cannot be reached.
        """
        pull(self._api, ref, platform, on_event)
        image = self.inspect(ref)
        if image is None:
            raise RegistryError(f"pulling {ref}: the engine does not have it afterwards")
        return image

    def push(self, ref: str, *, on_event: OnEvent = ignore) -> str:
        """Push a tag; return the manifest's digest, ``sha256:...``.

        Raises
        ------
        RegistryError
            If the registry refuses or cannot be reached, or there is no such image.
        """
        return push(self._api, ref, on_event)

    def load(self, archive: Iterable[bytes]) -> None:
        """Take in an image from what ``docker save`` writes.

        Raises
        ------
        EngineError
            If the engine refuses it, or goes away.
        """
        load(self._api, archive)

    def save(self, image: str) -> Iterator[bytes]:
        """Stream an image as ``docker save`` writes it.

        Raises
        ------
        EngineError
            If the engine does not have it, or goes away.
        """
        with engine_errors(f"saving {image}"):
            yield from self._api.get_image(image)

    def tag(self, image: str, ref: str) -> None:
        """Give an image another reference."""
        repository, tag = split(ref)
        with engine_errors(f"tagging {image} as {ref}"):
            self._api.tag(image, repository, tag, force=True)

    def remove(self, ref: str, *, force: bool = False) -> None:
        """Remove a reference and, with the last one, the image; fine if it is not there."""
        with (
            engine_errors(f"removing {ref}"),
            contextlib.suppress(docker.errors.ImageNotFound),
        ):
            self._api.remove_image(ref, force=force)

    def read_file(self, image: str, path: str, *, most: int = 32 << 20) -> bytes | None:
        """Read a small file out of an image; None if it does not have it."""
        return read_file(self._api, image, path, most)

    def export(self, image: str, path: str) -> Iterator[bytes]:
        """Stream a folder of an image as a tar, whose names begin with the folder's own."""
        return export(self._api, image, path)

    def run_capture(self, image: str, command: Sequence[str], *, user: str | None = None) -> str:
        """Run a command in a short-lived container without network; return its stdout.

        The image's entrypoint is not used.

        Raises
        ------
        EngineError
            If the command cannot be started, fails, or takes longer than a minute.
        """
        doing = f"running {command[0]} in {image}"
        with engine_errors(doing):
            container = self._api.create_container(
                image,
                entrypoint=list(command),
                user=user,
                host_config=self._api.create_host_config(
                    network_mode="none",
                    # Whatever driver the engine logs by, this one can be read back.
                    log_config=docker.types.LogConfig(type="json-file"),
                ),
            )["Id"]
            try:
                self._api.start(container)
                status = self._api.wait(container, timeout=_RUN_TIMEOUT)["StatusCode"]
                stdout = self._api.logs(container, stdout=True, stderr=False)
                stderr = self._api.logs(container, stdout=False, stderr=True)
            finally:
                with contextlib.suppress(docker.errors.APIError):
                    self._api.remove_container(container, force=True, v=True)
        if status:
            last = stderr.decode(errors="replace").strip().rpartition("\n")[2]
            raise EngineError(f"{doing}: exit code {status}: {last}")
        return stdout.decode(errors="replace")

    def python_version(self, image: str) -> str:
        """Ask an image for its Python's version, as ``3.11.7``.

        Raises
        ------
        EngineError
            If it has no ``python``.
        """
        try:
            return self.run_capture(image, ["python", "-c", _PYTHON_VERSION]).strip()
        except EngineError:
            # An image for another platform may not run here; official ones say it as well.
            info = self.inspect(image)
            if info is not None and (version := info.env.get("PYTHON_VERSION")):
                return version
            raise
