"""Errors of a pipeline: each names its part."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from mfimage.errors import Fault, InputError, OutputError
from mfimage.package.spec import PipelineSpec


class PartErrors:
    """The names of a pipeline's parts; exceptions that pass through get the name of theirs."""

    def __init__(self, spec: PipelineSpec) -> None:
        self._pipeline = spec.name
        self._names = [part.name for part in spec.parts]

    @contextmanager
    def naming(self, index: int) -> Iterator[None]:
        """Name a part in what is raised in this block."""
        try:
            yield
        except Exception as error:
            named = self.named(index, error)
            if named is error:
                raise
            raise named from error

    def named(self, index: int, error: Exception) -> Exception:
        """Return an exception of a part with a note that names it.

        That a part does not accept what the one before it returned is not the caller's error: it
        becomes an ``OutputError``.
        """
        name = self._names[index]
        if index and isinstance(error, InputError):
            before = self._names[index - 1]
            faults = [
                Fault(path=f"{before} -> {name}: {fault.path}", message=fault.message)
                for fault in error.faults
            ]
            refused = OutputError(faults, hint=f"{name} does not accept what {before} returned")
            refused.__cause__ = error
            error = refused
        note = f"in {name}, part {index + 1} of {len(self._names)} of the pipeline {self._pipeline}"
        notes = getattr(error, "__notes__", [])
        if note not in notes:
            with suppress(Exception):  # the class is the function's own
                error.__notes__ = [*notes, note]  # as Python 3.11 does
        return error
