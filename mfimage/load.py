"""load: reference -> a callable.

Light to import: a flow that imports these names must not pay for what it does not use.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mfimage.errors import BackendError, OptionError, ReferenceNotFound

if TYPE_CHECKING:
    from concurrent.futures import Future

    from metaflow import Task
    from metaflow.metaflow_current import Current

    from mfimage.backends.base import Backend
    from mfimage.function.decorator import DecoratedFunction
    from mfimage.package.spec import FunctionSpec
    from mfimage.package.store import Package

_ON_ERROR = ("raise", "return")


class JsonFunction:
    """A function bound to a task, whichever decorator made it.

    Making one writes a function package and binds the function to it; calling one runs it from
    that package, never from the code it was bound from. Any thread may call it.

    Parameters
    ----------
    function : decorated function
        What ``@json_function`` or ``@avro_function`` made.
    task : metaflow.Task, metaflow.current or str
        The task whose artifacts are the function's parameters, or its pathspec. In a step also
        ``current``, the task that is running: what it has set so far goes along as it is now.
    name : str, optional
        The package's name; the function's by default.
    artifacts : sequence of str, optional
        Which artifacts go along; by default those that the function reads.
    environment : path, optional
        A requirements file, ``pylock.toml`` or ``uv.lock`` that describes the environment; by
        default what code and artifacts import, at the versions installed.
    examples : sequence, optional
        Records to run the function on, in a fresh interpreter; their outputs are kept.
    parameters : mapping, optional
        JSON values that take the place of artifacts of the same name.
    root : str or path, optional
        Where packages are kept; ``MFIMAGE_FUNCTIONS_ROOT`` or beside the datastore by default.

    Raises
    ------
    MfimageError
        When it cannot be bound, and why.

    Attributes
    ----------
    reference : str
        Where its ``function.json`` is: what ``function_from_json`` takes.
    """

    def __init__(
        self,
        function: DecoratedFunction,
        task: Task | Current | str,
        *,
        name: str | None = None,
        artifacts: Sequence[str] | None = None,
        environment: str | os.PathLike[str] | None = None,
        examples: Sequence[Any] = (),
        parameters: Mapping[str, Any] | None = None,
        root: str | os.PathLike[str] | None = None,
    ) -> None:
        with _whole():
            from mfimage.capture.needed import require_needed

            require_needed()
            from mfimage.bind import BindOptions, bind
        options = BindOptions(
            name=name,
            artifacts=artifacts,
            environment=environment,
            examples=examples,
            parameters=parameters,
            root=root,
        )
        self._open(bind(function, task, options))

    def _open(self, reference: str | os.PathLike[str]) -> None:
        with _whole():
            from mfimage.package.store import open_package
        self._package: Package = open_package(reference)
        self._backend: Backend | None = None
        self._choice: Mapping[str, Any] = {}
        self._lock = threading.Lock()

    @property
    def reference(self) -> str:
        """Where its ``function.json`` is."""
        return self._package.reference

    @property
    def spec(self) -> FunctionSpec:
        """What the package says of itself."""
        return self._package.spec

    @property
    def name(self) -> str:
        """The function's name."""
        return self.spec.name

    def _running(self) -> Backend:
        # One for all threads: each would load the artifacts again.
        with self._lock:
            if self._backend is None:
                with _whole():
                    from mfimage.backends.choice import open_backend

                    self._backend = open_backend(self._package, **self._choice)
            return self._backend

    def __call__(self, record: Any) -> Any:
        """Return the function's result for one record.

        Parameters
        ----------
        record
            A JSON value that fits the function's input hints; NumPy values are welcome.

        Raises
        ------
        InputError, OutputError
            When the record or the result does not fit the hints.
        Exception
            Whatever the function itself raises.
        """
        return (self._backend or self._running())(record)

    async def acall(self, record: Any) -> Any:
        """Return the result for one record without blocking the event loop."""
        return await self._running().acall(record)

    def submit(self, record: Any) -> Future[Any]:
        """Start a call and return its ``concurrent.futures.Future``."""
        return self._running().submit(record)

    def remote(self, record: Any) -> Any:
        """Start a call on a Ray cluster and return the ``ObjectRef`` of its result."""
        start = getattr(self._running(), "remote", None)
        if start is None:
            raise OptionError("remote: only backend='ray' has references", hint="use submit()")
        return start(record)

    def map(
        self,
        records: Iterable[Any],
        *,
        batch_size: int = 256,
        max_in_flight: int | None = None,
        on_error: str = "raise",
    ) -> Iterator[Any]:
        """Yield the results of many records, lazily and in order.

        Parameters
        ----------
        records : iterable
            Read as results are taken.
        batch_size : int
            How many records a ``batch=True`` function gets at a time; the most that are sent to
            another process together.
        max_in_flight : int, optional
            The most batches that are under way in other processes; three for each by default.
        on_error : {"raise", "return"}
            Raise the first exception, or yield each in its record's place.
        """
        if on_error not in _ON_ERROR:
            raise OptionError(f"on_error: expected 'raise' or 'return', got {on_error!r}")
        if batch_size < 1:
            raise OptionError(f"batch_size: expected at least 1, got {batch_size}")
        if max_in_flight is not None and max_in_flight < 1:
            raise OptionError(f"max_in_flight: expected at least 1, got {max_in_flight}")
        return self._running().map(
            records, batch_size=batch_size, on_error=on_error, max_in_flight=max_in_flight
        )

    def export(self, url: str | os.PathLike[str]) -> str:
        """Copy the package to another root and return its reference there.

        Parameters
        ----------
        url : str or path
            A folder, or a URL as ``s3://bucket/prefix``; blobs that are there are not sent.

        Raises
        ------
        StorageError
            When a root cannot be read or written; calling it again goes on where it stopped.
        """
        from mfimage.copy import copy_package

        return copy_package(self.reference, url)

    def close(self) -> None:
        """Release threads and processes; a later call opens it again."""
        with self._lock:
            backend, self._backend = self._backend, None
        if backend is not None:
            backend.close()

    def __enter__(self) -> JsonFunction:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[object, ...]:
        return (_reopen, (self.reference, self._choice))

    def __repr__(self) -> str:
        return f"<JsonFunction {self.name} of {self.spec.task}>"


