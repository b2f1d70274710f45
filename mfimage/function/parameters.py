"""``FunctionParameters``: the artifacts of the bound task, by attribute, read-only and lazy."""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from mfimage.errors import ParameterError, ParameterNotFound, ReadOnlyError

if TYPE_CHECKING:
    from metaflow.client import Task

Parameters = TypeVar("Parameters", bound="FunctionParameters")


class FunctionParameters:
    """The parameters of a function: the artifacts of its task.

    In a unit test, pass values by keyword: ``FunctionParameters(model=m, threshold=0.5)``.
    A bound function gets the artifacts of its task, each loaded once, when it is first read.

    A subclass declares what it needs; binding fails when the task lacks one that has no default::

        class Needs(FunctionParameters):
            model: LogisticRegression
            threshold: float = 0.5

    Parameters
    ----------
    task : metaflow.Task, optional
        Its artifacts are the parameters that are not passed by keyword.
    **values
        Parameters by name; they override the task's artifacts.

    Raises
    ------
    ParameterError
        For a typed subclass: if a required parameter is missing or a name is not declared.
    """

    _declared: ClassVar[Mapping[str, Any]] = {}
    _defaults: ClassVar[Mapping[str, Any]] = {}
    # A loaded value is in __dict__, as quick to read as any attribute. The class has no public
    # names, since an artifact may have any.
    __slots__ = ("__dict__", "_loaders", "_lock", "_names")
    _names: frozenset[str]
    _loaders: Mapping[str, Callable[[], Any]]
    _lock: threading.RLock

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = {
            name: hint
            for name, hint in _annotations(cls).items()
            if not name.startswith("_") and "ClassVar" not in str(hint)
        }
        defaults = dict(cls._defaults)
        for name in own:
            defaults.pop(name, None)
            if name in cls.__dict__:
                # A class attribute would hide the artifact.
                defaults[name] = cls.__dict__[name]
                delattr(cls, name)
        cls._declared = {**cls._declared, **own}
        cls._defaults = defaults

    def __init__(self, task: Task | None = None, /, **values: Any) -> None:
        names = [artifact.id for artifact in task or ()]
        loaders = {name: _task_loader(task, name) for name in names if not name.startswith("_")}
        self._fill(values, loaders)

    def _fill(self, values: Mapping[str, Any], loaders: Mapping[str, Callable[[], Any]]) -> None:
        values = dict(values)
        loaders = {name: load for name, load in loaders.items() if name not in values}
        if self._declared:
            self._check(values, loaders)
            loaders = {name: load for name, load in loaders.items() if name in self._declared}
            values = {**self._defaults, **values}
            values = {name: value for name, value in values.items() if name not in loaders}
        for slot, value in (
            ("_names", frozenset({*values, *loaders})),
            ("_loaders", loaders),
            ("_lock", threading.RLock()),
        ):
            object.__setattr__(self, slot, value)
        vars(self).update(values)

    def _check(self, values: Mapping[str, Any], loaders: Mapping[str, Any]) -> None:
        unknown = sorted(set(values) - set(self._declared))
        if unknown:
            message = f"{type(self).__name__} declares no parameter {unknown[0]!r}"
            raise ParameterError(message, hint=f"it declares {', '.join(self._declared)}")
        missing = missing_parameters(type(self), {*values, *loaders})
        if missing:
            message = f"{type(self).__name__}: missing {', '.join(map(repr, missing))}"
            hint = "pass it by keyword, or give it a default in the class"
            raise ParameterError(message, hint=hint)

    def __getattr__(self, name: str) -> Any:
        """Load a value when it is first read."""
        if name.startswith("_"):
            raise AttributeError(name)
        return self[name]

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            names = ", ".join(self) or "none"
            raise ParameterNotFound(f"no parameter {name!r}", hint=f"there are: {names}")
        values = vars(self)
        if name not in values:
            with self._lock:
                if name not in values:
                    values[name] = self._loaders[name]()
        return values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._names))

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._names})

    def __setattr__(self, name: str, value: Any) -> None:
        hint = "make new ones: FunctionParameters(...)"
        raise ReadOnlyError(f"parameters are read-only: cannot set {name!r}", hint=hint)

    def __delattr__(self, name: str) -> None:
        raise ReadOnlyError(f"parameters are read-only: cannot delete {name!r}")

    def __reduce__(self) -> tuple[object, ...]:
        return (lazy_parameters, (type(self), {}, {name: self[name] for name in self}))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self)})"


def lazy_parameters(
    cls: type[Parameters], loaders: Mapping[str, Callable[[], Any]], values: Mapping[str, Any]
) -> Parameters:
    """Make parameters whose values are loaded when first read, once; ``values`` override."""
    parameters = cls.__new__(cls)
    parameters._fill(values, loaders)
    return parameters


def missing_parameters(cls: type[FunctionParameters], present: set[str]) -> list[str]:
    """Return the declared names without default that are not in ``present``."""
    return [name for name in cls._declared if name not in present and name not in cls._defaults]


def declared_parameters(cls: type[FunctionParameters]) -> dict[str, Any]:
    """Return the names a typed subclass declares, with their hints; empty for the base class."""
    return dict(cls._declared)


def _annotations(cls: type) -> dict[str, Any]:
    if sys.version_info >= (3, 14):
        import annotationlib

        return annotationlib.get_annotations(cls, format=annotationlib.Format.FORWARDREF)
    return inspect.get_annotations(cls)


def _task_loader(task: Any, name: str) -> Callable[[], Any]:
    return lambda: task[name].data
