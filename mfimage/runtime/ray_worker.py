"""A function as a Ray actor; Ray itself is not imported here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mfimage.runtime.layout import function_folder
from mfimage.runtime.loading.loader import LiveFunction, load_folder
from mfimage.runtime.worker.process import answer


class FunctionActor:
    """A function that is loaded once and called often: ``ray.remote(FunctionActor).remote()``.

    Parameters
    ----------
    folder : str, optional
        Where the function's package was unpacked; this image's own by default.

    Raises
    ------
    PackageError
        When there is none, or it is damaged.
    """

    def __init__(self, folder: str | None = None) -> None:
        self._live = load_folder(Path(folder) if folder else function_folder())

    @classmethod
    def of(cls, live: LiveFunction) -> FunctionActor:
        """Return one for a function that is loaded already."""
        actor = cls.__new__(cls)
        actor._live = live
        return actor

    @property
    def name(self) -> str:
        """The function's name."""
        return self._live.name

    @property
    def digest(self) -> str:
        """The package's digest."""
        return self._live.digest

    @property
    def data(self) -> str:
        """Name of the function's first parameter: what paths in input errors start with."""
        return self._live.data

    def predict(self, records: list[Any]) -> list[Any]:
        """Return the results for records; a batch function gets all of them at once.

        Raises
        ------
        InputError, OutputError
            When a record or a result does not fit the hints.
        Exception
            The first that the function raised.
        """
        results = self._live.results(records)
        for result in results:
            if isinstance(result, Exception):
                raise result
        return results

    def answer(self, kind: int, payload: bytes) -> tuple[int, bytes]:
        """Return the answer to one of the frames that go to a worker, as a kind and a payload."""
        return answer(self._live, kind, payload)

    def close(self) -> None:
        """Release what the function holds in this process."""
        self._live.close()


def build(args: Mapping[str, Any]) -> Any:
    """Return a Ray Serve application of this image's function; see ``ray_serve``.

    As ``import_path`` of a Serve configuration: ``mfimage.runtime.ray_worker:build``.

    Parameters
    ----------
    args : mapping
        ``num_replicas`` or ``autoscaling_config``; ``ray_actor_options``,
        ``max_ongoing_requests``, ``user_config``.

    Raises
    ------
    OptionError
        When one is unknown or cannot be used.
    BackendError
        When the image was built without Ray Serve.
    """
    from mfimage.runtime.ray.preflight import import_serve

    import_serve()
    from mfimage.runtime.ray.serve import build

    return build(args)
