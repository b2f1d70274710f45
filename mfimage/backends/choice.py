"""Which backend runs a function."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from mfimage.backends.base import Backend
from mfimage.backends.ray.options import ray_options, refuse_unknown
from mfimage.backends.satisfies import difference
from mfimage.errors import LockError, OptionError
from mfimage.package.store import Package

logger = logging.getLogger("mfimage")
LOCAL, PROCESS, RAY = "local", "process", "ray"
_PLACES = {
    LOCAL: "in this process",
    PROCESS: "in an interpreter of its own",
    RAY: "on a Ray cluster",
}
_told: set[tuple[str, str]] = set()


def open_backend(
    package: Package,
    name: str | None = None,
    *,
    workers: int | None = None,
    timeout: float | None = None,
    cluster: Mapping[str, Any] | None = None,
) -> Backend:
    """Start a backend, and log once why it is this one.

    Parameters
    ----------
    package : Package
        What it is to run.
    name : str, optional
        ``local``, ``process`` or ``ray``. By default ``local``, if the running interpreter is
        what the function is locked to and nothing else is given.
    workers, timeout : optional
        For ``process``; see ``ProcessOptions``.
    cluster : mapping, optional
        For ``ray``; see ``RayOptions``.

    Raises
    ------
    OptionError
        When there is no such backend, or it takes no options.
    MfimageError
        When the function cannot be loaded there.
    """
    given = workers is not None or timeout is not None
    _check_cluster(name, cluster or {})
    chosen, reason = _checked(name, given) if name is not None else _choose(package, given)
    _tell(package, chosen, reason)
    if chosen == LOCAL:
        from mfimage.backends.local import LocalBackend

        return LocalBackend(package)
    if chosen == RAY:
        from mfimage.backends.ray.backend import RayBackend

        return RayBackend(package, ray_options(cluster or {}))
    from mfimage.backends.process.backend import ProcessBackend, ProcessOptions

    options = ProcessOptions(workers=1 if workers is None else workers, timeout=timeout)
    return ProcessBackend(package, options)


def _check_cluster(name: str | None, cluster: Mapping[str, Any]) -> None:
    refuse_unknown(cluster)
    if cluster and name != RAY:
        given = ", ".join(f"{option}=" for option in cluster)
        where = f"backend {name!r} does not take" if name else "only a Ray cluster takes"
        raise OptionError(f"backend: {where} {given}", hint="use backend='ray', or leave that out")


def _checked(name: str, given: bool) -> tuple[str, str]:
    if name not in _PLACES:
        raise OptionError(
            f"backend: there is no backend {name!r}",
            hint=f"use {LOCAL!r}, {PROCESS!r} or {RAY!r}",
        )
    if name == RAY and given:
        raise OptionError(
            "backend: 'ray' has actors: it takes no workers= and no timeout=",
            hint="use min_actors= and max_actors=, or backend='process'",
        )
    if name == LOCAL and given:
        raise OptionError(
            "backend: 'local' runs in this process: it has no workers and cannot stop a call",
            hint="use backend='process', or leave out workers= and timeout=",
        )
    return name, "backend= says so"


def _choose(package: Package, given: bool) -> tuple[str, str]:
    if given:
        return PROCESS, "workers= or timeout= is given"
    try:
        reason = difference(package)
    except LockError as error:
        return LOCAL, f"its lock cannot be read: {error}"
    return (PROCESS, reason) if reason else (LOCAL, "this interpreter has all that it is locked to")


def _tell(package: Package, chosen: str, reason: str) -> None:
    key = (package.reference, chosen)
    if key not in _told:
        _told.add(key)
        logger.info(
            "%s runs %s (backend %r): %s", package.spec.name, _PLACES[chosen], chosen, reason
        )
