"""Loads a function captured by value, from the pickle of ``capture/code/by_value.py``."""

from __future__ import annotations

import functools
import operator
import pickle
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from mfimage.errors import PackageError


def load_value(path: Path, *, python: str, builtins: Any) -> Any:
    """Return the decorated function in a pickle; ``PackageError`` if this is another Python."""
    # ``python`` captured it, as ``3.11``: it contains bytecode. ``builtins`` is ``__builtins__`` of
    # the calling module, so that the function's imports are the same.
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if python != here:
        raise PackageError(
            f"{path.stem} was captured by value with Python {python}; this is Python {here}",
            hint=f"use Python {python}, or bind the function from a .py file",
        )
    space = vars(builtins) if isinstance(builtins, types.ModuleType) else builtins
    with path.open("rb") as file:
        return _Unpickler(file, path, space).load()


def cached(function: Any, maxsize: int | None, typed: bool) -> Any:
    """Return what ``functools.lru_cache`` made of a function, empty."""
    return functools.lru_cache(maxsize, typed)(function)


def dispatched(registry: Mapping[type, Any]) -> Any:
    """Return what ``functools.singledispatch`` made of functions."""
    function = functools.singledispatch(registry[object])
    for kind, each in registry.items():
        function.register(kind, each)
    return function


class _Unpickler(pickle.Unpickler):
    """Makes functions whose imports are those of the calling module."""

    def __init__(self, file: BinaryIO, path: Path, builtins: Mapping[str, Any]) -> None:
        super().__init__(file)
        self._path = path
        self._builtins = builtins

    def find_class(self, module_name: str, global_name: str) -> Any:
        if module_name == "cloudpickle.cloudpickle":
            own = {
                "subimport": self._import,
                "_make_function": self._make_function,
                "_function_setstate": self._set_state,
            }
            if global_name in own:
                return own[global_name]
        return operator.attrgetter(global_name)(self._import(module_name))

    def _import(self, name: str) -> Any:
        return self._builtins["__import__"](name, {}, {}, ["__name__"], 0)

    def _make_function(
        self,
        code: types.CodeType,
        space: dict[str, Any],
        name: str | None,
        defaults: tuple[Any, ...] | None,
        closure: tuple[types.CellType, ...] | None,
    ) -> types.FunctionType:
        self._adopt(space)
        return types.FunctionType(code, space, name, defaults, closure)

    def _set_state(self, function: types.FunctionType, state: Any) -> None:
        self._import("cloudpickle.cloudpickle")._function_setstate(function, state)
        self._adopt(function.__globals__)

    def _adopt(self, space: dict[str, Any]) -> None:
        # Functions defined inside this one inherit these builtins.
        space["__builtins__"] = self._builtins
        if "__file__" in space:
            space["__file__"] = str(self._path)
