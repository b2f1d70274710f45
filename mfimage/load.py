"""load: reference -> a callable.

Light to import: a flow that imports these names does not pay for what it does not use.
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
    from metaflow.cards import MetaflowCardComponent
    from metaflow.metaflow_current import Current

    from mfimage.backends.base import Backend
    from mfimage.function.decorator import DecoratedFunction
    from mfimage.package.spec import FunctionSpec, PipelineSpec
    from mfimage.package.store import Package, Pipeline
    from mfimage.serve import FunctionServer


class JsonFunction:
    """A function bound to a task, whichever decorator made it, or a pipeline of such functions.

    Creating one binds the function: it writes a function package. Calling it runs the function from
    that package, never from the code it was bound from. Thread-safe.

    Parameters
    ----------
    function : decorated function
        Made by ``@json_function`` or ``@avro_function``.
    task : metaflow.Task, metaflow.current or str
        The task whose artifacts are the function's parameters, or its pathspec. In a step also
        ``current``, the running task, with the artifacts it has set so far.
    name : str, optional
        The package's name; the function's name by default.
    artifacts : sequence of str, optional
        The artifacts to include; by default those that the function reads.
    environment : path, optional
        A requirements file, ``pylock.toml`` or ``uv.lock`` that describes the environment; by
        default what code and artifacts import, at the versions installed.
    examples : sequence, optional
        Records to run the function on, in a fresh interpreter; their outputs are recorded.
    parameters : mapping, optional
        JSON values that replace artifacts of the same name.
    root : str or path, optional
        Where packages are stored; ``MFIMAGE_FUNCTIONS_ROOT`` or beside the datastore by default.

    Raises
    ------
    MfimageError
        When it cannot be bound, and why.
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
        with _explained_imports():
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
        with _explained_imports():
            from mfimage.package.store import open_any
        self._package: Package | Pipeline = open_any(reference)
        self._backend: Backend | None = None
        self._choice: Mapping[str, Any] = {}
        self._lock = threading.Lock()

    @property
    def reference(self) -> str:
        """Path or URL of its ``function.json``, which ``function_from_json`` takes."""
        return self._package.reference

    @property
    def spec(self) -> FunctionSpec | PipelineSpec:
        """The content of its ``function.json``."""
        return self._package.spec

    @property
    def name(self) -> str:
        """The function's name."""
        return self.spec.name

    def _running(self) -> Backend:
        # One for all threads: each would load the artifacts again.
        with self._lock:
            if self._backend is None:
                with _explained_imports():
                    from mfimage.backends.choice import open_backend

                    self._backend = open_backend(self._package, **self._choice)
            return self._backend

    def __call__(self, record: Any) -> Any:
        """Return the function's result for one record.

        Parameters
        ----------
        record
            A JSON value that fits the function's input hints; NumPy values are converted.

        Raises
        ------
        InputError
            When the record does not fit the hints.
        OutputError
            When the result does not fit the hints.
        Exception
            What the function itself raises.
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
            raise OptionError("remote: needs backend='ray'", hint="use submit()")
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
            How many records a ``batch=True`` function gets at a time; for others, the maximum sent
            to another process together.
        max_in_flight : int, optional
            Maximum number of batches in flight; by default three for each process, four for each
            actor.
        on_error : {"raise", "return"}
            Raise the first exception, or yield each in its record's place.
        """
        if on_error not in ("raise", "return"):
            raise OptionError(f"on_error: expected 'raise' or 'return', got {on_error!r}")
        for name, value in (("batch_size", batch_size), ("max_in_flight", max_in_flight)):
            if value is not None and value < 1:
                raise OptionError(f"{name}: expected at least 1, got {value}")
        return self._running().map(
            records, batch_size=batch_size, on_error=on_error, max_in_flight=max_in_flight or 0
        )

    def export(self, url: str | os.PathLike[str]) -> str:
        """Copy the package to another root and return its reference there.

        Parameters
        ----------
        url : str or path
            A folder, or a URL such as ``s3://bucket/prefix``. Existing blobs are not sent again.

        Raises
        ------
        StorageError
            When a root cannot be read or written; a second call resumes.
        """
        from mfimage.copy import copy_package

        return copy_package(self.reference, url)

    def serve(
        self,
        port: int | None = None,
        *,
        host: str = "127.0.0.1",
        start_timeout: float = 300.0,
        **settings: Any,
    ) -> FunctionServer:
        """Serve it over HTTP in the background, as `mfimage serve` does; wait until it is ready.

        In a notebook, what it returns shows the page of the function. The server ends with
        ``stop()`` or a ``with`` block, and at the latest with this process, however that ends.

        Parameters
        ----------
        port : int, optional
            The port to listen on; a free one by default.
        host : str
            The address to listen on; by default only this machine can connect.
        start_timeout : float
            Seconds until it must be ready: its environment may have to be made.
        **settings
            Other settings of the server, as ``workers=2`` for ``MFIMAGE_WORKERS``.

        Raises
        ------
        OptionError
            When a setting is unknown or not valid.
        BackendError
            When the server does not start, with its own error or the end of its log.
        """
        with _explained_imports():
            from mfimage.serve import FunctionServer

        return FunctionServer(
            self.name,
            self.reference,
            settings={**settings, "host": host, "port": port or 0},
            start_timeout=start_timeout,
        )

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
        parts = [part.name for part in getattr(self.spec, "parts", ())]
        return f"<JsonFunction {self.name} of {' -> '.join(parts) or self.spec.task}>"

    def card(self) -> MetaflowCardComponent:
        """Return a component that shows the function in a Metaflow card.

        In a step with ``@card``: ``current.card.append(fn.card())``.
        """
        with _explained_imports():
            from mfimage.views.function import view
            from mfimage.views.metaflow import FunctionComponent

        return FunctionComponent(view(self._package))

    def _repr_html_(self) -> str | None:
        """Return what a notebook shows; None where only mfimage's runtime is installed."""
        try:
            from mfimage.views.notebook import function_html
        except ModuleNotFoundError:
            return None
        return function_html(self._package)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        html = self._repr_html_()
        return {"text/plain": repr(self)} | ({"text/html": html} if html else {})


