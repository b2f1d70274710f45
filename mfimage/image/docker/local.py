"""An engine on this machine, asked without the Docker SDK: its import takes 0.1 s.

That is a third of a build after a code edit. Other engines are asked through the SDK, and it also
says why an engine on this machine does not answer.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import socket
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlencode

from mfimage.errors import EngineError
from mfimage.files import chunks_of
from mfimage.image.find.info import ImageInfo

_SOCKET = "/var/run/docker.sock"
_TIMEOUT = 60.0
_NEWEST = 3
# Bits of the mode in an engine's description of a file, which are Go's.
_SYMLINK = 1 << 27
_NOT_REGULAR = 1 << 31 | 1 << 27 | 1 << 26 | 1 << 25 | 1 << 24 | 1 << 21 | 1 << 19


class ImageEngine(Protocol):
    """What a builder that needs no container asks of an engine."""

    def inspect(self, ref: str) -> ImageInfo | None:
        """Return an image; None if the engine does not have it."""

    def describe(self, image: str) -> tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]:
        """Return what ``/images/NAME/json`` and ``/images/NAME/history`` respond."""

    def labelled(self, label: str) -> Iterator[str]:
        """Yield the IDs of the newest images with a label, as ``NAME=VALUE``."""

    def save(self, image: str) -> Iterator[bytes]:
        """Stream an image as ``docker save`` does."""

    def load(self, archive: Iterable[bytes]) -> None:
        """Load an archive as ``docker load`` does."""

    def close(self) -> None:
        """Close connections."""


def connect() -> ImageEngine:
    """Connect to the engine that ``docker`` would use."""
    path = _socket_path()
    if path is not None:
        if not Path(path).exists():
            raise EngineError(
                f"no Docker engine: there is no socket at unix://{path}",
                hint="start Docker, or point DOCKER_HOST or `docker context use` at an engine",
            )
        engine = LocalEngine(path)
        with contextlib.suppress(EngineError):
            engine.ping()
            return engine
    from mfimage.image.docker.engine import Engine

    return Engine.connect()


def _socket_path() -> str | None:
    """Return the socket of the engine; None if it is another machine's, or in a context."""
    if host := os.environ.get("DOCKER_HOST"):
        return host.removeprefix("unix://") if host.startswith("unix:///") else None
    context = os.environ.get("DOCKER_CONTEXT")
    if context is None:
        folder = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
        with contextlib.suppress(OSError, ValueError, AttributeError):
            context = json.loads((folder / "config.json").read_bytes()).get("currentContext")
    return _SOCKET if context in (None, "", "default") else None


