"""What can be known before Ray is used: it would try for minutes where nobody answers."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from typing import Any

from mfimage.errors import BackendError, OptionError

_CONNECT_SECONDS = 3.0
# A client's greeting in HTTP/2, which gRPC speaks, and the kind of frame that answers it.
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
_SETTINGS = 4


def connect(ray: Any, address: str | None) -> None:
    """Join a cluster.

    Parameters
    ----------
    ray : module
        Ray.
    address : str or None
        ``host:port``; ``auto`` for the one of this machine; ``local`` for a new one here. By
        default the one that ``RAY_ADDRESS`` names, the one of this machine, or a new one.

    Raises
    ------
    BackendError
        When nobody is there, or what is there has other versions.
    """
    known = os.environ.get("RAY_ADDRESS")
    wanted = address or known
    target = known if wanted == "auto" else wanted  # as Ray takes it
    if target and target not in ("auto", "local"):
        preflight(target)
    if wanted == "local":
        _start_here(ray)
        return
    try:
        ray.init(address=wanted or "auto", **_quiet(logging.WARNING))
    except ConnectionError as error:
        if wanted is None:
            _start_here(ray)
            return
        raise BackendError(
            f"no Ray cluster at {wanted}: {_first_line(error)}",
            hint="start one with `ray start --head`, or leave out the address to get one here",
        ) from None
    except (RuntimeError, ValueError) as error:
        raise BackendError(
            f"the Ray cluster{f' at {wanted}' if wanted else ''} cannot be used: {error}",
            hint="the versions of Ray and Python have to be the cluster's",
        ) from error


def _start_here(ray: Any) -> None:
    """Start a cluster of this machine alone; it ends with this process."""
    try:
        with _without_usage_stats():
            # Its warnings are of authentication and shared memory, of clusters that stay.
            ray.init(address="local", include_dashboard=False, **_quiet(logging.ERROR))
    except Exception as error:
        ray.shutdown()
        raise BackendError(
            f"Ray does not start here: {_first_line(error)}",
            hint="is this machine very busy, or out of memory? Ray logs to its session's folder",
        ) from error


def _quiet(level: int) -> dict[str, Any]:
    # What Ray tells of itself is for those who start it themselves.
    return {"logging_level": level, "log_to_driver": True}


@contextlib.contextmanager
def _without_usage_stats() -> Iterator[None]:
    before = os.environ.get("RAY_USAGE_STATS_ENABLED")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        yield
    finally:
        if before is None:
            del os.environ["RAY_USAGE_STATS_ENABLED"]


def preflight(address: str) -> None:
    """Find out whether somebody answers at an address: Ray itself would try for minutes.

    Raises
    ------
    BackendError
        When not.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise OptionError(
            f"address: expected 'auto' or host:port, got {address!r}",
            hint="`ray start --head` prints it; the port is 6379 by default",
        )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS) as sock:
            if os.environ.get("RAY_USE_TLS", "0") in ("", "0"):
                _greet(sock)
    except (OSError, OverflowError) as error:
        raise BackendError(
            f"no Ray cluster answers at {address}: {error or type(error).__name__}",
            hint="is it running, and may this machine reach that port?",
        ) from None


def _greet(sock: socket.socket) -> None:
    """Speak to a gRPC server: a port that something listens at is no cluster yet."""
    sock.settimeout(_CONNECT_SECONDS / 2)
    sock.sendall(_GREETING)
    answer = b""
    while len(answer) < 4:
        part = sock.recv(9)
        if not part:
            raise OSError("what listens there hung up")
        answer += part
    if answer[3] != _SETTINGS:
        raise OSError("what listens there is no head of a Ray cluster")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def import_serve() -> Any:
    """Return ``ray.serve``.

    Raises
    ------
    BackendError
        When it is not installed.
    """
    try:
        import ray.serve
    except ModuleNotFoundError as error:
        raise BackendError(
            f"serve: this image has no Ray Serve ({error.name} is missing)",
            hint="mfimage build REFERENCE --target ray --with serve",
        ) from None
    return ray.serve
