"""Functions with every kind of schema, by name; all but the first return what they get."""

from __future__ import annotations

IRIS = '''
from typing import TypedDict
class Class(TypedDict):
    prediction: int
    name: str
@json_function
def predict(data: dict, params: FunctionParameters) -> dict:
    """Classify an iris.

    The input has a number for each feature name; the output has the class and its name.
    <script>document.title = "markup"</script> & <b>bold</b>
    """
    n = 0 if data["petal length (cm)"] < 2.5 else 1
    return {"prediction": n, "name": params.class_names[n]}
'''

EVERYTHING = '''
import datetime, enum, uuid
from typing import Annotated, Literal, Optional, Union
from pydantic import BaseModel, Field

class Color(str, enum.Enum):
    RED = "red"
    GREEN = "green"

class Address(BaseModel):
    """Where it goes."""
    street: str = Field(description="Street and number", max_length=80)
    city: str
    zip: Optional[str] = None

class Card(BaseModel):
    kind: Literal["card"]
    number: str = Field(pattern="[0-9]{4}", max_length=4)

class Invoice(BaseModel):
    kind: Literal["invoice"]
    days: int = 30

class Tree(BaseModel):
    label: str
    children: list["Tree"] = []

class Order(BaseModel):
    """An order, with a field of every kind."""
    customer: str = Field(title="Customer", description="Who orders: <b>a name</b>")
    amount: float = Field(gt=0, le=10000, description="In euros")
    count: int = Field(default=1, ge=1, le=99, multiple_of=1)
    express: bool = False
    color: Color
    size: Literal["S", "M", "L"] = "M"
    address: Address
    tags: list[str] = Field(default=[], max_length=4)
    matrix: list[list[float]] = []
    point: tuple[float, float] = (0.0, 0.0)
    payment: Union[Card, Invoice] = Field(discriminator="kind")
    discount: Union[int, str, None] = None
    extra: dict[str, int] = {}
    anything: Optional[dict] = None
    when: Optional[datetime.date] = None
    at: Optional[datetime.datetime] = None
    note: Optional[str] = None
    token: Optional[uuid.UUID] = None
    tree: Optional[Tree] = None

@json_function
def predict(data: Order) -> dict:
    """Price an order: every kind of field."""
    return data.model_dump(mode="json")
'''
ORDER = {
    "customer": "Ada <script>alert(1)</script>",
    "amount": 12.50,
    "color": "red",
    "address": {"street": "Main Street 1", "city": "London"},
    "tags": ["new", "vip"],
    "payment": {"kind": "invoice", "days": 14},
    "extra": {"a": 1},
    "matrix": [[1.0, 2.5]],
}
SCALAR = '''
@json_function
def predict(data: int) -> int:
    """Square a number."""
    return data * data
'''
BATCH = '''
@json_function(batch=True)
def predict(records: list[dict]) -> list[dict]:
    """Classify many at once."""
    return [{"sum": sum(each.values())} for each in records]
'''
SLOW = '''
import time
@json_function
def predict(data: str) -> str:
    """Repeat a text, slowly."""
    time.sleep(float(data or 0))
    return data
'''
