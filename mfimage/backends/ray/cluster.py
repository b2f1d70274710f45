"""Joining a Ray cluster, and what its nodes have; nothing here waits long."""

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

# Nodes of a cluster that has just started may not have registered yet.
_SETTLE_SECONDS = 5.0
# Ray forwards what actors print at intervals; a script that ends waits as long.
_LAST_LINES_SECONDS = 0.5
_MAX_NODES_SHOWN = 5
_GIB = 2**30
_IN_BYTES = ("memory", "object_store_memory")

_LOCK = threading.Lock()
_users = 0
_ours = False


def import_ray() -> Any:
    """Return Ray, or raise ``BackendError`` when it is not installed."""
    try:
        import ray
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise BackendError(
            "backend 'ray' needs ray, which is not installed here",
            hint="pip install 'mfimage[ray]', at the cluster's version of Ray",
        ) from None
    return ray


def join(address: str | None) -> None:
    """Join a cluster, unless this process has joined it; each call needs a ``leave``."""
    global _users, _ours  # noqa: PLW0603  (Ray's own connection is one per process)
    ray = import_ray()
    with _LOCK:
        if not ray.is_initialized():
            connect(ray, address)
            _ours, _users = True, 0
        elif address not in (None, "auto") and "://" not in str(address):
            here = ray.get_runtime_context().gcs_address
            if address != here and _resolved(str(address)) != _resolved(here):
                raise OptionError(
                    f"address: this process has joined the Ray cluster at {here}, not {address}",
                    hint="omit address=, or call ray.shutdown() first",
                )
        _users += 1


def leave() -> None:
    """Leave, once no other backend uses it, a cluster that ``join`` joined; one it started ends."""
    global _users, _ours  # noqa: PLW0603  (as in join)
    ray = import_ray()
    with _LOCK:
        _users -= 1
        if _ours and _users <= 0:
            _ours = False
            time.sleep(_LAST_LINES_SECONDS)
            with contextlib.suppress(Exception):  # the connection may be lost already
                ray.shutdown()


def _resolved(address: str) -> tuple[str, str]:
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError):
        host = socket.gethostbyname(host)
    return host, port


def check_room(
    name: str, each: Mapping[str, float], actors: int, patience: float, hint: str | None = None
) -> float:
    """Return how many actors that take ``each`` fit on an empty cluster, at least ``actors``."""
    ray = import_ray()
    limit = time.monotonic() + max(patience, _SETTLE_SECONDS)
    while True:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        fits = sum(_fitting(each, node) for node in nodes)
        if fits >= actors:
            return fits
        if time.monotonic() > limit:
            break
        time.sleep(0.2)
    needs = f"{actors} actors with {describe(each)} each" if actors > 1 else describe(each)
    waited = f" after {patience:g} s" if patience else ""
    if len(nodes) == 1:
        has = f"one node with {describe(nodes[0])}"
    else:
        shown = "; ".join(map(describe, nodes[:_MAX_NODES_SHOWN]))
        has = f"{len(nodes)} nodes: {shown}{'; ...' if len(nodes) > _MAX_NODES_SHOWN else ''}"
    raise BackendError(
        f"{name}: {needs} requested, and the Ray cluster{waited} has {has}",
        hint=hint
        or "request less, or add nodes; if the cluster scales itself, allow it more seconds "
        "with patience=",
    )


def _fitting(each: Mapping[str, float], node: Mapping[str, float]) -> float:
    counts = (math.floor(node.get(name, 0) / amount + 1e-9) for name, amount in each.items())
    return min(counts, default=math.inf)


def describe(resources: Mapping[str, float]) -> str:
    """Return resources as text: ``2 CPU, 1.5 GiB memory``."""
    shown = [
        f"{amount / _GIB:.3g} GiB {name}" if name in _IN_BYTES else f"{amount:g} {name}"
        for name, amount in sorted(resources.items())
        if not name.startswith(("node:", "object_store"))
    ]
    return ", ".join(shown) or "nothing"
