"""The Docker engine: everything mfimage asks of it goes through here, except builds."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import docker
import docker.errors
import requests
import urllib3.exceptions
from docker.utils import parse_repository_tag

from mfimage.errors import EngineError, MfimageError, RegistryError
from mfimage.image.builder import BuildEvent, OnEvent
from mfimage.image.find.info import ImageInfo
from mfimage.masking import mask_urls

# Together below three seconds: connecting and responding may each take this long over TCP.
_LOCAL_TIMEOUT, _REMOTE_TIMEOUT = 2.5, 1.3
_CALL_TIMEOUT = 60
_PING_TIMEOUT = 3.0
_RUN_TIMEOUT = 60
_NEWEST = 3
_DEFAULT_HOST = "unix:///var/run/docker.sock"
_START = (
    "start Docker (for example `systemctl start docker`), or point DOCKER_HOST or "
    "`docker context use` at a running engine"
)
_RESTART = "see its log (for example `journalctl -u docker`) and restart it"
_PYTHON_VERSION = "import platform; print(platform.python_version())"
_CHUNK = 1 << 20

# What a connection that breaks raises, by the layer that notices first.
_CONNECTION_ERRORS = (
    requests.exceptions.ConnectionError,
    requests.exceptions.ChunkedEncodingError,
    requests.exceptions.Timeout,
    urllib3.exceptions.HTTPError,
    OSError,
)


class Engine:
    """A connection to a Docker engine; use `connect`, and ``with`` to close it."""

    def __init__(self, api: docker.APIClient) -> None:
        self._api: Any = api  # its hints are incomplete

    @classmethod
    def connect(cls) -> Engine:
        """Connect to the engine that the ``docker`` command uses."""
        return cls(connect())

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to the engine."""
        self._api.close()

    def alive(self) -> bool:
        """Return whether the engine still responds."""
        try:
            return bool(self._api.get(self._api.base_url + "/_ping", timeout=_PING_TIMEOUT).ok)
        except _CONNECTION_ERRORS:
            return False

    def inspect(self, ref: str) -> ImageInfo | None:
        """Return what the engine knows of an image; None if it does not have it."""
        missing = docker.errors.ImageNotFound
        with engine_errors(f"inspecting {ref}"), contextlib.suppress(missing):
            image = self._api.inspect_image(ref)
            return ImageInfo.from_engine(image, self._api.history(image["Id"]))
        return None

    def pull(
        self, ref: str, *, platform: str | None = None, on_event: OnEvent = lambda _: None
    ) -> ImageInfo:
        """Pull an image."""
        repository, tag = _split(ref)
        with engine_errors(f"pulling {ref}", _registry_error):
            options = {"platform": platform, "stream": True, "decode": True}
            for _ in _transfer(self._api.pull(repository, tag=tag, **options), on_event):
                pass
        image = self.inspect(ref)
        if image is None:
            raise RegistryError(f"pulling {ref}: the engine does not have it afterwards")
        return image

    def push(self, ref: str, *, on_event: OnEvent = lambda _: None) -> str:
        """Push a tag; return the manifest's digest, ``sha256:...``."""
        repository, tag = _split(ref)
        digest = None
        with engine_errors(f"pushing {ref}", _registry_error):
            with _without_timeout(self._api):
                stream = self._api.push(repository, tag=tag, stream=True, decode=True)
            for message in _transfer(stream, on_event):
                digest = (message.get("aux") or {}).get("Digest") or digest
        if digest is None and (info := self.inspect(ref)) is not None:
            # An engine with the containerd image store keeps it with the image instead.
            digest = dict(each.split("@") for each in info.repo_digests).get(repository)
        if digest is None:
            raise RegistryError(f"pushing {ref}: the engine did not report the digest")
        return str(digest)

    def load(self, archive: Iterable[bytes]) -> None:
        """Load an image from what ``docker save`` writes."""
        doing = "loading the image"
        with engine_errors(doing), _without_timeout(self._api):
            for message in self._api.load_image(archive, quiet=True) or ():
                if error := message.get("error"):
                    raise EngineError(f"{doing}: {error}")

    def save(self, image: str) -> Iterator[bytes]:
        """Stream an image as ``docker save`` writes it."""
        with engine_errors(f"saving {image}"):
            yield from self._api.get_image(image)

    def describe(self, image: str) -> tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]:
        """Return an image's description and history as the engine responds."""
        with engine_errors(f"inspecting {image}"):
            return self._api.inspect_image(image), self._api.history(image)

    def labelled(self, label: str) -> Iterator[str]:
        """Yield the IDs of the newest images with a label, as ``NAME=VALUE``."""
        with engine_errors(f"listing images with {label}"):
            found: list[dict[str, Any]] = self._api.images(filters={"label": label})
        for image in sorted(found, key=lambda image: -image["Created"])[:_NEWEST]:
            yield image["Id"]

    def tag(self, image: str, ref: str) -> None:
        """Give an image another reference."""
        repository, tag = _split(ref)
        with engine_errors(f"tagging {image} as {ref}"):
            self._api.tag(image, repository, tag, force=True)

    def remove(self, ref: str, *, force: bool = False) -> None:
        """Remove a reference and, with the last one, the image; fine if it is not there."""
        missing = docker.errors.ImageNotFound
        with engine_errors(f"removing {ref}"), contextlib.suppress(missing):
            self._api.remove_image(ref, force=force)

    def read_file(self, image: str, path: str, *, limit: int = 32 << 20) -> bytes | None:
        """Read a small file of an image; None if there is no such file."""
        with engine_errors(f"reading {path} of {image}"), self._created(image) as container:
            try:
                chunks, _ = self._api.get_archive(container, path)
            except docker.errors.NotFound:
                return None
            data = b"".join(_limited(chunks, limit))
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            member = tar.next()
            file = tar.extractfile(member) if member is not None and member.isfile() else None
            return file.read() if file is not None else None

    def export(self, image: str, path: str) -> Iterator[bytes]:
        """Stream a folder of an image as a tar, whose names begin with the folder's own."""
        with engine_errors(f"reading {path} of {image}"), self._created(image) as container:
            chunks, _ = self._api.get_archive(container, path, chunk_size=_CHUNK)
            yield from chunks

    @contextlib.contextmanager
    def _created(self, image: str, **options: Any) -> Iterator[str]:
        """Create a container, whose files can be read without starting it; remove it."""
        options = options or {"entrypoint": ["/"], "command": []}
        container = self._api.create_container(image, **options)["Id"]
        try:
            yield container
        finally:
            with contextlib.suppress(docker.errors.APIError):
                self._api.remove_container(container, force=True, v=True)

    def run_capture(self, image: str, command: Sequence[str], *, user: str | None = None) -> str:
        """Run a command, instead of the entrypoint, without network; return its stdout."""
        doing = f"running {command[0]} in {image}"
        # Whatever the engine's logging driver is, this one can be read back.
        log = docker.types.LogConfig(type="json-file")
        host = self._api.create_host_config(network_mode="none", log_config=log)
        options = {"entrypoint": list(command), "user": user, "host_config": host}
        with engine_errors(doing), self._created(image, **options) as container:
            self._api.start(container)
            status = self._api.wait(container, timeout=_RUN_TIMEOUT)["StatusCode"]
            stdout: bytes = self._api.logs(container, stdout=True, stderr=False)
            stderr: bytes = self._api.logs(container, stdout=False, stderr=True)
        if status:
            last = stderr.decode(errors="replace").strip().rpartition("\n")[2]
            raise EngineError(f"{doing}: exit code {status}: {last}")
        return stdout.decode(errors="replace")

    def python_version(self, image: str) -> str:
        """Return the version of an image's Python, as ``3.11.7``."""
        try:
            return self.run_capture(image, ["python", "-c", _PYTHON_VERSION]).strip()
        except EngineError:
            # An image for another platform may not run here; official ones state it as well.
            info = self.inspect(image)
            if info is not None and (version := info.env.get("PYTHON_VERSION")):
                return version
            raise


