"""A function that no module defines, captured by value: notebooks, REPLs, unguarded scripts."""

from __future__ import annotations

import copy
import dataclasses
import dis
import functools
import io
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import cloudpickle

from mfimage.capture.task.pickles import StoredBytes, named_globals
from mfimage.errors import CaptureError
from mfimage.function import hints
from mfimage.function.decorator import DecoratedFunction, blank, cached, dispatched, fill, state_of

MODULE = "_bound_function"
MAX_SIZE = 256 << 20

_TEMPLATE = '''\
"""The function {name!r}, captured by value: no module defines it."""

from pathlib import Path

from mfimage.runtime.value import load_value


def _imports():
    """Name what the function needs; never called."""
{imports}

{name} = load_value(
    Path(__file__).with_name("{module}.pkl"), python="{python}", builtins=__builtins__
)
'''
_IMPORT = "    import {}\n"
# Function bodies decide what to do when their imports fail.
_TRY = "    try:\n        import {}\n    except ImportError:\n        pass\n"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Value:
    """A function captured by value."""

    entrypoint: str  # ``module:function``
    files: Mapping[str, bytes]  # the module that stands for it, and the pickle
    modules: frozenset[str]  # what it imports or refers to


def capture_value(function: DecoratedFunction) -> Value:
    """Pickle a function with everything of ``__main__`` that it refers to."""
    buffer = io.BytesIO()
    pickler = _Pickler(buffer)
    try:
        pickler.dump(function)
    except Exception as error:
        message = f"{function.__name__} cannot be captured by value: {error}"
        hint = "define it in a .py file and import it from there"
        raise CaptureError(message, hint=hint) from error
    stored = StoredBytes(encoding="pickle-v4", open=lambda: io.BytesIO(buffer.getvalue()))
    for module, name in sorted(named_globals(function.__name__, stored)):
        if module == "__main__":
            message = (
                f"{function.__name__} cannot be captured by value: {name} is known by its name"
            )
            hint = f"define {name} in a .py file and import it from there"
            raise CaptureError(message, hint=hint)
    if buffer.tell() > MAX_SIZE:
        size = f"{buffer.tell() >> 20} MiB of data (at most {MAX_SIZE >> 20})"
        hint = "keep data in an artifact, and read it from the parameters"
        raise CaptureError(f"{function.__name__} refers to {size}", hint=hint)
    needed = _tidy(name for name in pickler.needed if _is_real(name))
    optional = _tidy(pickler.optional - pickler.needed)
    stub = _TEMPLATE.format(
        name=function.__name__,
        module=MODULE,
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
        imports="".join([*map(_IMPORT.format, needed), *map(_TRY.format, optional)]),
    )
    return Value(
        entrypoint=f"{MODULE}:{function.__name__}",
        files={f"{MODULE}.py": stub.encode(), f"{MODULE}.pkl": buffer.getvalue()},
        modules=frozenset(needed + optional),
    )


def _is_real(name: object) -> bool:
    """Return whether a loaded module can be imported: Cython's own, for one, cannot."""
    top = sys.modules.get(name.partition(".")[0]) if isinstance(name, str) else None
    return getattr(top, "__spec__", None) is not None


def _tidy(modules: Iterable[str]) -> list[str]:
    ours = {"", "__main__", "mfimage", *sys.stdlib_module_names}
    return sorted(name for name in modules if name.partition(".")[0] not in ours)


# Dataclasses compare these by identity, so a copy would not be recognized.
_NAMES = ("_FIELD", "_FIELD_CLASSVAR", "_FIELD_INITVAR", "_HAS_DEFAULT_FACTORY")
_PRESENT = [name for name in ("MISSING", "KW_ONLY", *_NAMES) if hasattr(dataclasses, name)]
_SENTINELS = {id(getattr(dataclasses, name)): name for name in _PRESENT}


