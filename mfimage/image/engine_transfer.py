"""Pulling and pushing by the engine, which tells of failures in the middle of a good answer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import docker
import docker.errors
from docker.utils import parse_repository_tag

from mfimage.errors import EngineError, RegistryError
from mfimage.image.engine_connect import CONNECTION_ERRORS, engine_errors, engine_gone
from mfimage.image.engine_events import BuildEvent

OnEvent = Callable[[BuildEvent], None]


def pull(api: docker.APIClient, ref: str, platform: str | None, on_event: OnEvent) -> None:
    """Pull an image; see `Engine.pull`."""
    repository, tag = split(ref)
    with _registry_errors(f"pulling {ref}"):
        stream = api.pull(repository, tag=tag, platform=platform, stream=True, decode=True)
        for _ in _transfer(stream, on_event):
            pass


def push(api: docker.APIClient, ref: str, on_event: OnEvent) -> str:
    """Push an image; return its manifest's digest; see `Engine.push`."""
    repository, tag = split(ref)
    digest = None
    with _registry_errors(f"pushing {ref}"):
        with _patience(api):
            stream = api.push(repository, tag=tag, stream=True, decode=True)
        for message in _transfer(stream, on_event):
            digest = (message.get("aux") or {}).get("Digest") or digest
    if digest is None:
        raise RegistryError(f"pushing {ref}: the engine did not tell the digest")
    return str(digest)


def load(api: docker.APIClient, archive: Iterable[bytes]) -> None:
    """Take in an image; see `Engine.load`."""
    doing = "loading the image"
    with engine_errors(doing), _patience(api):
        untyped: Any = api
        for message in untyped.load_image(archive, quiet=True) or ():
            if error := message.get("error"):
                raise EngineError(f"{doing}: {error}")


def split(ref: str) -> tuple[str, str]:
    """Split a reference into its repository, and its tag or digest."""
    repository, tag = parse_repository_tag(ref)
    # Without a tag the engine would push or pull all of them.
    return repository, tag or "latest"


@contextlib.contextmanager
def _registry_errors(doing: str) -> Iterator[None]:
    try:
        yield
    except docker.errors.DockerException as error:
        raise _registry_error(doing, str(getattr(error, "explanation", None) or error)) from None
    except CONNECTION_ERRORS as error:
        raise engine_gone(doing, error) from None


@contextlib.contextmanager
def _patience(api: Any) -> Iterator[None]:
    """Wait without limit: a registry may say nothing for minutes while it stores a large layer."""
    limit, api.timeout = api.timeout, None
    try:
        yield
    finally:
        api.timeout = limit


def _transfer(stream: Iterable[dict[str, Any]], on_event: OnEvent) -> Iterator[dict[str, Any]]:
    """Pass a pull's or push's messages on; raise the failure that one of them may be."""
    failure = None
    for message in stream:
        # Read on to the end, which leaves the connection in order.
        failure = failure or message.get("error")
        detail = message.get("progressDetail") or {}
        if layer := message.get("id"):
            on_event(
                BuildEvent(
                    kind="progress",
                    step=layer,
                    text=message.get("status") or "",
                    current=detail.get("current") or 0,
                    total=detail.get("total") or 0,
                )
            )
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


def _registry_error(doing: str, message: str) -> RegistryError:
    lowered = message.lower()
    hints = (hint for hint, signs in _HINTS.items() if any(sign in lowered for sign in signs))
    return RegistryError(f"{doing}: {message}", hint=next(hints, None))
