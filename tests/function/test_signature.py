from __future__ import annotations

import functools
import sys
from typing import Any, TypedDict

import pytest

from mfimage.errors import SignatureError
from mfimage.function.decorator import DecoratedFunction, json_function
from mfimage.function.parameters import FunctionParameters
from mfimage.function.signature import Signature


class Needs(FunctionParameters):
    model: object


def data_only(data: dict) -> dict: ...
def untyped(data, params): ...
def both(data: dict, params: FunctionParameters) -> dict: ...
def typed(record: list[int], needs: Needs) -> int: ...
def optional(data: dict, params: FunctionParameters | None = None) -> dict: ...
async def awaited(data: dict, params: Needs) -> dict: ...
def by_position(data: dict, params: Needs, /) -> dict: ...
def ahead(data: Later, params: Needs) -> dict: ...


AHEAD = Signature.of(ahead)  # as it is when it is decorated: its hint does not exist yet


class Later(TypedDict):
    x: int


@pytest.mark.parametrize(
    ("fn", "data", "takes", "kind", "is_async"),
    [
        (data_only, "data", False, FunctionParameters, False),
        (untyped, "data", True, FunctionParameters, False),
        (both, "data", True, FunctionParameters, False),
        (typed, "record", True, Needs, False),
        (optional, "data", True, FunctionParameters, False),
        (awaited, "data", True, Needs, True),
        (by_position, "data", True, Needs, False),
        (ahead, "data", True, Needs, False),
    ],
)
def test_what_a_signature_says(fn: Any, data: str, takes: bool, kind: type, is_async: bool) -> None:
    found = Signature.of(fn)
    assert (found.data, found.takes_params, found.params_type) == (data, takes, kind)
    assert found.is_async is is_async


def test_a_hint_may_be_defined_further_down() -> None:
    assert AHEAD.params_type is Needs
    assert AHEAD.schema.input_schema()["required"] == ["x"]


def star(*data: dict) -> dict: ...
def keyword(data: dict, *, params: Needs) -> dict: ...
def nothing() -> dict: ...
def three(data: dict, params: Needs, more: int = 1) -> dict: ...
def swapped(params: FunctionParameters, data: dict) -> dict: ...
def wrong(data: dict, params: dict) -> dict: ...
def raw(data: bytes) -> dict: ...
def deep(data: dict) -> dict[str, list[bytes]]: ...
def generates(data: dict) -> Any:
    yield 1


async def generates_too(data: dict) -> Any:
    yield 1


@pytest.mark.parametrize(
    ("fn", "message", "hint"),
    [
        (star, "star: parameter 'data' cannot be given by position", "data first"),
        (keyword, "keyword: parameter 'params' cannot be given by position", "data first"),
        (nothing, "nothing takes no data", "data first"),
        (three, "three: 'more' is one parameter too many", "read everything else from"),
        (swapped, "swapped: data comes first, FunctionParameters second", "def swapped(data"),
        (wrong, "wrong: params: expected FunctionParameters, got dict", ""),
        (raw, "raw: data: bytes has no JSON Schema", "use dict, list"),
        (deep, "deep: return: bytes has no JSON Schema", "use dict, list"),
        (generates, "generates is a generator", ""),
        (generates_too, "generates_too is a generator", ""),
        (lambda data: data, "a lambda has no name", "use def"),
        (len, "expected a function, got <built-in function len>", "decorate a def"),
        (Needs, "expected a function, got <class", "decorate a def"),
        (staticmethod(both), "expected a function, got <staticmethod", "decorate a def"),
    ],
)
def test_what_is_refused_when_it_is_decorated(fn: Any, message: str, hint: str) -> None:
    with pytest.raises(SignatureError) as caught:
        json_function(fn)
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("data", "result", "item"),
    [
        ("list[dict]", "list[int]", (dict, int)),
        ("list", "list", (Any, Any)),
        ("List", "Any", (Any, Any)),
        ("typing.Sequence[int]", "typing.Iterable[str]", (int, str)),
        ("dict", "list", "a batch function takes and returns a list, got dict"),
        ("list[int]", "int", "return: a batch function takes and returns a list, got int"),
        ("list[bytes]", "list", "bytes has no JSON Schema"),
    ],
)
def test_the_hints_of_a_batch_function_are_those_of_one_record(
    data: str, result: str, item: Any
) -> None:
    import typing

    space: dict[str, Any] = {"typing": typing, "List": list, "Any": Any}
    exec(f"def fn(data: {data}) -> {result}: ...", space)
    if isinstance(item, str):
        with pytest.raises(SignatureError, match=r".*") as caught:
            Signature.of(space["fn"], batch=True)
        assert item in caught.value.message
    else:
        assert Signature.of(space["fn"], batch=True).record_hints() == item


@pytest.mark.skipif(sys.version_info < (3, 14), reason="hints are evaluated at once")
def test_a_hint_that_is_defined_further_down_needs_no_quotes() -> None:
    space: dict[str, Any] = {"json_function": json_function, "Needs": Needs}
    source = "@json_function\ndef fn(data: Later, params: Needs) -> list[Later]: ...\nLater = int\n"
    exec(compile(source, "x", "exec", dont_inherit=True), space)
    assert space["fn"].signature.params_type is Needs
    assert space["fn"].signature.record_hints() == (int, list[int])


def test_a_hint_that_is_never_defined_is_refused_when_it_is_needed() -> None:
    def fn(data: Nowhere) -> dict: ...  # type: ignore[name-defined]  # noqa: F821

    signature = Signature.of(fn)
    with pytest.raises(SignatureError, match="'Nowhere' is not defined in its type hints"):
        _ = signature.schema


def test_decorating_over_another_decorator_sees_the_function_inside() -> None:
    def logged(fn: Any) -> Any:
        @functools.wraps(fn)
        def wrapper(*args: Any) -> Any:
            return fn(*args)

        return wrapper

    @json_function
    @logged
    def predict(data: dict, params: Needs) -> dict:
        return {"model": params.model, **data}

    assert isinstance(predict, DecoratedFunction)
    assert predict.signature.params_type is Needs
    assert predict({"a": 1}, Needs(model=2)) == {"model": 2, "a": 1}