class _Pickler(cloudpickle.CloudPickler):  # type: ignore[misc]  # it has no hints
    """Pickles the same function to the same bytes, and notes which modules it needs."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=4)
        self.needed = {"cloudpickle"}
        self.optional: set[str] = set()
        # Kept alive: pickle remembers objects by their ids.
        self._clones: dict[int, Any] = {}

    def reducer_override(self, obj: Any) -> Any:
        if id(obj) in _SENTINELS:
            return _SENTINELS[id(obj)]
        if isinstance(obj, DecoratedFunction) and obj.__module__ == "__main__":
            return blank, (), state_of(obj), None, None, fill
        if getattr(obj, "__module__", None) == "__main__" and (made := _by_parts(obj)):
            return made
        if isinstance(obj, types.FunctionType) and obj.__module__ == "__main__":
            self.optional |= _imports_in(obj.__code__)
            return super().reducer_override(self._clone(obj))
        self._note(obj)
        reduced = super().reducer_override(obj)
        return _stable_class(obj, reduced) if isinstance(obj, type) else reduced

    def _note(self, obj: Any) -> None:
        if isinstance(obj, types.ModuleType):
            self.needed.add(obj.__name__)
        elif isinstance(obj, type | types.FunctionType | types.BuiltinFunctionType):
            self.needed.add(obj.__module__ or "")
        else:
            self.needed.add(type(obj).__module__)

    def _clone(self, function: types.FunctionType) -> types.FunctionType:
        """Return a copy with resolved hints: the names in strings would not be captured."""
        if id(function) in self._clones:
            return self._clones[id(function)][1]  # type: ignore[no-any-return]  # clones are functions
        clone = types.FunctionType(
            _nameless(function.__code__),
            function.__globals__,
            function.__name__,
            function.__defaults__,
            function.__closure__,
        )
        clone.__dict__.update(function.__dict__)
        clone.__kwdefaults__, clone.__qualname__ = function.__kwdefaults__, function.__qualname__
        clone.__doc__, clone.__module__ = function.__doc__, function.__module__
        clone.__annotations__ = _resolved(function, function.__annotations__)
        self._clones[id(function)] = (function, clone)
        return clone


def _by_parts(obj: Any) -> Any:
    """Return how to make again what pickle knows by its name only, or not at all."""
    if isinstance(obj, functools._lru_cache_wrapper):
        options = obj.cache_parameters()
        return cached, (obj.__wrapped__, options["maxsize"], options["typed"])
    if hasattr(obj, "registry") and getattr(obj, "__globals__", None) is vars(functools):
        return dispatched, (dict(obj.registry),)
    if isinstance(obj, typing.NewType):
        return typing.NewType, (obj.__name__, obj.__supertype__)
    return None


def _nameless(code: types.CodeType) -> types.CodeType:
    """Return code without the temporary folder in which a notebook keeps it."""
    constants = (_nameless(c) if isinstance(c, types.CodeType) else c for c in code.co_consts)
    return code.replace(co_filename=Path(code.co_filename).name, co_consts=tuple(constants))


def _stable_class(cls: type, reduced: Any) -> Any:
    """Drop the random name by which cloudpickle tracks a class, and resolve the hints."""
    maker = reduced[0] if isinstance(reduced, tuple) else None
    if not getattr(maker, "__name__", "").startswith("_make_skeleton"):
        return reduced
    _, args, (members, slots), *rest = reduced
    if "__annotations__" in members:
        resolved = _resolved(cls, members["__annotations__"])
        members = {**members, "__annotations__": resolved}
    if "__dataclass_fields__" in members:
        fields = {name: copy.copy(each) for name, each in members["__dataclass_fields__"].items()}
        types_of = _resolved(cls, {name: field.type for name, field in fields.items()})
        for name, field in fields.items():
            field.type = types_of[name]
        members = {**members, "__dataclass_fields__": fields}
    return maker, (*args[:-2], None, args[-1]), (members, slots), *rest


def _resolved(annotated: Any, own: Mapping[str, Any]) -> dict[str, Any]:
    try:
        found = hints.resolve(annotated)
    except (NameError, TypeError):
        found = {}
    return {name: found.get(name, hint) for name, hint in own.items()}


def _imports_in(code: types.CodeType) -> set[str]:
    found = {item.argval for item in dis.get_instructions(code) if item.opname == "IMPORT_NAME"}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _imports_in(constant)
    return found