# Connecting, and what is wrong when that fails


def connect() -> docker.APIClient:
    """Connect to the engine that the ``docker`` command uses: DOCKER_HOST, or the context."""
    host = _host()
    local = host.startswith(("unix://", "npipe://"))
    try:
        if host.startswith("unix://"):
            # Fails early, and more to the point, where docker-py would leave a socket open.
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(_LOCAL_TIMEOUT)
                probe.connect("/" + host.removeprefix("unix://").lstrip("/"))
        from_env: Any = docker.from_env
        api: docker.APIClient = from_env(timeout=_LOCAL_TIMEOUT if local else _REMOTE_TIMEOUT).api
    except Exception as error:  # noqa: BLE001  (docker-py raises bare ones for a broken context)
        raise _diagnose(error, host) from None
    api.timeout = _CALL_TIMEOUT
    return api


@contextlib.contextmanager
def engine_errors(doing: str, make: Callable[[str], MfimageError] = EngineError) -> Iterator[None]:
    """Turn docker-py's exceptions into `EngineError`; ``doing`` is such as "pulling NAME"."""
    try:
        yield
    except docker.errors.DockerException as error:
        explanation = getattr(error, "explanation", None) or error
        raise make(f"{doing}: {explanation}") from None
    except _CONNECTION_ERRORS as error:
        raise engine_gone(doing, error) from None


