from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest

from mfimage.capture.task.artifacts import parameters_read
from mfimage.errors import CaptureError

HEAD = """
from mfimage.function.decorator import json_function
from mfimage.function.parameters import FunctionParameters

def use(*args, **kwargs): ...
"""


def read(body: str, tmp_path: Path, params: str = ", params: FunctionParameters") -> Any:
    code = textwrap.indent(textwrap.dedent(body).strip("\n"), "    ")
    path = tmp_path / "module.py"
    path.write_text(f"{HEAD}\n@json_function\ndef predict(data: dict{params}):\n{code}\n")
    space: dict[str, Any] = {"__name__": "module"}
    exec(compile(path.read_text(), str(path), "exec"), space)
    return parameters_read(space["predict"])


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ("return data", set()),
        ("return params.model.predict([[data[f] for f in params.names]])", {"model", "names"}),
        ("return params['model'], params['a b']", {"model", "a b"}),
        ("return [params.a for _ in data if params.b]", {"a", "b"}),
        ("def inner(x): return params.deep + x\nreturn inner", {"deep"}),
        ("return lambda x: params.deep", {"deep"}),
        ("params.model.params = 1\nreturn use(params=params.model)", {"model"}),
        ("other = data\nreturn other.params", set()),
        ("return f'{params.model!r}'", {"model"}),
        ("with use(params.a) as b:\n    return await_(b, *params.c, **params.d)", {"a", "c", "d"}),
        ("if (m := params.model): return m", {"model"}),
    ],
)
def test_attributes_that_the_code_reads(body: str, names: set[str], tmp_path: Path) -> None:
    assert read(body, tmp_path) == names


@pytest.mark.parametrize(
    "body",
    [
        "return use(params)",
        "return use(p=params)",
        "for name in params: use(name)",
        "return getattr(params, data['name'])",
        "return hasattr(params, 'model')",
        "return params[data['name']]",
        "other = params\nreturn other.model",
        "params = data\nreturn params.model",
        "params.model = 1",
        "del params.model",
        "del params",
        "return {**params}",
        "def inner(params): return params.model\nreturn inner(params)",
        "return (lambda params: params.model)(data)",
        "return params.__dict__",
        "return 'model' in params",
        "return params",
    ],
)
def test_parameters_that_go_where_they_cannot_be_followed(body: str, tmp_path: Path) -> None:
    assert read(body, tmp_path) is None


def test_a_function_without_parameters_reads_none(tmp_path: Path) -> None:
    assert read("return data", tmp_path, params="") == set()


def test_a_function_without_source_may_read_any() -> None:
    space: dict[str, Any] = {"__name__": "module"}
    exec(f"{HEAD}\n@json_function\ndef predict(data: dict, params): return params.model", space)
    assert parameters_read(space["predict"]) is None


HELPED = """
import functools

class Helped(FunctionParameters):
    limit = 0
    @property
    def doubled(self): return 2 * self.bias
    @functools.cached_property
    def kept(self): return self.scaled(1) + self.limit
    def scaled(self, x): return self.factor * x
    @staticmethod
    def plain(x): return x
    def any(self): return dict(self)

def passing(fn):
    @functools.wraps(fn)
    def wrapper(*args, **kwargs): return fn(*args, **kwargs)
    return wrapper

def reading(fn):
    @functools.wraps(fn)
    def wrapper(data, p): return p.threshold
    return wrapper

def looking(fn):
    @functools.wraps(fn)
    def wrapper(*args): return fn(*args) > args[1].threshold
    return wrapper
"""


@pytest.mark.parametrize(
    ("decorator", "body", "names"),
    [
        ("", "params.doubled", {"bias"}),
        ("", "params.kept + params.more", {"factor", "more"}),
        ("", "params.plain(params.x)", {"x"}),
        ("", "params.any()", None),
        ("@passing", "params.x", {"x"}),
        ("@reading", "params.x", {"x", "threshold"}),
        ("@passing\n@reading", "params.x", {"x", "threshold"}),
        ("@looking", "params.x", None),
    ],
)
def test_what_properties_and_decorators_read_is_read(
    decorator: str, body: str, names: Any, tmp_path: Path
) -> None:
    """A property was asked of the task, and what only a decorator reads was left out."""
    source = f"{HEAD}{HELPED}\n@json_function\n{decorator}\ndef predict(data, params: Helped):\n"
    path = tmp_path / "module.py"
    path.write_text(f"{source}    return {body}\n")
    space: dict[str, Any] = {"__name__": "module"}
    exec(compile(path.read_text(), str(path), "exec"), space)
    assert parameters_read(space["predict"]) == names


def test_a_name_that_is_never_a_parameter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        CaptureError, match="predict reads '_secret', and a name that starts with _"
    ):
        read("return params._secret", tmp_path)
