"""Joining a Ray cluster, and what it has: nothing here waits long for what is not there."""

from __future__ import annotations

import contextlib
import math
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any

from mfimage.errors import BackendError, OptionError
from mfimage.runtime.ray.preflight import connect

# Nodes of a cluster that is just starting may still be on their way.
_SETTLE_SECONDS = 5.0
# Ray passes on what actors print every now and then; when a script ends, it waits as long itself.
_LAST_LINES_SECONDS = 0.5
_UNITS = {"memory": 2**30, "object_store_memory": 2**30}

_LOCK = threading.Lock()
_users = 0
_ours = False


def import_ray() -> Any:
    """Return Ray.

    Raises
    ------
    BackendError
        When it is not installed.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise BackendError(
            "backend 'ray' needs ray, which is not installed here",
            hint="pip install 'mfimage[ray]', at the version that the cluster has",
        ) from None
    return ray


def join(address: str | None) -> None:
    """Join a cluster, unless this process has; each call wants a ``leave``.

    Parameters
    ----------
    address : str or None
        See ``RayOptions``.

    Raises
    ------
    BackendError
        When nobody is there, within five seconds.
    """
    global _users, _ours  # noqa: PLW0603  (Ray itself is one for a process)
    ray = import_ray()
    with _LOCK:
        if ray.is_initialized():
            _check_same(ray, address)
        else:
            connect(ray, address)
            _ours, _users = True, 0
        _users += 1


def leave() -> None:
    """Leave the cluster, if ``join`` joined it and nobody else of this process needs it.

    A cluster that was started by joining ends.
    """
    global _users, _ours  # noqa: PLW0603  (as in join)
    ray = import_ray()
    with _LOCK:
        _users -= 1
        if _ours and _users <= 0:
            _ours = False
            time.sleep(_LAST_LINES_SECONDS)
            with contextlib.suppress(Exception):  # it may be gone
                ray.shutdown()


def _check_same(ray: Any, address: str | None) -> None:
    if address in (None, "auto") or "://" in str(address):
        return
    here = ray.get_runtime_context().gcs_address
    if address != here and _resolved(str(address)) != _resolved(here):
        raise OptionError(
            f"address: this process has joined the Ray cluster at {here}, not {address}",
            hint="leave out address=, or call ray.shutdown() first",
        )


def _resolved(address: str) -> tuple[str, str]:
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError):
        host = socket.gethostbyname(host)
    return host, port


def nodes() -> list[dict[str, float]]:
    """Return what each node has, by Ray's names."""
    ray = import_ray()
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def room(asked: Mapping[str, float], found: list[dict[str, float]]) -> float:
    """Return how many actors of a kind fit on nodes that are otherwise empty."""
    return sum(
        min(
            (_whole(node.get(name, 0) / amount) for name, amount in asked.items()), default=math.inf
        )
        for node in found
    )


def _whole(number: float) -> int:
    return math.floor(number + 1e-9)


def check_room(
    name: str, asked: Mapping[str, float], actors: int, patience: float, hint: str | None = None
) -> float:
    """Return how many actors fit on the cluster.

    Raises
    ------
    BackendError
        When fewer than ``actors`` do, after a few seconds and ``patience``.
    """
    limit = time.monotonic() + max(patience, _SETTLE_SECONDS)
    while (fits := room(asked, found := nodes())) < actors:
        if time.monotonic() > limit:
            each = f"{actors} actors with {told(asked)} each" if actors > 1 else told(asked)
            waited = f" after {patience:g} s" if patience else ""
            raise BackendError(
                f"{name}: {each} asked for, and the Ray cluster{waited} has {_told_nodes(found)}",
                hint=hint
                or "ask for less, or add nodes; for a cluster that does that by itself, "
                "say with patience= how many seconds it may take",
            )
        time.sleep(0.2)
    return fits


def told(resources: Mapping[str, float]) -> str:
    """Return resources as text: ``2 CPU, 1.5 GiB memory``."""
    return (
        ", ".join(
            f"{amount / _UNITS[name]:.3g} GiB {name}" if name in _UNITS else f"{amount:g} {name}"
            for name, amount in sorted(resources.items())
            if not name.startswith(("node:", "object_store"))
        )
        or "nothing"
    )


def free() -> str:
    """Return as text what nobody uses."""
    return told(import_ray().available_resources())


def _told_nodes(found: list[dict[str, float]]) -> str:
    if len(found) == 1:
        return f"one node with {told(found[0])}"
    most = 5
    listed = "; ".join(told(node) for node in found[:most])
    return f"{len(found)} nodes: {listed}{'; ...' if len(found) > most else ''}"
