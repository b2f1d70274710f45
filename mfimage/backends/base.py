"""The interface of every backend."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from typing import Any, Protocol


class Backend(Protocol):
    """Runs one function. Records and results are JSON values, the same on every backend."""

    def __call__(self, record: Any) -> Any:
        """Return the result for one record; the function's own exceptions pass through."""

    async def acall(self, record: Any) -> Any:
        """Return the result for one record without blocking the caller's event loop."""

    def submit(self, record: Any) -> Future[Any]:
        """Start a call and return its future."""

    def map(
        self, records: Iterable[Any], *, batch_size: int, on_error: str, max_in_flight: int = 0
    ) -> Iterator[Any]:
        """Yield results in order, reading ``records`` as results are taken."""

    def close(self) -> None:
        """Release what the backend holds; closing again does nothing."""