def engine_gone(doing: str, error: BaseException | None = None) -> EngineError:
    """Return the error for an engine that went away in the middle of something."""
    cause = _innermost(error) if error is not None else None
    # A response that breaks off surfaces as whatever the parser tripped over: nothing to show.
    detail = f" ({cause})" if isinstance(cause, OSError) and cause.errno else ""
    return EngineError(f"{doing}: the Docker engine went away{detail}", hint=_START)


def _host() -> str:
    if host := os.environ.get("DOCKER_HOST"):
        return host
    try:
        context = docker.ContextAPI.get_context(os.environ.get("DOCKER_CONTEXT"))
        host = context.Host if context is not None else None
    except Exception:  # noqa: BLE001  (only for the message; connecting shows what is wrong)
        return _DEFAULT_HOST
    return (host or _DEFAULT_HOST).removeprefix("http+")


def _diagnose(error: Exception, host: str) -> EngineError:
    cause = _innermost(error)
    host = mask_urls(host)
    if isinstance(cause, FileNotFoundError):
        return EngineError(f"no Docker engine: there is no socket at {host}", hint=_START)
    if isinstance(cause, PermissionError):
        return EngineError(
            f"no permission to talk to the Docker engine at {host}",
            hint="join the `docker` group (`sudo usermod -aG docker $USER`, then log in again), "
            "or use a rootless engine",
        )
    if isinstance(cause, ConnectionRefusedError):
        return EngineError(f"the Docker engine at {host} is not running", hint=_START)
    if isinstance(cause, (TimeoutError, urllib3.exceptions.TimeoutError)):
        return EngineError(f"the Docker engine at {host} does not respond", hint=_RESTART)
    return EngineError(
        f"cannot reach the Docker engine at {host}: {mask_urls(str(cause))}", hint=_START
    )


def _innermost(error: BaseException) -> BaseException:
    """Dig out the exception that explains, below docker-py's, requests' and urllib3's."""
    seen: list[BaseException] = []
    inner: BaseException | None = error
    while inner is not None and inner not in seen:
        seen.append(inner)
        arguments = (*inner.args, getattr(inner, "reason", None))
        nested = [each for each in arguments if isinstance(each, BaseException)]
        inner = nested[-1] if nested else inner.__cause__ or inner.__context__
    return next((each for each in seen if isinstance(each, OSError) and each.errno), seen[-1])


# Pulling and pushing, where failures arrive in the middle of a response with status 200


def _split(ref: str) -> tuple[str, str]:
    repository, tag = parse_repository_tag(ref)
    # Without a tag the engine would push or pull all of them.
    return repository, tag or "latest"


@contextlib.contextmanager
def _without_timeout(api: Any) -> Iterator[None]:
    """Wait without limit: a registry may be silent for minutes while it stores a large layer."""
    limit, api.timeout = api.timeout, None
    try:
        yield
    finally:
        api.timeout = limit


# How an engine reports that it has finished with a layer.
_OVER = ("Pull complete", "Already exists", "Pushed", "Layer already exists")


def _transfer(stream: Iterable[dict[str, Any]], on_event: OnEvent) -> Iterator[dict[str, Any]]:
    """Pass a pull's or push's messages on; raise the failure that one of them may be."""
    failure = None
    for message in stream:
        # Read on to the end, which leaves the connection in order.
        failure = failure or message.get("error")
        detail = message.get("progressDetail") or {}
        if layer := message.get("id"):
            current, total = (detail.get(name) or 0 for name in ("current", "total"))
            text = message.get("status") or ""
            over = text in _OVER
            event = BuildEvent(
                kind="done" if over else "progress", step=layer, text=text, brief=over,
                current=current, total=total,
            )  # fmt: skip
            on_event(event)
        yield message
    if failure:
        raise docker.errors.DockerException(failure)


_HINTS = {
    "`docker login` to the registry, with a user who may do this": (
        "unauthorized", "denied", "no basic auth", "forbidden",
    ),
    "name the registry in the engine's `insecure-registries`": ("http response to https client",),
    "give the engine the registry's CA: /etc/docker/certs.d/HOST:PORT/ca.crt": ("certificate",),
    "check the image's name and tag; `docker images` lists those that the engine has": (
        "manifest unknown", "not found", "no matching manifest",
    ),
    "check the registry's name, and that the engine reaches it: a daemon has proxies of its own": (
        "no such host", "connection refused", "no route to host", "timeout", "deadline exceeded",
    ),
}  # fmt: skip


def _registry_error(message: str) -> RegistryError:
    lowered = message.lower()
    hints = (hint for hint, signs in _HINTS.items() if any(sign in lowered for sign in signs))
    return RegistryError(message, hint=next(hints, None))


def _limited(chunks: Iterator[bytes], limit: int) -> Iterator[bytes]:
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > limit + 4 * tarfile.BLOCKSIZE + tarfile.RECORDSIZE:
            raise EngineError(f"reading a file: it is larger than {limit} bytes")
        yield chunk
