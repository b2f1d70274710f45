"""``FunctionParameters``: the artifacts of the bound task, by attribute, read-only and lazy."""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from mfimage.errors import ParameterError

if TYPE_CHECKING:
    from metaflow.client import Task

_MISSING = object()


def _annotations(cls: type) -> dict[str, Any]:
    if sys.version_info >= (3, 14):
        import annotationlib

        return annotationlib.get_annotations(cls, format=annotationlib.Format.FORWARDREF)
    return inspect.get_annotations(cls)


class FunctionParameters:
    """What a function reads beside its input.

    In a unit test, give values by keyword: ``FunctionParameters(model=m, threshold=0.5)``.
    A bound function gets the artifacts of its task, each loaded once, when it is first read.

    A subclass declares what it needs; binding fails when the task lacks one that has no default::

        class Needs(FunctionParameters):
            model: LogisticRegression
            threshold: float = 0.5

    Parameters
    ----------
    task : metaflow.Task, optional
        Where to read artifacts that no keyword gives.
    **values
        Parameters by name; they win over the task's artifacts.

    Raises
    ------
    ParameterError
        For a typed subclass: when a required parameter is missing or a name is not declared.
    """

    _declared: ClassVar[Mapping[str, Any]] = {}
    _defaults: ClassVar[Mapping[str, Any]] = {}
    __slots__ = ("_loaders", "_lock", "_values")

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = {
            name: hint
            for name, hint in _annotations(cls).items()
            if not name.startswith("_") and "ClassVar" not in str(hint)
        }
        cls._declared = {**cls._declared, **own}
        defaults = dict(cls._defaults)
        for name in own:
            defaults.pop(name, None)
            if name in cls.__dict__:
                # Taken off the class, or reading it would never reach the artifact.
                defaults[name] = cls.__dict__[name]
                delattr(cls, name)
        cls._defaults = defaults

    def __init__(self, task: Task | None = None, /, **values: Any) -> None:
        loaders: dict[str, Callable[[], Any]] = {}
        if task is not None:
            loaders = {artifact.id: _task_loader(task, artifact.id) for artifact in task}
        self._fill(values, loaders)

    @classmethod
    def lazy(
        cls, loaders: Mapping[str, Callable[[], Any]], values: Mapping[str, Any]
    ) -> FunctionParameters:
        """Make parameters whose values are loaded when first read.

        Parameters
        ----------
        loaders : mapping of name to callable
            Called at most once each.
        values : mapping of name to value
            Given outright; they win over ``loaders``.
        """
        self = cls.__new__(cls)
        self._fill(values, loaders)
        return self

    def _fill(self, values: Mapping[str, Any], loaders: Mapping[str, Callable[[], Any]]) -> None:
        declared = self._declared
        if declared:
            unknown = sorted(set(values) - set(declared))
            if unknown:
                raise ParameterError(
                    f"{type(self).__name__} declares no parameter {unknown[0]!r}",
                    hint=f"it declares {', '.join(declared)}",
                )
            missing = missing_parameters(type(self), {*values, *loaders})
            if missing:
                raise ParameterError(
                    f"{type(self).__name__}: missing {', '.join(map(repr, missing))}",
                    hint="give it by keyword, or a default in the class",
                )
            loaders = {name: loaders[name] for name in declared if name in loaders}
            values = {**{n: v for n, v in self._defaults.items() if n not in loaders}, **values}
        object.__setattr__(self, "_values", dict(values))
        object.__setattr__(
            self, "_loaders", {name: load for name, load in loaders.items() if name not in values}
        )
        object.__setattr__(self, "_lock", threading.RLock())

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in FunctionParameters.__slots__:
            raise AttributeError(name)
        value = self._values.get(name, _MISSING)
        return self._load(name) if value is _MISSING else value

    def _load(self, name: str) -> Any:
        with self._lock:
            if name in self._values:
                return self._values[name]
            load = self._loaders.get(name)
            if load is None:
                names = ", ".join(self) or "none"
                raise ParameterError(f"no parameter {name!r}", hint=f"there are: {names}")
            value = load()
            self._values[name] = value
            return value

    def __getitem__(self, name: str) -> Any:
        try:
            return getattr(self, name)
        except ParameterError as error:
            raise KeyError(error.message) from None

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self._values, *self._loaders}))

    def __len__(self) -> int:
        return len({*self._values, *self._loaders})

    def __contains__(self, name: object) -> bool:
        return name in self._values or name in self._loaders

    def __setattr__(self, name: str, value: Any) -> None:
        raise ParameterError(
            f"parameters are read-only: cannot set {name!r}",
            hint="make new ones: FunctionParameters(...)",
        )

    def __delattr__(self, name: str) -> None:
        raise ParameterError(f"parameters are read-only: cannot delete {name!r}")

    def __reduce__(self) -> tuple[object, ...]:
        return (_restore, (type(self), {name: getattr(self, name) for name in self}))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self)})"


def _restore(cls: type[FunctionParameters], values: dict[str, Any]) -> FunctionParameters:
    return cls.lazy({}, values)


def _task_loader(task: Task, name: str) -> Callable[[], Any]:
    return lambda: task[name].data


def missing_parameters(cls: type[FunctionParameters], present: set[str]) -> list[str]:
    """Return the declared names without default that are not in ``present``."""
    return [name for name in cls._declared if name not in present and name not in cls._defaults]


def declared_parameters(cls: type[FunctionParameters]) -> dict[str, Any]:
    """Return the names a typed subclass declares, with their hints; empty for the base class."""
    return dict(cls._declared)
