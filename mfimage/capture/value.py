"""A function that no file defines, captured by value: notebooks, REPLs, unguarded scripts."""

from __future__ import annotations

import dis
import io
import types
from typing import Any

from mfimage.errors import CaptureError
from mfimage.function.decorator import DecoratedFunction

MODULE = "_bound_function"

_TEMPLATE = '''\
"""The function {name!r}, captured by value: no file defined it."""

import operator
import pickle
from pathlib import Path

from mfimage.function.decorator import json_function
{imports}

class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        return operator.attrgetter(name)(__import__(module, fromlist=["*"]))


with Path(__file__).with_name("{module}.pkl").open("rb") as _file:
    {name} = json_function(batch={batch})(_Unpickler(_file).load())
'''


def value_files(function: DecoratedFunction) -> tuple[dict[str, bytes], str]:
    """Return the files that carry a function by value, and its entrypoint.

    Raises
    ------
    CaptureError
        When something it refers to cannot be pickled.
    """
    import cloudpickle

    plain = function.__wrapped__
    buffer = io.BytesIO()
    try:
        cloudpickle.CloudPickler(buffer, protocol=4).dump(plain)
    except Exception as error:
        raise CaptureError(
            f"{function.__name__} cannot be captured by value: {error}",
            hint="define it in a .py file and import it from there",
        ) from error
    lines = "".join(f"import {name}\n" for name in sorted(_modules_of(plain, set())))
    stub = _TEMPLATE.format(
        name=function.__name__, module=MODULE, batch=function.signature.batch, imports=lines
    )
    files = {f"{MODULE}.py": stub.encode(), f"{MODULE}.pkl": buffer.getvalue()}
    return files, f"{MODULE}:{function.__name__}"


def _modules_of(value: Any, seen: set[int]) -> set[str]:
    """Return the modules that a function and what it refers to need.

    Cloudpickle names them in its own way; import statements say it to everybody else.
    """
    if id(value) in seen:
        return set()
    seen.add(id(value))
    if isinstance(value, DecoratedFunction):
        return _modules_of(value.__wrapped__, seen)
    if isinstance(value, types.ModuleType):
        return {value.__name__} - {"__main__"}
    if not isinstance(value, types.FunctionType | type):
        return set()
    if value.__module__ != "__main__":
        return {value.__module__} - {"builtins"}
    if isinstance(value, type):
        members = [item for item in vars(value).values() if isinstance(item, types.FunctionType)]
        return set().union(*(_modules_of(item, seen) for item in [*members, *value.__bases__]))
    return _modules_of_function(value, seen)


def _modules_of_function(function: types.FunctionType, seen: set[int]) -> set[str]:
    found = {"cloudpickle"} | _imports_in(function.__code__)
    for name in _names_in(function.__code__):
        if name in function.__globals__:
            found |= _modules_of(function.__globals__[name], seen)
    return found


def _imports_in(code: types.CodeType) -> set[str]:
    found = {item.argval for item in dis.get_instructions(code) if item.opname == "IMPORT_NAME"}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _imports_in(constant)
    return found - {""}


def _names_in(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names_in(constant)
    return names