class LocalEngine:
    """An engine that listens on a Unix socket."""

    def __init__(self, path: str) -> None:
        self._path = path

    def ping(self) -> None:
        """Raise `EngineError` unless the engine answers."""
        with self._request("connecting", "GET", "/_ping", timeout=2.5) as response:
            response.read()

    def inspect(self, ref: str) -> ImageInfo | None:
        """Return an image, without its history; None if the engine does not have it."""
        found = self._get(f"inspecting {ref}", f"/images/{_quoted(ref)}/json", absent=404)
        return ImageInfo.from_engine(found, []) if found else None

    def describe(self, image: str) -> tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]:
        """Return what ``/images/NAME/json`` and ``/images/NAME/history`` respond."""
        doing, path = f"inspecting {image}", f"/images/{_quoted(image)}"
        return self._get(doing, f"{path}/json"), self._get(doing, f"{path}/history")

    @contextlib.contextmanager
    def files(self, image: str) -> Iterator[ImageFiles]:
        """Open the files of an image, without running it."""
        doing = f"reading files of {image}"
        # Only containers have files; this one is never started.
        settings = json.dumps({"Image": image, "Entrypoint": ["/"], "Cmd": []}).encode()
        with self._request(
            doing, "POST", "/containers/create", body=settings, kind="application/json"
        ) as response:
            container = json.loads(response.read())["Id"]
        try:
            yield ImageFiles(self._request, doing, f"/containers/{container}/archive?")
        finally:
            with contextlib.suppress(EngineError):
                path = f"/containers/{container}?force=1&v=1"
                with self._request(doing, "DELETE", path) as response:
                    response.read()

    def labelled(self, label: str) -> Iterator[str]:
        """Yield the IDs of the newest images with a label, as ``NAME=VALUE``."""
        query = urlencode({"filters": json.dumps({"label": [label]})})
        found: list[dict[str, Any]] = self._get("listing images", f"/images/json?{query}")
        for image in sorted(found, key=lambda image: -image["Created"])[:_NEWEST]:
            yield image["Id"]

    def save(self, image: str) -> Iterator[bytes]:
        """Stream an image as ``docker save`` does."""
        path = f"/images/{_quoted(image)}/get"
        with self._request(f"saving {image}", "GET", path, timeout=None) as response:
            yield from chunks_of(response)

    def load(self, archive: Iterable[bytes]) -> None:
        """Load an archive as ``docker load`` does."""
        doing = "loading the image"
        path = "/images/load?quiet=1"
        with self._request(doing, "POST", path, body=archive, timeout=None) as response:
            for line in response.read().splitlines():
                if error := json.loads(line).get("error"):
                    raise EngineError(f"{doing}: {error}")

    def close(self) -> None:
        """Nothing is open between requests."""

    def _get(self, doing: str, path: str, absent: int = 0) -> Any:
        with self._request(doing, "GET", path, absent=absent) as response:
            return json.loads(response.read()) if response.status != absent else None

    @contextlib.contextmanager
    def _request(
        self,
        doing: str,
        method: str,
        path: str,
        *,
        body: Iterable[bytes] | bytes | None = None,
        kind: str = "application/x-tar",
        absent: int = 0,
        timeout: float | None = _TIMEOUT,
    ) -> Iterator[http.client.HTTPResponse]:
        connection = _Connection(self._path, timeout)
        try:
            headers = {"content-type": kind} if body is not None else {}
            connection.request(method, path, body=body, headers=headers)
            response = connection.getresponse()
            if response.status >= 400 and response.status != absent:
                raise EngineError(f"{doing}: {_message(response)}")
            yield response
        except (OSError, http.client.HTTPException) as error:
            raise EngineError(f"{doing}: the Docker engine went away ({error})") from None
        finally:
            connection.close()


@dataclass(frozen=True)
class ImageFiles:
    """Files of an image, read from a container that is never started."""

    request: Callable[..., AbstractContextManager[http.client.HTTPResponse]]
    doing: str
    archive: str

    def resolve(self, path: str) -> str | None:
        """Return the regular file that a path leads to; None if there is none."""
        found = self._stat(path)
        if found and found["mode"] & _SYMLINK:
            # The engine has followed all links.
            path, found = found["linkTarget"], self._stat(found["linkTarget"])
        return path if found and not found["mode"] & _NOT_REGULAR else None

    def _stat(self, path: str) -> Any:
        query = self.archive + urlencode({"path": path})
        with self.request(self.doing, "HEAD", query, absent=404) as response:
            header = response.headers.get("X-Docker-Container-Path-Stat")
            return json.loads(base64.b64decode(header)) if header else None

    def read(self, path: str) -> bytes | None:
        """Read a small file; None if there is no such file."""
        query = self.archive + urlencode({"path": path})
        with self.request(self.doing, "GET", query, absent=404) as response:
            if response.status == 404:
                return None
            with tarfile.open(fileobj=response, mode="r|") as tar:
                member = tar.next()
                file = tar.extractfile(member) if member and member.isfile() else None
                return file.read() if file else None


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float | None) -> None:
        super().__init__("docker", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _quoted(name: str) -> str:
    return quote(name, safe="/:@")


def _message(response: http.client.HTTPResponse) -> str:
    text = response.read().decode(errors="replace")
    with contextlib.suppress(ValueError, LookupError, TypeError):
        return str(json.loads(text)["message"])
    return text or f"HTTP {response.status}"
