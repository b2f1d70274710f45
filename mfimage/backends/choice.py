"""Which backend runs a function."""

from __future__ import annotations

import logging

from mfimage.backends.base import Backend
from mfimage.backends.process import ProcessBackend, ProcessOptions
from mfimage.backends.satisfies import difference
from mfimage.errors import OptionError
from mfimage.package.store import Package

logger = logging.getLogger("mfimage")
LOCAL, PROCESS = "local", "process"
_told: set[tuple[str, str]] = set()


def open_backend(
    package: Package, name: str | None = None, options: ProcessOptions | None = None
) -> Backend:
    """Start a backend, and log once why it is this one.

    Parameters
    ----------
    package : Package
        What it is to run.
    name : str, optional
        ``local`` or ``process``. By default ``local``, if the running interpreter is what the
        function is locked to and ``options`` are not given.
    options : ProcessOptions, optional
        For ``process``.

    Raises
    ------
    OptionError
        When there is no such backend, or it takes no options.
    MfimageError
        When the function cannot be loaded there.
    """
    if name is not None and name not in (LOCAL, PROCESS):
        raise OptionError(
            f"backend: there is no backend {name!r}", hint=f"use {LOCAL!r} or {PROCESS!r}"
        )
    if name == LOCAL and options is not None:
        raise OptionError(
            "backend: 'local' runs in this process: it has no workers and cannot stop a call",
            hint="use backend='process', or leave out workers= and timeout=",
        )
    chosen, reason = (name, "backend= says so") if name else _choose(package, options)
    _tell(package, chosen, reason)
    if chosen == PROCESS:
        return ProcessBackend(package, options or ProcessOptions())
    from mfimage.backends.local import LocalBackend

    return LocalBackend(package)


def _choose(package: Package, options: ProcessOptions | None) -> tuple[str, str]:
    if options is not None:
        return PROCESS, "workers= or timeout= is given"
    reason = difference(package)
    return (PROCESS, reason) if reason else (LOCAL, "this interpreter has all that it is locked to")


def _tell(package: Package, chosen: str, reason: str) -> None:
    key = (package.reference, chosen)
    if key not in _told:
        _told.add(key)
        where = "in this process" if chosen == LOCAL else "in an interpreter of its own"
        logger.info("%s runs %s (backend %r): %s", package.spec.name, where, chosen, reason)
