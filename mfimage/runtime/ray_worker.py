"""A function as a Ray actor and as a Ray Serve application; imports Ray only when needed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mfimage.runtime.layout import function_folder
from mfimage.runtime.loading.loader import LiveFunction, load_folder
from mfimage.runtime.worker.process import reply


class FunctionActor:
    """A loaded function, as an actor: ``ray.remote(FunctionActor).remote()``.

    ``folder`` holds the function's unpacked package; by default this image's.
    """

    def __init__(self, folder: str | None = None) -> None:
        self._attach(load_folder(Path(folder) if folder else function_folder()))

    @classmethod
    def of(cls, live: LiveFunction) -> FunctionActor:
        """Return an actor for a function that is already loaded."""
        actor = cls.__new__(cls)
        actor._attach(live)
        return actor

    def _attach(self, live: LiveFunction) -> None:
        self._live, self.name, self.digest, self.data = live, live.name, live.digest, live.data

    def predict(self, records: list[Any]) -> list[Any]:
        """Return the results of records, all in one call of a batch function.

        Raises the first exception if there are several: ``InputError``, ``OutputError`` or the
        function's own.
        """
        results = self._live.results(records)
        for result in results:
            if isinstance(result, Exception):
                raise result
        return results

    def answer(self, kind: int, payload: bytes) -> tuple[int, bytes]:
        """Return the reply to a frame of the worker's protocol: its kind and its payload."""
        return reply(self._live, kind, payload)

    def close(self) -> None:
        """Stop the thread of an ``async def`` function."""
        self._live.close()


def build(args: Mapping[str, Any]) -> Any:
    """Return a Ray Serve application of this image's function; see ``ServeArgs`` for ``args``.

    The ``import_path`` of a Serve configuration is ``mfimage.runtime.ray_worker:build``.
    """
    from mfimage.runtime.ray.preflight import import_serve

    import_serve()
    from mfimage.runtime.ray.serve import build

    return build(args)
