"""Errors of a pipeline's parts: each names the part."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from mfimage.errors import Fault, InputError, OutputError


def of_part(error: Exception, pipeline: str, parts: Sequence[str], index: int) -> Exception:
    """Return an exception of a part of a pipeline, with a note that names the part.

    That a part does not accept what the one before it returned is not the caller's error: it
    becomes an ``OutputError``.
    """
    name = parts[index]
    if index and isinstance(error, InputError):
        before = parts[index - 1]
        faults = [
            Fault(path=f"{before} -> {name}: {fault.path}", message=fault.message)
            for fault in error.faults
        ]
        refused = OutputError(faults, hint=f"{name} does not accept what {before} returned")
        refused.__cause__ = error
        error = refused
    note = f"in {name}, part {index + 1} of {len(parts)} of the pipeline {pipeline}"
    notes = getattr(error, "__notes__", [])
    if note not in notes:
        with suppress(Exception):  # the class is the function's own
            error.__notes__ = [*notes, note]  # as Python 3.11 does
    return error
