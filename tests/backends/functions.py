"""The functions of ``calls.py``'s table; copied into a project of their own and bound there."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, Field
from typing_extensions import NotRequired, TypedDict

from mfimage.errors import OutputError
from mfimage.function.decorator import avro_function, json_function
from mfimage.function.parameters import FunctionParameters


class Needs(FunctionParameters):
    labels: list[str]
    threshold: float = 0.1
    extra: int = 7


class Flower(TypedDict):
    petals: int
    name: NotRequired[str]


@dataclasses.dataclass
class Size:
    width: float
    height: float = 1.0


class Order(BaseModel):
    kind: Literal["cut", "pot"]
    flowers: list[Flower] = []
    when: datetime.date | None = None


class Receipt(BaseModel):
    total: float = Field(serialization_alias="sum")


class Refused(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(f"refused with {code}")
        self.code = code


@json_function
def echo(data: Any) -> Any:
    return data


@json_function
def predict(data: dict, params: FunctionParameters) -> dict:
    features = [data[name] for name in params.feature_names]
    return {"label": params.labels[params.model.predict([features])[0]]}


@json_function
def make(data: str) -> Any:
    """Make a value that JSON has to be told about."""
    makers = {
        "scalar": lambda: np.int64(3),
        "float32": lambda: np.float32(0.1),
        "bool": lambda: {"b": np.bool_(True)},
        "array": lambda: {"a": np.arange(6, dtype="u1").reshape(2, 3)},
        "large": lambda: [2**63, -(2**70)],
        "day": lambda: datetime.date(2020, 1, 2),
        "size": lambda: Size(1.5),
        "receipt": lambda: [Receipt(total=2)],
        "tuple": lambda: (1, (None, "é\u2028")),
        "nan": lambda: {"a": [1.0, float("nan")]},
        "array nan": lambda: {"a b": np.array([[0.0, np.inf]])},
        "set": lambda: {"deep": [{1}]},
        "keys": lambda: {"a": {1: 2}},
        "bytes": lambda: b"x",
        "object": lambda: [Refused(1)],
    }
    return makers[data]()


@json_function
def typed(data: Order) -> Receipt:
    return Receipt(total=sum(each["petals"] for each in data.flowers))


@json_function
def area(data: Size) -> float:
    return int(data.width * data.height)


@json_function
def pick(data: int | Literal["first"], params: Needs) -> str:
    return params.labels[0 if data == "first" else data]


@json_function
def settings(data: None, params: Needs) -> dict[str, float]:
    return {"threshold": params.threshold, "extra": params.extra}


@json_function
def names(data: None, params: FunctionParameters) -> list[str]:
    return [name for name in params if name in ("labels", "threshold", "nothing")]


@json_function
def wrong(data: int) -> int:
    return [None, "1", 1.5, np.float64(2), True, {"a": 1}][data]


@json_function
def fails(data: str, params: FunctionParameters) -> str:
    if data == "refused":
        raise Refused(5)
    if data == "output":
        raise OutputError([])
    if data == "missing":
        return params["labls"]
    if data == "set":
        params.labels = []
    return {"key": 1}[data]


@json_function
async def later(data: int) -> int:
    await asyncio.sleep(0)
    if data == 13:
        raise Refused(13)
    return data + 1


@json_function(batch=True)
def doubled(data: list[int], params: FunctionParameters) -> list[int]:
    if 13 in data:
        raise Refused(13)
    return [] if 0 in data else np.array(data) * 2


@json_function(batch=True)
async def doubled_later(data: list[int]) -> list[float]:
    await asyncio.sleep(0)
    return None if 0 in data else [each * 2 for each in data]


CUT = {
    "type": "record",
    "name": "Cut",
    "fields": [
        {"name": "petals", "type": "long"},
        {"name": "when", "type": ["null", {"type": "long", "logicalType": "timestamp-millis"}]},
        {"name": "color", "type": "string", "default": "red"},
    ],
}


@avro_function(schema=CUT, output_schema=CUT)
def cut(data: dict) -> dict:
    if data["petals"] == 13:
        raise Refused(13)
    return {"petals": None, "when": None} if data["petals"] == 0 else data


@avro_function(batch=True)
def bloom(data: list[Order]) -> list[list[Flower]]:
    return [each.flowers for each in data]
