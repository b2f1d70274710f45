"""``@json_function`` and ``@avro_function``: functions that can be bound to a task."""

from __future__ import annotations

import functools
import importlib
import operator
import pickle
from collections.abc import Callable, Mapping
from typing import Any, overload

from mfimage.errors import SchemaError
from mfimage.function.avro import avro_schema
from mfimage.function.signature import Signature


class DecoratedFunction:
    """A function that can be bound to a task; calling it runs the plain function."""

    kind: str  # the decorator that made it: ``json`` or ``avro``
    __wrapped__: Callable[..., Any]
    __name__: str
    __qualname__: str

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        batch: bool,
        kind: str = "json",
        schemas: Mapping[str, Any] | None = None,
    ) -> None:
        functools.update_wrapper(self, fn)
        self.kind = kind
        self.signature = Signature.of(fn, batch=batch, schemas=schemas)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the plain function, as in a unit test, without validation."""
        return self.__wrapped__(*args, **kwargs)

    def __reduce__(self) -> tuple[object, ...]:
        # By name, as plain functions pickle.
        if _find(self.__module__, self.__qualname__) is not self:
            raise pickle.PicklingError(f"{self!r} is not what its name refers to")
        return (_find, (self.__module__, self.__qualname__))

    @property
    def needed_modules(self) -> dict[str, str]:
        """Modules that the function needs but does not import, and why."""
        return {"fastavro": "reads and writes Avro"} if self.kind == "avro" else {}

    def package_schemas(
        self, input_schema: Mapping[str, Any], output_schema: Mapping[str, Any]
    ) -> dict[str, dict[str, Any]]:
        """Return the schemas that the function was given, by serializer.

        ``SchemaError`` if the hints of an Avro function have no schema, and none was given.
        """
        if self.kind != "avro":
            return {}
        given = dict(self.signature.schemas)
        for label, root, schema in (
            ("input", self.signature.data, input_schema),
            ("output", "result", output_schema),
        ):
            if label not in given:
                try:
                    avro_schema(schema, name=self.__name__, root=root)
                except SchemaError as error:
                    raise SchemaError(f"{self.__name__}: {error}", hint=error.hint) from None
        return {"avro": given} if given else {}

    def __repr__(self) -> str:
        return f"<{self.kind}_function {self.__module__}.{self.__qualname__}>"


def _find(module: str, qualname: str) -> Any:
    return operator.attrgetter(qualname)(importlib.import_module(module))


def blank() -> DecoratedFunction:
    """Make a function for ``fill``: pickles hold one in two steps, since it may name itself."""
    return DecoratedFunction.__new__(DecoratedFunction)


def state_of(function: DecoratedFunction) -> tuple[Any, ...]:
    """Return what ``fill`` takes."""
    # For a JSON function it has two parts, as in older packages: their digests stay the same.
    state = (function.__wrapped__, function.signature.batch)
    if function.kind == "json":
        return state
    return (*state, function.kind, dict(function.signature.schemas))


def fill(function: DecoratedFunction, state: tuple[Any, ...]) -> None:
    """Initialize what ``blank`` made from ``(plain function, batch[, kind, schemas])``."""
    plain, batch, *more = state
    kind, schemas = more or ("json", None)
    DecoratedFunction.__init__(function, plain, batch=batch, kind=kind, schemas=schemas)


def cached(function: Any, maxsize: int | None, typed: bool) -> Any:
    """Return what ``functools.lru_cache`` made of a function, empty."""
    return functools.lru_cache(maxsize, typed)(function)


def dispatched(registry: Mapping[type, Any]) -> Any:
    """Return what ``functools.singledispatch`` made of functions."""
    function = functools.singledispatch(registry[object])
    for kind, each in registry.items():
        function.register(kind, each)
    return function


@overload
def json_function(fn: Callable[..., Any], /) -> DecoratedFunction: ...
@overload
def json_function(*, batch: bool = False) -> Callable[[Callable[..., Any]], DecoratedFunction]: ...


def json_function(
    fn: Callable[..., Any] | None = None, /, *, batch: bool = False
) -> DecoratedFunction | Callable[[Callable[..., Any]], DecoratedFunction]:
    """Make a function that can be bound to a Metaflow task.

    The function takes a record, then optionally ``FunctionParameters``. Its hints must have a JSON
    Schema.

    Parameters
    ----------
    batch : bool
        The function takes a list of records and returns a list of equal length.

    Raises
    ------
    SignatureError
        If the signature cannot be served.

    Examples
    --------
    >>> @json_function
    ... def predict(data: dict, params: FunctionParameters) -> dict:
    ...     return {"prediction": int(params.model.predict([data["x"]])[0])}
    """
    if fn is not None:
        return DecoratedFunction(fn, batch=batch)
    return lambda inner: DecoratedFunction(inner, batch=batch)


@overload
def avro_function(fn: Callable[..., Any], /) -> DecoratedFunction: ...
@overload
def avro_function(
    *, schema: Any = None, output_schema: Any = None, batch: bool = False
) -> Callable[[Callable[..., Any]], DecoratedFunction]: ...


def avro_function(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    schema: Any = None,
    output_schema: Any = None,
    batch: bool = False,
) -> DecoratedFunction | Callable[[Callable[..., Any]], DecoratedFunction]:
    """Make a function of Avro and JSON records that can be bound to a Metaflow task.

    It is a ``@json_function`` whose environment has fastavro; its values are the same in both
    formats. The Avro schemas follow from the hints, or are given.

    Parameters
    ----------
    schema : dict, str or parsed schema, optional
        Avro schema of one record, for hints such as ``dict``; JSON records are validated against
        it as well.
    output_schema : dict, str or parsed schema, optional
        Avro schema of one result.
    batch : bool
        The function takes a list of records and returns a list of equal length; the schemas
        describe one record and one result.

    Raises
    ------
    SignatureError
        If the signature cannot be served.
    SchemaError
        If a schema is not valid, with the place.

    Examples
    --------
    >>> @avro_function(schema={"type": "record", "name": "Flower", "fields": [...]})
    ... def predict(data: dict, params: FunctionParameters) -> Prediction:
    ...     return {"prediction": int(params.model.predict([data["x"]])[0])}
    """
    given = {"input": schema, "output": output_schema}
    schemas = {label: each for label, each in given.items() if each is not None}
    make = functools.partial(DecoratedFunction, batch=batch, kind="avro", schemas=schemas)
    return make if fn is None else make(fn)
