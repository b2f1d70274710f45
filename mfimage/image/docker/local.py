"""An engine on this machine, asked without the Docker SDK: its import takes 0.1 s.

That is a third of a build after a code edit. Other engines are asked through the SDK, and it also
says why an engine on this machine does not answer.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlencode

from mfimage.errors import EngineError
from mfimage.files import chunks_of
from mfimage.image.find.info import ImageInfo

_SOCKET = "/var/run/docker.sock"
_TIMEOUT = 60.0
_NEWEST = 3


class ImageEngine(Protocol):
    """What a builder that needs no container asks of an engine."""

    def inspect(self, ref: str) -> ImageInfo | None:
        """Return an image; None if the engine does not have it."""

    def labelled(self, label: str) -> Iterator[str]:
        """Yield the IDs of the newest images with a label, as ``NAME=VALUE``."""

    def save(self, image: str) -> Iterator[bytes]:
        """Stream an image as ``docker save`` does."""

    def load(self, archive: Iterable[bytes]) -> None:
        """Load an archive as ``docker load`` does."""

    def close(self) -> None:
        """Close connections."""


def connect() -> ImageEngine:
    """Connect to the engine that ``docker`` would use.

    Raises
    ------
    EngineError
        If none answers.
    """
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
        path = f"/images/{quote(ref, safe='/:@')}/json"
        with self._request(f"inspecting {ref}", "GET", path, absent=404) as response:
            if response.status == 404:
                return None
            return ImageInfo.from_engine(json.loads(response.read()), [])

    def labelled(self, label: str) -> Iterator[str]:
        """Yield the IDs of the newest images with a label, as ``NAME=VALUE``."""
        query = urlencode({"filters": json.dumps({"label": [label]})})
        with self._request("listing images", "GET", f"/images/json?{query}") as response:
            found: list[dict[str, Any]] = json.loads(response.read())
        for image in sorted(found, key=lambda image: -image["Created"])[:_NEWEST]:
            yield image["Id"]

    def save(self, image: str) -> Iterator[bytes]:
        """Stream an image as ``docker save`` does."""
        path = f"/images/{quote(image, safe='/:@')}/get"
        with self._request(f"saving {image}", "GET", path, timeout=None) as response:
            yield from chunks_of(response)

    def load(self, archive: Iterable[bytes]) -> None:
        """Load an archive as ``docker load`` does."""
        doing = "loading the image"
        with self._request(
            doing, "POST", "/images/load?quiet=1", body=archive, timeout=None
        ) as response:
            for line in response.read().splitlines():
                if error := json.loads(line).get("error"):
                    raise EngineError(f"{doing}: {error}")

    def close(self) -> None:
        """Nothing is open between requests."""

    @contextlib.contextmanager
    def _request(
        self,
        doing: str,
        method: str,
        path: str,
        *,
        body: Iterable[bytes] | None = None,
        absent: int = 0,
        timeout: float | None = _TIMEOUT,
    ) -> Iterator[http.client.HTTPResponse]:
        connection = _Connection(self._path, timeout)
        try:
            headers = {"content-type": "application/x-tar"} if body is not None else {}
            connection.request(method, path, body=body, headers=headers)
            response = connection.getresponse()
            if response.status >= 400 and response.status != absent:
                raise EngineError(f"{doing}: {_message(response)}")
            yield response
        except (OSError, http.client.HTTPException) as error:
            raise EngineError(f"{doing}: the Docker engine went away ({error})") from None
        finally:
            connection.close()


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float | None) -> None:
        super().__init__("docker", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _message(response: http.client.HTTPResponse) -> str:
    text = response.read().decode(errors="replace")
    with contextlib.suppress(ValueError, LookupError, TypeError):
        return str(json.loads(text)["message"])
    return text or f"HTTP {response.status}"
