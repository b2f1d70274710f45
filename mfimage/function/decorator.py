"""``@json_function``: a plain function that knows what it takes and gives."""

from __future__ import annotations

import functools
import importlib
import operator
import pickle
from collections.abc import Callable
from typing import Any, overload

from mfimage.function.signature import Signature


class DecoratedFunction:
    """A function that can be bound to a task; calling it runs the plain function.

    Attributes
    ----------
    signature : Signature
        What it takes and gives.
    kind : str
        Which decorator made it: ``json``.
    """

    kind = "json"
    __wrapped__: Callable[..., Any]
    __name__: str
    __qualname__: str

    def __init__(self, fn: Callable[..., Any], *, batch: bool) -> None:
        functools.update_wrapper(self, fn)
        self.signature = Signature.of(fn, batch=batch)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the plain function, as in a unit test: no validation, nothing bound."""
        return self.__wrapped__(*args, **kwargs)

    def __reduce__(self) -> tuple[object, ...]:
        # By name, as plain functions pickle.
        if _find(self.__module__, self.__qualname__) is not self:
            raise pickle.PicklingError(f"{self!r} is not what its name finds")
        return (_find, (self.__module__, self.__qualname__))

    def __repr__(self) -> str:
        return f"<json_function {self.__module__}.{self.__qualname__}>"


def _find(module: str, qualname: str) -> Any:
    return operator.attrgetter(qualname)(importlib.import_module(module))


def blank() -> DecoratedFunction:
    """Make a decorated function to be filled.

    How pickles hold one by value: one that calls itself is met before it is whole.
    """
    return DecoratedFunction.__new__(DecoratedFunction)


def fill(function: DecoratedFunction, state: tuple[Callable[..., Any], bool]) -> None:
    """Decorate ``(plain function, batch)`` into what ``blank`` made."""
    plain, batch = state
    DecoratedFunction.__init__(function, plain, batch=batch)


@overload
def json_function(fn: Callable[..., Any], /) -> DecoratedFunction: ...
@overload
def json_function(*, batch: bool = False) -> Callable[[Callable[..., Any]], DecoratedFunction]: ...


def json_function(
    fn: Callable[..., Any] | None = None, /, *, batch: bool = False
) -> DecoratedFunction | Callable[[Callable[..., Any]], DecoratedFunction]:
    """Make a function that can be bound to a Metaflow task.

    The function takes one record of data, then (optional) ``FunctionParameters``. Hints say what
    the data are; they must have a JSON Schema.

    Parameters
    ----------
    batch : bool
        The function takes a list of records and returns a list of equal length.

    Raises
    ------
    SignatureError
        When the signature cannot be served.

    Examples
    --------
    >>> @json_function
    ... def predict(data: dict, params: FunctionParameters) -> dict:
    ...     return {"prediction": int(params.model.predict([data["x"]])[0])}
    """
    if fn is not None:
        return DecoratedFunction(fn, batch=batch)
    return lambda inner: DecoratedFunction(inner, batch=batch)
