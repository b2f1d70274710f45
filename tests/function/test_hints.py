from __future__ import annotations

import collections.abc
import dataclasses
import datetime
import decimal
import enum
import fractions
import ipaddress
import json
import pathlib
import subprocess
import sys
import uuid
from collections.abc import Callable
from typing import (
    Annotated,
    Any,
    ClassVar,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    Optional,
    TypedDict,
    TypeVar,
    Union,
)

import numpy as np
import pytest
import typing_extensions as te
from pydantic import (
    Base64Bytes,
    BaseModel,
    ConfigDict,
    Field,
    HttpUrl,
    JsonValue,
    PlainValidator,
    PydanticUserError,
    WithJsonSchema,
    create_model,
)

from mfimage.errors import InputError
from mfimage.function import hints
from mfimage.function.decorator import json_function
from mfimage.function.schema import Schema


class Color(enum.Enum):
    RED = "red"


class Model(BaseModel):
    x: int


class Node(TypedDict):
    value: int
    children: list[Node]


class Partial(TypedDict, total=False):
    must: te.Required[int]
    may: str


class Marked(TypedDict):
    must: int
    may: te.NotRequired[Annotated[str, "note"]]


@dataclasses.dataclass
class Box:
    content: Box | None
    when: datetime.datetime


@dataclasses.dataclass
class Bad:
    numbers: list[set[bytes]]


class Pair(NamedTuple):
    x: int


class BadPair(NamedTuple):
    x: complex


@dataclasses.dataclass
class WithConstant:
    shared: ClassVar[np.ndarray | None] = None


class Opaque:
    """Pydantic is told how to read it."""


UserId = NewType("UserId", int)
Name = NewType("Name", str)
Color2 = enum.Enum("Color2", {"RED": "red"}, type=str)
Lines = NewType("Lines", bytes)
Json = te.TypeAliasType("Json", "dict[str, Json] | list[Json] | str | None")


@pytest.mark.parametrize(
    "hint",
    [
        dict, list, tuple, str, int, float, bool, None, type(None), Any,
        dict[str, Any], dict[Literal["a", "b"], int], dict[str, dict[str, list[float]]],
        list[int | None], tuple[int, ...], tuple[int, str], Optional[int], Union[int, str],  # noqa: UP007, UP045
        list, dict[str, int], collections.abc.Sequence[int],
        collections.abc.Mapping[str, int], collections.abc.Iterable[str],
        datetime.date, datetime.datetime, datetime.time, uuid.UUID,
        Literal["a", 1, None, True], Color, Model, list[Model], Node, Partial, Marked, Box,
        Annotated[int, "note"], UserId, JsonValue, Json, "Later",
        decimal.Decimal, set, set[str], frozenset[int], collections.deque[int], Base64Bytes,
        HttpUrl, datetime.timedelta, Pair, list[Pair], pathlib.Path, ipaddress.IPv4Address,
        fractions.Fraction,
        collections.OrderedDict[str, int], collections.Counter[str], collections.abc.Set[int],
        dict[Annotated[str, "note"], int], dict[Name, int], dict[Color2, int], WithConstant,
        Annotated[Opaque, PlainValidator(str), WithJsonSchema({"type": "string"})],
    ],
    ids=str,
)  # fmt: skip
def test_hints_with_a_json_schema(hint: Any) -> None:
    assert hints.refusal(hint) is None


@pytest.mark.parametrize(
    ("hint", "refused"),
    [
        (bytes, "bytes"),
        (complex, "complex"),
        (object, "object"),
        (np.ndarray, "numpy.ndarray"),
        (np.float64, "numpy.float64"),
        (list[set[bytes]], "bytes"),
        (dict[str, bytes | None], "bytes"),
        (dict[int, str], "dict[int, str] (keys must be str)"),
        (collections.abc.Callable[[int], int], "collections.abc.Callable[[int], int]"),
        (type[int], "type[int]"),
        (Bad, "bytes"),
        (list[Bad], "bytes"),
        (BadPair, "complex"),
        (Optional[complex], "complex"),  # noqa: UP045
        (Optional[dict[int, str]], "dict[int, str] (keys must be str)"),  # noqa: UP045
        (dict[Optional[int], str], "dict[int | None, str] (keys must be str)"),  # noqa: UP045
        (Lines, "bytes"),
        (Literal[b"x"], "Literal[b'x']"),
        (Annotated[bytes, "note"], "bytes"),
    ],
    ids=str,
)
def test_hints_without_one_are_named(hint: Any, refused: str) -> None:
    assert str(hints.refusal(hint)).endswith(refused)


