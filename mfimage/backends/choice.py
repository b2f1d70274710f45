"""Which backend runs a function."""

from __future__ import annotations

import logging

from mfimage.backends.base import Backend
from mfimage.backends.satisfies import difference
from mfimage.errors import LockError, OptionError
from mfimage.package.store import Package

logger = logging.getLogger("mfimage")
LOCAL, PROCESS = "local", "process"
_told: set[tuple[str, str]] = set()


def open_backend(
    package: Package,
    name: str | None = None,
    *,
    workers: int | None = None,
    timeout: float | None = None,
) -> Backend:
    """Start a backend, and log once why it is this one.

    Parameters
    ----------
    package : Package
        What it is to run.
    name : str, optional
        ``local`` or ``process``. By default ``local``, if the running interpreter is what the
        function is locked to and nothing else is given.
    workers, timeout : optional
        For ``process``; see ``ProcessOptions``.

    Raises
    ------
    OptionError
        When there is no such backend, or it takes no options.
    MfimageError
        When the function cannot be loaded there.
    """
    given = workers is not None or timeout is not None
    chosen, reason = _checked(name, given) if name is not None else _choose(package, given)
    _tell(package, chosen, reason)
    if chosen == LOCAL:
        from mfimage.backends.local import LocalBackend

        return LocalBackend(package)
    from mfimage.backends.process import ProcessBackend, ProcessOptions

    options = ProcessOptions(workers=1 if workers is None else workers, timeout=timeout)
    return ProcessBackend(package, options)


def _checked(name: str, given: bool) -> tuple[str, str]:
    if name not in (LOCAL, PROCESS):
        raise OptionError(
            f"backend: there is no backend {name!r}", hint=f"use {LOCAL!r} or {PROCESS!r}"
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
        where = "in this process" if chosen == LOCAL else "in an interpreter of its own"
        logger.info("%s runs %s (backend %r): %s", package.spec.name, where, chosen, reason)
