"""Loads the function of a package, and its artifacts when they are first read."""

from __future__ import annotations

import copy
import dataclasses
import functools
import gzip
import hashlib
import io
import pickle
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mfimage.errors import Fault, OutputError, PackageError, ParameterError
from mfimage.function.decorator import DecoratedFunction
from mfimage.function.json import plain
from mfimage.function.parameters import FunctionParameters, lazy_parameters
from mfimage.function.schema import RESULT, Many, Schema
from mfimage.package.spec import (
    ArtifactRef,
    BlobRef,
    CallableSpec,
    FunctionSpec,
    PipelineSpec,
)
from mfimage.runtime.calls.coroutines import LoopThread
from mfimage.runtime.loading import packages
from mfimage.runtime.loading.modules import CodeSpace
from mfimage.runtime.loading.parts import PartErrors

ReadBlob = Callable[[BlobRef], bytes]


class LiveFunction:
    """A function with its parameters, ready to run in this process.

    All backends and servers run it through this class, so that all give the same value or the
    same error: JSON bytes in (``parse``), a call (``invoke``), JSON bytes out (``dump``).
    ``data`` is the name of the function's first parameter, which paths in input errors start with.
    """

    def __init__(
        self,
        spec: FunctionSpec,
        function: DecoratedFunction,
        params: FunctionParameters,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        signature = function.signature
        self._describe(spec, signature.schema, is_async=signature.is_async, batch=signature.batch)
        self.params = params
        self.required = frozenset(spec.parameter_schema.get("required", ()))
        self.size = sum(ref.size for ref in spec.artifacts.values())  # stored, in bytes
        self._fn = function.__wrapped__
        self._takes_params = signature.takes_params
        self._release = weakref.finalize(self, release)
        self._release.atexit = False
        self._loop: LoopThread | None = None
        self._lock = threading.Lock()

    def _describe(self, spec: CallableSpec, schema: Schema, *, is_async: bool, batch: bool) -> None:
        self.spec = spec
        self.name = spec.name
        self.digest = spec.digest
        self.description = spec.description
        self.input_schema = spec.input_schema
        self.output_schema = spec.output_schema
        self.batch = batch
        self.is_async = is_async
        self.schema = schema
        self.data = schema.data
        self.parse = schema.parse
        self.accept_json = schema.accept_json
        self.dump = schema.dump

    @property
    def parts(self) -> tuple[LiveFunction, ...]:
        """The function itself; of a pipeline, its functions in order."""
        return (self,)

    @functools.cached_property
    def many(self) -> Many:
        """Reads many records at once, and writes many results."""
        return Many(self.schema)

    def __call__(self, record: Any) -> Any:
        """Return the JSON value of the result for one record."""
        schema = self.schema
        return schema.result(self.invoke(schema.accept(record)))

    async def acall(self, record: Any) -> Any:
        """Call an ``async def`` function on the caller's loop."""
        schema = self.schema
        return schema.result(await self.ainvoke(schema.accept(record)))

    def invoke(self, record: Any) -> Any:
        """Run the function on one parsed record."""
        if self.batch:
            return self._invoke_batch([record])[0]
        if self.is_async:
            return self._loop_thread().submit(self.ainvoke(record)).result()
        return self._run(record)

    async def ainvoke(self, record: Any) -> Any:
        """Run an ``async def`` function on one parsed record, on the running loop."""
        if self.batch:
            return _checked(await self._run([record]), 1)[0]
        return await self._run(record)

    def invoke_many(self, records: Sequence[Any]) -> list[Any]:
        """Run the function on parsed records; return results, and exceptions in their places.

        A batch function is called once. If that call raises, each record is tried alone, so that
        one bad record fails alone.
        """
        if self.batch and len(records) > 1:
            try:
                return self._invoke_batch(list(records))
            except OutputError as error:
                return [error] * len(records)
            except Exception:  # noqa: BLE001, S110  (raised again below, per record)
                pass
        return [_try(self.invoke, record) for record in records]

    def results(self, records: Sequence[Any]) -> list[Any]:
        """Call the function with many records; return results, and exceptions in their places."""
        schema = self.schema
        places: list[Any] = [_try(schema.accept, record) for record in records]
        good = [place for place in places if not isinstance(place, Exception)]
        outputs = iter(self.invoke_many(good))
        places = [place if isinstance(place, Exception) else next(outputs) for place in places]
        return [
            each if isinstance(each, Exception) else _try(schema.result, each) for each in places
        ]

    def _invoke_batch(self, records: list[Any]) -> list[Any]:
        if self.is_async:
            results = self._loop_thread().submit(self._run(records)).result()
        else:
            results = self._run(records)
        return _checked(results, len(records))

    def _run(self, data: Any) -> Any:
        return self._fn(data, self.params) if self._takes_params else self._fn(data)

    def _loop_thread(self) -> LoopThread:
        with self._lock:
            # A forked process has the object, but not its thread.
            if self._loop is None or not self._loop.is_alive():
                self._loop = LoopThread(f"mfimage-{self.name}")
            return self._loop

    def close(self) -> None:
        """Stop the thread of an ``async def`` function; give the names of the modules back."""
        self._release()
        with self._lock:
            if self._loop is not None:
                self._loop.close()
                self._loop = None


class LivePipeline(LiveFunction):
    """Functions of this process as one."""

    def __init__(self, spec: PipelineSpec, parts: Sequence[LiveFunction]) -> None:
        first, last = parts[0].schema, parts[-1].schema
        schema = dataclasses.replace(
            last, data=first.data, input=first.input, avro_input=first.avro_input
        )
        is_async = all(part.is_async for part in parts)
        self._describe(spec, schema, is_async=is_async, batch=any(part.batch for part in parts))
        self._parts = tuple(parts)
        self.size = sum(part.size for part in parts)
        self._errors = PartErrors(spec)

    @property
    def parts(self) -> tuple[LiveFunction, ...]:
        """Its functions, in order."""
        return self._parts

    def invoke(self, record: Any) -> Any:
        """Run all functions on one parsed record."""
        for index, part in enumerate(self._parts):
            record = self._accepted(index, record)
            with self._errors.naming(index):
                record = part.invoke(record)
        return record

    async def ainvoke(self, record: Any) -> Any:
        """Run all functions, which are ``async def``, on the running loop."""
        for index, part in enumerate(self._parts):
            record = self._accepted(index, record)
            with self._errors.naming(index):
                record = await part.ainvoke(record)
        return record

    def invoke_many(self, records: Sequence[Any]) -> list[Any]:
        """Run all functions on parsed records; a batch function gets those that are left."""
        places = list(records)
        for index, part in enumerate(self._parts):
            accepted = functools.partial(self._accepted, index)
            places = [
                place if isinstance(place, Exception) else _try(accepted, place) for place in places
            ]
            left = [place for place in places if not isinstance(place, Exception)]
            results = iter(part.invoke_many(left) if left else ())
            places = [
                place if isinstance(place, Exception) else self._outcome(index, next(results))
                for place in places
            ]
        return places

    def _accepted(self, index: int, value: Any) -> Any:
        """Return the record of a part that the result of the one before it is."""
        if not index:
            return value
        with self._errors.naming(index - 1):
            value = self._parts[index - 1].schema.result(value)
        with self._errors.naming(index):
            return self._parts[index].schema.accept(value)

    def _outcome(self, index: int, result: Any) -> Any:
        return self._errors.named(index, result) if isinstance(result, Exception) else result

    def close(self) -> None:
        """Close every function."""
        for part in self._parts:
            part.close()


def _try(call: Callable[[Any], Any], value: Any) -> Any:
    try:
        return call(value)
    except Exception as error:  # noqa: BLE001  (it replaces the result)
        return error


def _checked(results: Any, count: int) -> list[Any]:
    """Return a batch function's results as a list of ``count``."""
    if hasattr(results, "tolist"):
        results = plain(results)
    if not isinstance(results, list | tuple):
        message = f"expected a list of {count}, got {type(results).__name__}"
    elif len(results) != count:
        message = f"expected {count} results for {count} records, got {len(results)}"
    else:
        return list(results)
    raise OutputError([Fault(path=RESULT, message=message)])


def load_function(
    spec: FunctionSpec, *, code: Path, read_blob: ReadBlob, dedicated: bool
) -> LiveFunction:
    """Import a package's function and give it its parameters.

    ``code`` is the folder of the verified code archive, ``read_blob`` returns a blob's verified
    bytes. ``dedicated``: this process runs only this function; see ``CodeSpace``.
    """
    space = CodeSpace(code, key=spec.code.hex[:16], dedicated=dedicated, main=spec.script)
    try:
        function = _find(spec, space)
        loaders = {
            name: functools.partial(_load, name, ref, read_blob, space)
            for name, ref in spec.artifacts.items()
        }
        # Copies: the function may change the values, but not the package.
        values = copy.deepcopy(dict(spec.parameters))
        params = lazy_parameters(function.signature.params_type, loaders, values)
        return LiveFunction(spec, function, params, space.release)
    except BaseException:
        space.release()
        raise


def _load(name: str, ref: ArtifactRef, read_blob: ReadBlob, space: CodeSpace) -> Any:
    return load_artifact(name, ref, read_blob(ref), space)


def _find(spec: FunctionSpec, space: CodeSpace) -> DecoratedFunction:
    module_name, _, attribute = spec.entrypoint.partition(":")
    try:
        found = getattr(space.import_module(module_name), attribute, None)
    except ModuleNotFoundError as error:
        raise PackageError(
            f"{spec.name}: importing {module_name} needs the module "
            f"{error.name!r}, which is not installed here",
            hint="run it where its environment is: the image, or a matching virtual environment",
        ) from error
    except (Exception, SystemExit) as error:
        raise PackageError(
            f"{spec.name}: importing {module_name} failed: {type(error).__name__}: {error}",
            hint="it must be importable on its own: fix it and bind the function again",
        ) from error
    if not isinstance(found, DecoratedFunction):
        raise PackageError(
            f"{spec.entrypoint} is not a decorated function in the package's code",
            hint="bind the function again",
        )
    return found


def load_folder(folder: Path, name: str | None = None) -> LiveFunction:
    """Load the function of an image's folder; of several, the one of a name.

    The code goes on ``sys.path``: this process runs no function whose modules have the same names.
    """
    found = packages.find(folder, name)
    read_blob = functools.partial(read_verified, found.blobs)
    if isinstance(found.spec, FunctionSpec):
        return load_function(found.spec, code=found.code, read_blob=read_blob, dedicated=True)
    loaded: dict[str, LiveFunction] = {}
    for part in found.parts:
        assert isinstance(part.spec, FunctionSpec)
        if part.spec.digest not in loaded:
            loaded[part.spec.digest] = load_function(
                part.spec, code=part.code, read_blob=read_blob, dedicated=True
            )
    return LivePipeline(found.spec, [loaded[part.spec.digest] for part in found.parts])


def read_verified(blobs: Path, ref: BlobRef) -> bytes:
    """Return a blob of a folder of blobs; ``PackageError`` when it is missing or damaged."""
    path = blobs / ref.hex
    data = _read(path)
    if hashlib.sha256(data).hexdigest() != ref.hex:
        raise PackageError(f"{path}: its content does not match the digest in its name")
    return data


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PackageError(f"{path}: {error.strerror}") from None


_GZIP = "gzip+"


class _Unpickler(pickle.Unpickler):
    """Finds what the script of the flow defined, which pickles call ``__main__``."""

    def __init__(self, data: bytes, code: CodeSpace) -> None:
        super().__init__(io.BytesIO(data))
        self._code = code

    def find_class(self, module_name: str, global_name: str) -> Any:
        if module_name == "__main__":  # never the caller's, which another process does not have
            if self._code.main is None:
                raise AttributeError(f"the script that defined {global_name} is not in the package")
            module_name = self._code.main
        return super().find_class(module_name, global_name)


def load_artifact(name: str, ref: ArtifactRef, data: bytes, code: CodeSpace) -> Any:
    """Return the object in an artifact's verified bytes, as Metaflow would load it."""
    try:
        return _decode(ref, data, code)
    except Exception as error:
        message = f"parameter {name!r} ({ref.type})"
        if isinstance(error, ModuleNotFoundError):
            message += f" needs the module {error.name!r}, which is not installed here"
            hint = "run it where its environment is: the image, or a matching virtual environment"
        elif isinstance(error, ParameterError):
            message, hint = f"{message}: {error.message}", error.hint or ""
        else:
            message += f" cannot be loaded: {type(error).__name__}: {error}"
            hint = "load it with the code and the versions of packages that it was saved with"
        raise ParameterError(message, hint=hint or None) from error


def _decode(ref: ArtifactRef, data: bytes, code: CodeSpace) -> Any:
    encoding = ref.encoding
    if encoding.startswith(_GZIP):
        data, encoding = gzip.decompress(data), encoding.removeprefix(_GZIP)
    if encoding.startswith("pickle"):
        return _Unpickler(data, code).load()
    try:
        from metaflow.datastore.artifacts.serializer import (
            SerializationFormat,
            SerializationMetadata,
            SerializerStore,
        )
    except ImportError:
        raise ParameterError(
            f"encoding {encoding!r} needs Metaflow's serializers, which are not installed here"
        ) from None
    metadata = SerializationMetadata(ref.type, ref.size, encoding, dict(ref.info))
    for serializer in SerializerStore.get_ordered_serializers():
        if serializer.can_deserialize(metadata):
            return serializer.deserialize([data], metadata, format=SerializationFormat.STORAGE)
    raise ParameterError(
        f"no serializer reads encoding {encoding!r}",
        hint=f"install the Metaflow extension that wrote it ({ref.info.get('source', 'unknown')})",
    )
