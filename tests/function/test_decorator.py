from __future__ import annotations

import asyncio
import copy
import inspect
import pickle
from typing import Any

import pytest

from mfimage.function.decorator import DecoratedFunction, json_function
from mfimage.function.parameters import FunctionParameters


@json_function
def predict(data: dict, params: FunctionParameters) -> dict:
    """Run inference."""
    return {"x": data["x"] * params.factor}


@json_function(batch=True)
async def many(data: list[int]) -> list[int]:
    return [each + 1 for each in data]


def plain(data: dict) -> dict:
    return data


renamed = json_function(plain)


def test_it_is_still_a_plain_function() -> None:
    """No validation, nothing bound: as in a unit test."""
    assert predict({"x": 2}, FunctionParameters(factor=3)) == {"x": 6}
    assert predict(params=FunctionParameters(factor=3), data={"x": "a"}) == {"x": "aaa"}
    assert asyncio.run(many([1, 2])) == [2, 3]
    with pytest.raises(KeyError):
        predict({}, FunctionParameters(factor=3))


def test_it_looks_like_the_function_it_wraps() -> None:
    assert (predict.__name__, predict.__doc__) == ("predict", "Run inference.")
    assert list(inspect.signature(predict).parameters) == ["data", "params"]
    assert "return" in inspect.get_annotations(predict.__wrapped__)
    assert repr(predict).endswith("test_decorator.predict>")
    assert (many.signature.batch, many.signature.is_async) == (True, True)


def test_attributes_of_the_function_do_not_hide_its_own() -> None:
    def odd(data: dict) -> dict:
        return data

    odd.signature = odd.kind = "mine"  # type: ignore[attr-defined]
    assert json_function(odd).signature.data == "data"


def test_it_pickles_by_name_as_functions_do() -> None:
    again: Any = pickle.loads(pickle.dumps(predict))
    assert again is predict
    assert copy.deepcopy(predict) is predict
    with pytest.raises(pickle.PicklingError, match="not what its name finds"):
        pickle.dumps(renamed)
    assert isinstance(renamed, DecoratedFunction)
