from __future__ import annotations

import collections.abc
import dataclasses
import datetime
import decimal
import enum
import subprocess
import sys
import uuid
from typing import Annotated, Any, Literal, NamedTuple, NewType, Optional, TypedDict, Union

import numpy as np
import pytest
import typing_extensions as te
from pydantic import BaseModel, JsonValue, TypeAdapter

from mfimage.function import hints


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
    numbers: list[set[int]]


class Pair(NamedTuple):
    x: int


UserId = NewType("UserId", int)
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
    ],
    ids=str,
)  # fmt: skip
def test_hints_with_a_json_schema(hint: Any) -> None:
    assert hints.refusal(hint) is None


@pytest.mark.parametrize(
    ("hint", "refused"),
    [
        (set, "set"),
        (bytes, "bytes"),
        (complex, "complex"),
        (decimal.Decimal, "decimal.Decimal"),
        (object, "object"),
        (np.ndarray, "numpy.ndarray"),
        (np.float64, "numpy.float64"),
        (list[set[int]], "set[int]"),
        (dict[str, bytes | None], "bytes"),
        (dict[int, str], "dict[int, str] (keys must be str)"),
        (collections.abc.Callable[[int], int], "collections.abc.Callable[[int], int]"),
        (type[int], "type[int]"),
        (Bad, "set[int]"),
        (list[Bad], "set[int]"),
        (Pair, "test_hints.Pair"),
        (Lines, "bytes"),
        (Literal[b"x"], "Literal[b'x']"),
        (Annotated[bytes, "note"], "bytes"),
    ],
    ids=str,
)
def test_hints_without_one_are_named(hint: Any, refused: str) -> None:
    assert str(hints.refusal(hint)).endswith(refused)


def test_typed_dicts_of_typing_keep_their_optional_keys() -> None:
    for kind, required in ((Partial, ["must"]), (Marked, ["must"]), (list[Partial], ["must"])):
        schema = TypeAdapter(hints.adaptable(kind)).json_schema()
        schema = schema.get("$defs", {}).get("Partial", schema)
        assert schema["required"] == required
        assert set(schema["properties"]) == {"must", "may"}
    assert TypeAdapter(hints.adaptable(Node)).validate_python({"value": 1, "children": []})


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