def schema_of(hint: Any) -> Schema:
    def predict(data: Any) -> Any: ...

    predict.__annotations__ = {"data": hint, "return": hint}
    return json_function(predict).signature.schema


class Applicant(TypedDict, total=False):
    """Who applies."""

    age: te.Required[Annotated[int, Field(ge=0, le=130, description="in years")]]
    friends: list[Applicant]
    email: Annotated[str, Field(pattern="@")]


class Exact(TypedDict):
    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]
    x: int


T = TypeVar("T")


@dataclasses.dataclass
class Holder(Generic[T]):
    inside: T
    who: Applicant


Applied = NewType("Applied", Applicant)  # type: ignore[valid-newtype]


@pytest.mark.parametrize(
    ("hint", "wrap"),
    [
        (Applicant, lambda who: who),
        (Applied, lambda who: who),
        (list[Applied] | None, lambda who: [who]),
        (dict[str, Applicant], lambda who: {"a": who}),
        (Holder[Applicant], lambda who: {"inside": who, "who": {"age": 1}}),
        (Annotated[Holder[int], "note"], lambda who: {"inside": 1, "who": who}),
    ],
    ids=["itself", "NewType", "list", "dict", "generic", "dataclass"],
)
def test_a_typed_dict_of_typing_keeps_its_constraints_wherever_it_stands(
    hint: Any, wrap: Callable[[Any], Any]
) -> None:
    """Before Python 3.12 a rebuilt one lost them, and its inner type became Any."""
    schema = schema_of(hint)
    text = json.dumps(schema.input_schema())
    for part in ('"maximum": 130', '"in years"', '"pattern": "@"', "Who applies."):
        assert part in text
    good = wrap({"age": 3, "friends": [{"age": 4, "email": "a@b"}]})
    assert schema.result(schema.accept(good)) == good
    with pytest.raises(InputError) as caught:
        schema.accept(wrap({"age": -1, "friends": [{"age": "x"}, {"email": "a"}]}))
    paths = [fault.path.rpartition("friends")[2] for fault in caught.value.faults]
    assert paths[1:] == ["[0].age", "[1].age", "[1].email"]
    assert paths[0].endswith("age")


def test_a_typed_dict_of_typing_keeps_its_keys_and_config() -> None:
    for kind, required in ((Partial, ["must"]), (Marked, ["must"]), (list[Partial], ["must"])):
        schema = schema_of(kind).input_schema()
        schema = schema.get("$defs", {}).get("Partial", schema)
        assert schema["required"] == required
        assert set(schema["properties"]) == {"must", "may"}
    assert schema_of(Exact).input_schema()["additionalProperties"] is False
    with pytest.raises(InputError, match=r"data\.y: not expected here"):
        schema_of(Exact).accept({"x": 1, "y": 2})


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="pydantic takes them there")
def test_a_model_of_the_user_with_a_typed_dict_of_typing_is_still_refused_by_pydantic() -> None:
    schema_of(Partial)
    with pytest.raises(PydanticUserError, match=r"typing_extensions\.TypedDict"):
        create_model("Late", x=(Partial, ...))


def test_a_default_of_none_adds_nothing_to_the_hint() -> None:
    """On Python 3.10, ``typing.get_type_hints`` adds ``| None``."""

    def predict(data: int = None) -> int: ...  # type: ignore[assignment, empty-body]  # noqa: RUF013

    assert hints.resolve(predict)["data"] is int


def test_decorating_needs_no_pydantic() -> None:
    """A flow that imports a decorated function runs its steps where only Metaflow is."""
    code = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.partition('.')[0] in {'pydantic', 'orjson', 'numpy'}: raise ImportError\n"
        "sys.meta_path.insert(0, Block())\n"
        "from mfimage.function.decorator import json_function\n"
        "from mfimage.function.parameters import FunctionParameters\n"
        "@json_function\n"
        "def predict(data: dict, params: FunctionParameters) -> dict: return {'x': params.x}\n"
        "print(predict({}, FunctionParameters(x=1)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "{'x': 1}\n"
