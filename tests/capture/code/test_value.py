"""Capture by value runs in a ``__main__`` of its own; ``tests/test_bind.py`` has the rest."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from mfimage.errors import InputError, PackageError
from mfimage.runtime.loading.modules import CodeSpace
from mfimage.runtime.value import load_value
from tests.support.projects import python, write

_CAPTURE = """
def _capture(folder):
    import json, pathlib, sys
    from mfimage.capture.code.by_value import capture_value
    from mfimage.errors import CaptureError
    try:
        value = capture_value(predict)
    except CaptureError as error:
        print(json.dumps({"error": error.message}))
        return
    for name, content in value.files.items():
        path = pathlib.Path(folder) / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    print(json.dumps({"entrypoint": value.entrypoint, "modules": sorted(value.modules)}))
_capture(%r)
"""
HEAD = (
    "from mfimage.function.decorator import json_function\n"
    "from mfimage.function.parameters import FunctionParameters\n"
)


def capture(source: str, project: Path, folder: Path, *, seed: int = 0, future: str = "") -> Any:
    """Capture a function that another process reads from its stdin."""
    folder.mkdir(exist_ok=True)
    program = f"{future}{HEAD}{source}\n{_CAPTURE % str(folder)}"
    done = python(["-"], folder=project, stdin=program, env={"PYTHONHASHSEED": str(seed)})
    return json.loads(done.stdout)


def load(folder: Path, key: str) -> Any:
    code = CodeSpace(folder, key=key, dedicated=False, main=None)
    return code.import_module("_bound_function").predict


RICH = """
import dataclasses, enum, functools, math
from typing import TypedDict
import numpy as np
import helper
from helper import Shape
from numpy.polynomial import Polynomial
LIMIT = np.float64(2.5)
fitted = Polynomial([0.0, 2.0])

class Color(enum.Enum):
    RED = "red"

class Record(TypedDict):
    x: float

class Needs(FunctionParameters):
    factor: int
    offset: float = 0.5

class Base:
    def __init__(self, x): self.x = x
    def double(self): return self.x * 2

class Child(Base):
    def double(self): return super().double() + LIMIT

def twice(fn):
    @functools.wraps(fn)
    def wrapper(*args):
        import helper as again
        return fn(fn(*args)) + again.ZERO
    return wrapper

@twice
def add(x): return x + math.floor(LIMIT)

@json_function
def other(data: dict) -> dict: return {"other": data, "depth": 0}

@json_function
def predict(data: Record, params: Needs) -> dict:
    '''Say all of it.'''
    import json, later
    try:
        import nowhere_at_all
    except ImportError:
        nowhere_at_all = None
    if data["x"] < 0:
        return predict({"x": -data["x"]}, params)
    def inner(x):
        import inner_only
        return inner_only.VALUE + x
    return {
        "add": add(data["x"]), "child": Child(params.factor).double(), "color": Color.RED.value,
        "shape": Shape().name + helper.__name__[-6:], "later": later.VALUE, "inner": inner(1),
        "other": other({}), "fit": fitted(data["x"]),
        "offset": params.offset,
    }
"""
PROJECT = {
    "helper.py": "ZERO = 0\nclass Shape: name = 'round'\n",
    "later.py": "VALUE = 'later'\n",
    "inner_only.py": "VALUE = 1\n",
}


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("rich")
    write(folder / "project", PROJECT)
    return folder, capture(RICH, folder / "project", folder / "value")


def test_all_that_main_holds_goes_along(rich: tuple[Path, Any]) -> None:
    folder, said = rich
    write(folder / "value", PROJECT)
    predict = load(folder / "value", "rich")
    kind = predict.signature.params_type
    assert (kind.__name__, kind._defaults) == ("Needs", {"offset": 0.5})
    assert predict.__doc__ == "Say all of it."
    assert predict.signature.schema.input_schema()["required"] == ["x"]
    found = predict({"x": -1.0}, kind(factor=4))
    assert found == {
        "add": 5.0, "child": 10.5, "color": "red", "shape": "roundhelper", "later": "later",
        "inner": 2, "other": {"other": {}, "depth": 0}, "fit": 2.0, "offset": 0.5,
    }  # fmt: skip
    assert said["entrypoint"] == "_bound_function:predict"
    assert str(sys.modules["later"].__file__) == str(folder / "value" / "later.py")


def test_it_says_what_it_imports(rich: tuple[Path, Any]) -> None:
    folder, said = rich
    needed = {"cloudpickle", "helper", "later", "inner_only", "numpy.polynomial.polynomial"}
    assert needed < set(said["modules"])
    assert not {"json", "math", "__main__", "mfimage"} & set(said["modules"])
    stub = (folder / "value" / "_bound_function.py").read_text()
    assert "    import helper\n" in stub
    assert "    try:\n        import nowhere_at_all\n    except ImportError:\n" in stub


def test_hints_that_are_strings_are_resolved_here(tmp_path: Path) -> None:
    """The names in them stay behind in the notebook."""
    source = (
        "class Needs(FunctionParameters):\n    factor: 'int'\n    offset: 'float' = 0.5\n"
        "from typing import TypedDict\n"
        "class Record(TypedDict):\n    x: 'float'\n    more: 'list[Later]'\n"
        "class Later(TypedDict):\n    y: int\n"
        "@json_function\n"
        "def predict(data: 'Record', params: 'Needs') -> 'dict[str, float]':\n"
        "    return {'x': data['x'] * params.factor + params.offset}\n"
    )
    capture(source, tmp_path, tmp_path / "value")
    predict = load(tmp_path / "value", "strings")
    kind = predict.signature.params_type
    schema = predict.signature.schema
    record = schema.parse(b'{"x": 2, "more": [{"y": 1}]}')
    assert schema.result(predict(record, kind(factor=3))) == {"x": 6.5}


def test_an_avro_function_keeps_its_schemas(tmp_path: Path) -> None:
    source = (
        "from mfimage.function.decorator import avro_function\n"
        "@avro_function(schema='long', output_schema='double', batch=True)\n"
        "def predict(data: list) -> list:\n"
        "    return [each / 2 for each in data]\n"
    )
    capture(source, tmp_path, tmp_path / "value")
    predict = load(tmp_path / "value", "avro")
    assert (predict.kind, predict.signature.batch) == ("avro", True)
    assert predict.signature.schemas == {"input": "long", "output": "double"}
    assert predict.signature.schema.result(1) == 1.0


TYPES = """
import dataclasses, enum
from pydantic import BaseModel, Field, field_validator
class Kind(enum.Enum):
    A = "a"
