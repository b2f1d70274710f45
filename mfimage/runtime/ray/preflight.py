"""Joining a Ray cluster: Ray itself retries for minutes when no cluster is there."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from typing import Any

from mfimage.errors import BackendError, OptionError

_CONNECT_SECONDS = 3.0
# The preface of an HTTP/2 client, as gRPC sends it, and the type of the server's first frame.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
_SETTINGS = 4


def connect(ray: Any, address: str | None) -> None:
    """Join a cluster; ``BackendError`` when there is none, or its Ray or Python is another version.

    ``address`` is ``host:port``; ``auto``: the cluster on this machine; ``local``: a new one here.
    By default the one that ``RAY_ADDRESS`` names, the one on this machine, or a new one.
    """
    known = os.environ.get("RAY_ADDRESS")
    wanted = address or known
    target = known if wanted == "auto" else wanted  # as Ray understands it
    if target and target not in ("auto", "local"):
        preflight(target)
    if wanted == "local":
        _start_here(ray)
        return
    try:
        ray.init(address=wanted or "auto", logging_level=logging.WARNING)
    except ConnectionError as error:
        if wanted is None:
            _start_here(ray)
            return
        raise BackendError(
            f"no Ray cluster at {wanted}: {_first_line(error)}",
            hint="start one with `ray start --head`, or omit the address to start one here",
        ) from None
    except (RuntimeError, ValueError) as error:
        raise BackendError(
            f"the Ray cluster{f' at {wanted}' if wanted else ''} cannot be used: {error}",
            hint="use the cluster's versions of Ray and Python",
        ) from error


def _start_here(ray: Any) -> None:
    """Start a cluster on this machine; it ends with this process."""
    try:
        with _without_usage_stats():
            # It warns of authentication and shared memory, which matter to clusters that stay.
            ray.init(address="local", include_dashboard=False, logging_level=logging.ERROR)
    except Exception as error:
        ray.shutdown()
        raise BackendError(
            f"Ray cannot be started here: {_first_line(error)}",
            hint="is this machine overloaded or out of memory? see the logs of Ray's session",
        ) from error


@contextlib.contextmanager
def _without_usage_stats() -> Iterator[None]:
    name = "RAY_USAGE_STATS_ENABLED"
    if name in os.environ:
        yield
        return
    os.environ[name] = "0"
    try:
        yield
    finally:
        del os.environ[name]


def preflight(address: str) -> None:
    """Raise a ``BackendError`` unless a gRPC server responds at an address."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise OptionError(
            f"address: expected 'auto' or host:port, got {address!r}",
            hint="`ray start --head` prints it; the port is 6379 by default",
        )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS) as sock:
            if os.environ.get("RAY_USE_TLS", "0") in ("", "0"):
                _require_grpc(sock)
    except (OSError, OverflowError) as error:
        raise BackendError(
            f"no Ray cluster responds at {address}: {error or type(error).__name__}",
            hint="is it running, and can this machine reach the port?",
        ) from None


def _require_grpc(sock: socket.socket) -> None:
    """Raise ``OSError`` when the server at the other end does not use HTTP/2, as gRPC does."""
    sock.settimeout(_CONNECT_SECONDS / 2)
    sock.sendall(_PREFACE)
    received = b""
    while len(received) < 4:
        chunk = sock.recv(9)
        if not chunk:
            raise OSError("the server there closed the connection")
        received += chunk
    if received[3] != _SETTINGS:
        raise OSError("the server there is not the head of a Ray cluster")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def import_serve() -> Any:
    """Return ``ray.serve``; ``BackendError`` when it is not installed."""
    try:
        import ray.serve
    except ModuleNotFoundError as error:
        raise BackendError(
            f"serve: this image has no Ray Serve ({error.name} is missing)",
            hint="mfimage build REFERENCE --target ray --with serve",
        ) from None
    return ray.serve
