"""Which backend runs a function."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from mfimage.backends.base import Backend
from mfimage.backends.ray.options import RayOptions, check_names
from mfimage.backends.satisfies import difference, isolated_python
from mfimage.errors import LockError, OptionError
from mfimage.package.store import Package, Pipeline
from mfimage.runtime.loading.modules import NameTaken

logger = logging.getLogger("mfimage")
LOCAL, PROCESS, RAY = "local", "process", "ray"
_PLACES = {
    LOCAL: "in this process",
    PROCESS: "in an interpreter of its own",
    RAY: "on a Ray cluster",
}
_logged: set[tuple[str, str]] = set()


def open_backend(
    package: Package | Pipeline,
    name: str | None = None,
    *,
    workers: int | None = None,
    timeout: float | None = None,
    cluster: Mapping[str, Any] | None = None,
) -> Backend:
    """Start the backend with a name, or the one that fits; log once why it was chosen.

    Each part of a pipeline has its own, with the same options.
    """
    given = workers is not None or timeout is not None
    cluster = cluster or {}
    _check(name, given, cluster)
    if isinstance(package, Pipeline):
        if name == RAY:
            raise OptionError(
                f"backend: 'ray' runs one function, and {package.spec.name} is a pipeline",
                hint="use backend='process', or load its parts with backend='ray'",
            )
        return _open_parts(package, name, workers, timeout)
    chosen, reason = (name, "backend= is given") if name else _choose(package, given)
    python = local = None
    if chosen == LOCAL:
        from mfimage.backends.local import LocalBackend

        try:
            local = LocalBackend(package)
        except NameTaken as taken:
            chosen, reason = PROCESS, str(taken)
            python = isolated_python(package)
    if (package.reference, chosen) not in _logged:
        _logged.add((package.reference, chosen))
        text = "%s runs %s (backend %r): %s"
        level = logging.INFO if name in (None, chosen) else logging.WARNING
        logger.log(level, text, package.spec.name, _PLACES[chosen], chosen, reason)
    if local is not None:
        return local
    if chosen == RAY:
        from mfimage.backends.ray.backend import RayBackend

        return RayBackend(package, RayOptions(**cluster))
    from mfimage.backends.process.backend import ProcessBackend, ProcessOptions

    options = ProcessOptions(
        workers=1 if workers is None else workers, timeout=timeout, python=python
    )
    return ProcessBackend(package, options)


def _open_parts(
    pipeline: Pipeline, name: str | None, workers: int | None, timeout: float | None
) -> Backend:
    from mfimage.backends.pipeline import PipelineBackend

    opened: dict[str, Backend] = {}  # one that is a part twice runs on one backend
    try:
        for part in pipeline.parts:
            if part.reference not in opened:
                opened[part.reference] = open_backend(part, name, workers=workers, timeout=timeout)
    except BaseException:
        for backend in opened.values():
            backend.close()
        raise
    return PipelineBackend(pipeline.spec, [opened[part.reference] for part in pipeline.parts])


def _check(name: str | None, given: bool, cluster: Mapping[str, Any]) -> None:
    check_names(cluster)
    if cluster and name != RAY:
        options = ", ".join(f"{option}=" for option in cluster)
        where = f"backend {name!r} does not take" if name else "only a Ray cluster takes"
        raise OptionError(f"backend: {where} {options}", hint="use backend='ray', or omit them")
    if name is not None and name not in _PLACES:
        raise OptionError(f"backend: expected {LOCAL!r}, {PROCESS!r} or {RAY!r}, got {name!r}")
    if name == RAY and given:
        raise OptionError(
            "backend: 'ray' takes no workers= and no timeout=",
            hint="use min_actors= and max_actors=, or backend='process'",
        )
    if name == LOCAL and given:
        raise OptionError(
            "backend: 'local' runs in this process: it has no workers and cannot stop a call",
            hint="use backend='process', or omit workers= and timeout=",
        )


def _choose(package: Package, given: bool) -> tuple[str, str]:
    if given:
        return PROCESS, "workers= or timeout= is given"
    try:
        reason = difference(package)
    except LockError as error:
        return LOCAL, f"its lock cannot be read: {error}"
    return (PROCESS, reason) if reason else (LOCAL, "this interpreter satisfies its lock")