@contextlib.contextmanager
def _explained_imports() -> Iterator[None]:
    """Say what to install when a part of mfimage, or what it needs, is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if f"{error.name}.".startswith("mfimage."):
            raise BackendError(
                "functions cannot be bound or loaded here: only mfimage's runtime is installed",
                hint="do it where all of mfimage is installed: pip install mfimage",
            ) from None
        from mfimage.capture.needed import require_needed

        require_needed(error.name or "")
        raise


def _opened(reference: str | os.PathLike[str]) -> JsonFunction:
    function = JsonFunction.__new__(JsonFunction)
    function._open(reference)
    return function


def _reopen(reference: str, choice: Mapping[str, Any]) -> JsonFunction:
    """Open a function that was pickled, as an artifact of a flow is; nothing is loaded yet."""
    try:
        function = _opened(reference)
    except ReferenceNotFound as error:
        from mfimage.capture.task.roots import find_moved

        function = _opened(find_moved(reference, error))
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
        Where it runs: in this process, in interpreters with its locked environment, or on a Ray
        cluster. By default in this process if this interpreter satisfies its lock, else in others.
    workers : int, optional
        For ``process``: number of interpreters; 1 by default.
    timeout : float, optional
        For ``process``: seconds that one record may take.
    **cluster
        For ``ray``: the fields of `mfimage.backends.ray.options.RayOptions`.

    Raises
    ------
    ReferenceNotFound
        When the reference does not exist.
    PackageError
        When the package is damaged, changed, or too new.
    LockError
        When its environment cannot be locked for this machine.
    BackendError
        When its environment cannot be made here.
    """
    function = _opened(reference)
    given = {"name": backend, "workers": workers, "timeout": timeout, "cluster": cluster}
    function._choice = {name: value for name, value in given.items() if value is not None}
    # Loaded at once, so that a faulty package raises here and not at the first call.
    function._running()
    return function


def pipeline(
    name: str,
    *functions: JsonFunction | str | os.PathLike[str],
    examples: Sequence[Any] = (),
    root: str | os.PathLike[str] | None = None,
) -> JsonFunction:
    """Return functions as one function: the output of each is the input of the next.

    It writes a package that names their packages by digest. Calling it runs each part as if it were
    called alone: with backend ``process``, in its own environment.

    Parameters
    ----------
    name : str
        The package's name.
    *functions : JsonFunction, str or path
        Bound functions or their references, in order; a pipeline stands for its parts.
    examples : sequence, optional
        Records to call it with; their results are recorded, for `mfimage test`.
    root : str or path, optional
        Where the package is stored; by default where that of the first function is. Packages of
        functions that are elsewhere are copied there.

    Raises
    ------
    SchemaError
        When a function never accepts what the one before it returns: the places and both types.
    MfimageError
        When a package is missing or damaged.
    """
    references = [each.reference if isinstance(each, JsonFunction) else each for each in functions]
    with _explained_imports():
        from mfimage.compose import compose, with_examples
    made = with_examples(compose(name, references, root=root), examples)
    return _opened(made.store.write(made.spec))
