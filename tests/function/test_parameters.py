from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest

from mfimage.errors import ParameterError, ParameterNotFound, ReadOnlyError
from mfimage.function.parameters import (
    FunctionParameters,
    declared_parameters,
    lazy_parameters,
    missing_parameters,
)


class Base(FunctionParameters):
    KIND: ClassVar[str] = "base"
    model: object
    threshold: float = 0.5


class Needs(Base):
    names: list[str]
    threshold: float  # no default any more
    _private: int = 1

    def first(self) -> str:
        return self.names[0]


def counted(values: dict[str, Any]) -> tuple[dict[str, Callable[[], Any]], list[str]]:
    calls: list[str] = []

    def loader(name: str) -> Callable[[], Any]:
        def load() -> Any:
            calls.append(name)
            return values[name]

        return load

    return {name: loader(name) for name in values}, calls


def test_access_by_attribute_item_and_iteration() -> None:
    params = FunctionParameters(model=1, lazy=2, names=3)
    assert (params.model, params["lazy"], params.lazy) == (1, 2, 2)
    assert (list(params), len(params), "model" in params) == (["lazy", "model", "names"], 3, True)
    assert {"model", "names"} <= set(dir(params))
    assert repr(params) == "FunctionParameters(lazy, model, names)"
    assert not hasattr(params, "nothing")
    assert not FunctionParameters()


def test_what_is_missing_is_named_with_what_there_is() -> None:
    params = FunctionParameters(model=1, names=2)
    for error in (AttributeError, KeyError, ParameterNotFound):
        with pytest.raises(error, match="no parameter 'modle'"):
            params.modle  # noqa: B018
        with pytest.raises(error, match="no parameter 'modle'") as caught:
            params["modle"]
        assert getattr(caught.value, "hint", "") == "there are: model, names"


def test_read_only() -> None:
    params = FunctionParameters(model=1)
    for error in (AttributeError, ReadOnlyError):
        with pytest.raises(error, match="read-only: cannot set 'model'"):
            params.model = 2
        with pytest.raises(error, match="read-only: cannot delete 'model'"):
            del params.model
    with pytest.raises(TypeError):
        params["model"] = 2  # type: ignore[index]


def test_a_typed_subclass_says_what_it_needs() -> None:
    assert list(declared_parameters(Needs)) == ["model", "threshold", "names"]
    assert missing_parameters(Needs, {"model"}) == ["threshold", "names"]
    assert missing_parameters(Base, {"model"}) == []
    params = Needs(model=1, names=["a"], threshold=0.1)
    assert (params.first(), params.KIND, Base(model=1).threshold) == ("a", "base", 0.5)
    assert list(Base(model=1)) == ["model", "threshold"]
    with pytest.raises(ParameterError, match="Needs: missing 'threshold', 'names'"):
        Needs(model=1)
    with pytest.raises(ParameterError, match="Base declares no parameter 'modle'"):
        Base(modle=1)


def test_each_value_is_loaded_when_first_read_and_once() -> None:
    loaders, calls = counted({"model": object(), "threshold": 0.7, "other": 1})
    params = lazy_parameters(Base, loaders, {})
    assert (list(params), calls) == (["model", "threshold"], [])
    assert params.threshold == 0.7, "what was loaded wins over the default"
    assert params.model is params.model is params["model"]
    assert calls == ["threshold", "model"]
    given = lazy_parameters(Base, loaders, {"threshold": 0.1})
    assert (given.threshold, calls) == (0.1, ["threshold", "model"]), "what is given wins"


def test_64_threads_load_once() -> None:
    calls = []
    barrier = threading.Barrier(64)

    def load() -> object:
        calls.append(threading.get_ident())
        return object()

    params = lazy_parameters(FunctionParameters, {"a": load, "b": load}, {})

    def read(_: int) -> tuple[int, int]:
        barrier.wait()
        return id(params.a), id(params.b)

    with ThreadPoolExecutor(64) as pool:
        found = set(pool.map(read, range(64)))
    assert (len(found), len(calls)) == (1, 2)


def test_one_that_needs_another_while_it_is_loaded() -> None:
    params: FunctionParameters
    loaders: dict[str, Callable[[], Any]] = {"a": lambda: params.b + 1, "b": lambda: 1}
    params = lazy_parameters(FunctionParameters, loaders, {})
    assert params.a == 2


def test_a_broken_one_is_not_taken_for_one_that_is_missing() -> None:
    """``getattr(params, "model", None)`` and ``hasattr`` must not hide it."""

    def load() -> Any:
        raise ParameterError("it is broken")

    params = lazy_parameters(FunctionParameters, {"model": load}, {})
    for read in (lambda: hasattr(params, "model"), lambda: getattr(params, "model", None)):
        with pytest.raises(ParameterError, match="it is broken"):
            read()


def test_pickles_and_copies_carry_the_values() -> None:
    loaders, calls = counted({"model": [1], "threshold": 0.7})
    params = lazy_parameters(Base, loaders, {})
    for again in (pickle.loads(pickle.dumps(params)), copy.deepcopy(params), copy.copy(params)):
        assert type(again) is Base
        assert (again.model, again.threshold) == ([1], 0.7)
    assert sorted(calls) == ["model", "threshold"]


def test_a_task_gives_its_artifacts(task: Any) -> None:
    params = FunctionParameters(task, threshold=0.9)
    assert {"model", "labels", "scaler", "threshold"} <= set(params)
    assert not any(name.startswith("_") for name in params)
    assert (params.threshold, params.labels[0]) == (0.9, "setosa")