class Inner(BaseModel):
    kind: Kind
    number: int = Field(ge=0)
    @field_validator("number")
    @classmethod
    def is_odd(cls, value):
        if value % 2 == 0: raise ValueError("even")
        return value
@dataclasses.dataclass
class Box:
    inner: Inner
    tags: list[str] = dataclasses.field(default_factory=list)
class Total(BaseModel):
    total: int = Field(serialization_alias="sum")
@json_function
def predict(data: Box, params: FunctionParameters) -> Total:
    return Total(total=data.inner.number + len(data.tags))
"""


@pytest.mark.parametrize("future", ["", "from __future__ import annotations\n"])
def test_classes_of_every_kind_go_along(future: str, tmp_path: Path) -> None:
    """What dataclasses compare by identity stays itself; hints that are strings are resolved."""
    capture(TYPES, tmp_path, tmp_path / "value", future=future)
    predict = load(tmp_path / "value", f"types{len(future)}")
    schema = predict.signature.schema
    record = schema.parse(b'{"inner": {"kind": "a", "number": 3}}')
    assert (record.tags, record.inner.kind.name) == ([], "A")
    assert schema.dump(predict(record, None)) == b'{"sum":3}'
    with pytest.raises(InputError, match=r"data\.inner\.number: value error, even, got 2"):
        schema.parse(b'{"inner": {"kind": "a", "number": 2}}')


def test_the_same_function_gives_the_same_bytes(rich: tuple[Path, Any]) -> None:
    folder, _ = rich
    digests = set()
    for seed in (1, 2):
        value = folder / f"again{seed}"
        capture(RICH, folder / "project", value, seed=seed)
        files = sorted(value.glob("_bound_function.*"))
        digests.add(tuple(hashlib.sha256(path.read_bytes()).hexdigest() for path in files))
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import threading\nLOCK = threading.Lock()", "cannot be captured by value: cannot pickle"),
        (
            "class Thing:\n    def __reduce__(self): return 'LOCK'\nLOCK = Thing()",
            "predict cannot be captured by value: LOCK is known by its name",
        ),
        ("LOCK = bytes(300 << 20)", "predict refers to 300 MiB of data (at most 256)"),
    ],
)
def test_what_cannot_go_along(source: str, message: str, tmp_path: Path) -> None:
    source += "\n@json_function\ndef predict(data: dict) -> dict: return {'x': bool(LOCK)}\n"
    assert message in capture(source, tmp_path, tmp_path / "value")["error"]


BY_NAME = """
import functools
from typing import NewType

Count = NewType("Count", int)

@functools.lru_cache(maxsize=8)
def slow(n):
    return n if n < 2 else slow(n - 1) + slow(n - 2)

@functools.singledispatch
def describe(x):
    return "thing"

@describe.register
def _(x: int):
    return "number"

@describe.register(list)
def many(x):
    return [describe(each) for each in x]

class Model:
    @functools.lru_cache
    def twice(self, n):
        return 2 * n

@json_function
def predict(data: Count) -> list:
    return [slow(data), Model().twice(data), describe(data), describe([1, "x"])]
"""


def test_what_pickle_knows_by_name_only_is_made_again(tmp_path: Path) -> None:
    """A cached function of a notebook was ``module '__main__' has no attribute 'slow'``."""
    capture(BY_NAME, tmp_path, tmp_path / "value")
    predict = load(tmp_path / "value", "by-name")
    assert predict(10) == [55, 20, "number", ["number", "thing"]]
    cached = predict.__wrapped__.__globals__["slow"]
    assert (cached.cache_info().maxsize, cached.cache_info().currsize > 1) == (8, True)


def test_another_python_is_refused(tmp_path: Path) -> None:
    """It holds bytecode, which crashes another one."""
    with pytest.raises(PackageError, match=r"captured by value with Python 3\.6; this is Python 3"):
        load_value(tmp_path / "x.pkl", python="3.6", builtins=__builtins__)
