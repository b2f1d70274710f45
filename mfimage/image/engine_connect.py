"""Finding the Docker engine, and saying what is wrong when it is not there."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import docker
import docker.errors
import requests
import urllib3.exceptions

from mfimage.errors import EngineError
from mfimage.masking import Masker

# Together below three seconds: connecting and answering may each take this long over TCP.
_LOCAL_TIMEOUT, _REMOTE_TIMEOUT = 2.5, 1.3
_CALL_TIMEOUT = 60
_PING_TIMEOUT = 3.0
_DEFAULT_HOST = "unix:///var/run/docker.sock"
_START = (
    "start Docker (for example `systemctl start docker`), or point DOCKER_HOST or "
    "`docker context use` at a running engine"
)
_RESTART = "see its log (for example `journalctl -u docker`) and restart it"

# What a connection that breaks raises, by the layer that notices first.
CONNECTION_ERRORS = (
    requests.exceptions.ConnectionError,
    requests.exceptions.ChunkedEncodingError,
    requests.exceptions.Timeout,
    urllib3.exceptions.HTTPError,
    OSError,
)


def connect() -> docker.APIClient:
    """Connect to the engine that ``docker`` would use: DOCKER_HOST, or the current context.

    Raises
    ------
    EngineError
        If none answers within three seconds.
    """
    host = _host()
    local = host.startswith(("unix://", "npipe://"))
    try:
        _probe(host)
        from_env: Any = docker.from_env
        api: docker.APIClient = from_env(timeout=_LOCAL_TIMEOUT if local else _REMOTE_TIMEOUT).api
    except Exception as error:  # noqa: BLE001  (docker-py raises bare ones for a broken context)
        raise _diagnose(error, host) from None
    api.timeout = _CALL_TIMEOUT
    return api


@contextmanager
def engine_errors(doing: str) -> Iterator[None]:
    """Turn docker-py's exceptions into `EngineError`.

    Parameters
    ----------
    doing : str
        What was tried, as in "inspecting python:3.11".
    """
    try:
        yield
    except docker.errors.DockerException as error:
        explanation = getattr(error, "explanation", None) or error
        raise EngineError(f"{doing}: {explanation}") from None
    except CONNECTION_ERRORS as error:
        raise engine_gone(doing, error) from None


def engine_gone(
    doing: str, error: BaseException | None = None, *, hangs: bool = False
) -> EngineError:
    """Return the error for an engine that went away in the middle of something."""
    if hangs:
        return EngineError(f"{doing}: the Docker engine no longer answers", hint=_RESTART)
    cause = _innermost(error) if error is not None else None
    # An answer that breaks off surfaces as whatever the parser tripped over: nothing to show.
    detail = f" ({cause})" if isinstance(cause, OSError) and cause.errno else ""
    return EngineError(f"{doing}: the Docker engine went away{detail}", hint=_START)


def alive(api: docker.APIClient) -> bool:
    """Ask whether the engine still answers."""
    try:
        return bool(api.get(api.base_url + "/_ping", timeout=_PING_TIMEOUT).ok)
    except CONNECTION_ERRORS:
        return False


def _host() -> str:
    if host := os.environ.get("DOCKER_HOST"):
        return host
    try:
        context = docker.ContextAPI.get_context(os.environ.get("DOCKER_CONTEXT"))
        host = context.Host if context is not None else None
    except Exception:  # noqa: BLE001  (only for the message; connecting tells what is wrong)
        return _DEFAULT_HOST
    return (host or _DEFAULT_HOST).removeprefix("http+")


def _probe(host: str) -> None:
    """Fail early, and more to the point, where docker-py would leave an open socket behind."""
    if host.startswith("unix://"):
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(_LOCAL_TIMEOUT)
            probe.connect("/" + host.removeprefix("unix://").lstrip("/"))


def _diagnose(error: Exception, host: str) -> EngineError:
    cause = _innermost(error)
    redact = Masker([])
    host = redact(host)
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
        return EngineError(
            f"the Docker engine at {host} does not answer",
            hint=_RESTART,
        )
    return EngineError(
        f"cannot reach the Docker engine at {host}: {redact(str(cause))}", hint=_START
    )


def _innermost(error: BaseException) -> BaseException:
    """Dig out the exception that says why, below docker-py's, requests' and urllib3's."""
    seen: list[BaseException] = []
    inner: BaseException | None = error
    while inner is not None and inner not in seen:
        seen.append(inner)
        nested = [
            arg
            for arg in (*inner.args, getattr(inner, "reason", None))
            if isinstance(arg, BaseException)
        ]
        inner = nested[-1] if nested else inner.__cause__ or inner.__context__
    return next((each for each in seen if isinstance(each, OSError) and each.errno), seen[-1])