@contextlib.contextmanager
def _whole() -> Iterator[None]:
    """Say what is wrong when mfimage is not whole here, or came without what it needs."""
    try:
        yield
    except ModuleNotFoundError as error:
        if f"{error.name}.".startswith("mfimage."):
            raise BackendError(
                "functions cannot be bound or loaded here: only mfimage's runtime is installed",
                hint="do it where the whole of mfimage is installed: pip install mfimage",
            ) from None
        from mfimage.capture.needed import require_needed

        require_needed(error.name or "")
        raise


def _reopen(reference: str, choice: Mapping[str, Any]) -> JsonFunction:
    """Open a function that was pickled, as an artifact of a flow is; nothing is loaded yet."""
    function = JsonFunction.__new__(JsonFunction)
    try:
        function._open(reference)
    except ReferenceNotFound as error:
        from mfimage.capture.task.roots import find_moved

        function._open(find_moved(reference, error))
    function._choice = choice
    return function


def function_from_json(
    reference: str | os.PathLike[str],
    *,
    backend: str | None = None,
    workers: int | None = None,
    timeout: float | None = None,
    **cluster: Any,
) -> JsonFunction:
    """Return the function that a reference names, ready to be called.

    Parameters
    ----------
    reference : str or path
        Path or URL of a package's ``function.json``.
    backend : {"local", "process", "ray"}, optional
        Where it runs: in this process; in interpreters of its own, in the environment that it is
        locked to; on a Ray cluster. By default here, if this interpreter has all that is locked.
    workers, timeout : optional
        For ``process``: how many there are, one by default; how many seconds a record may take.
    **cluster
        For ``ray``: see ``mfimage.backends.ray.options.RayOptions``.

    Raises
    ------
    ReferenceNotFound
        When nothing is there.
    PackageError
        When the package is damaged, changed, or too new.
    LockError, BackendError
        When its environment cannot be made here.
    """
    function = JsonFunction.__new__(JsonFunction)
    function._open(reference)
    chosen = {"name": backend, "workers": workers, "timeout": timeout, "cluster": cluster}
    function._choice = {name: value for name, value in chosen.items() if value is not None}
    # Loaded at once: what is wrong with a package is told here, not at the first call.
    function._running()
    return function
