from __future__ import annotations

from typing import Any

import pytest

from mfimage.capture.task import artifacts
from mfimage.capture.task.artifacts import checked_values, needs_of, parameter_schema
from mfimage.capture.task.task import describe_task
from mfimage.errors import InputError, MfimageError, OptionError, TaskError
from mfimage.function.decorator import json_function
from mfimage.function.parameters import FunctionParameters
from mfimage.package.spec import ArtifactRef

pytestmark = pytest.mark.slow


class Needs(FunctionParameters):
    model: object
    labels: list
    limit: float = 0.5
    threshold: float = 0.5


@json_function
def typed(data: dict, params: Needs) -> dict: ...


@json_function
def reads(data: dict, params: FunctionParameters) -> dict:
    return {"x": params.model, "y": params.labels}


@json_function
def any_of_them(data: dict, params: FunctionParameters) -> dict:
    return dict(params)


@json_function
def none(data: dict) -> dict: ...


ALL = ["evil", "feature_names", "labels", "large", "mark", "model", "name", "scaler", "threshold"]


@pytest.mark.parametrize(
    ("function", "artifacts", "given", "required", "chosen"),
    [
        (typed, None, {}, {"model", "labels"}, ["labels", "model", "threshold"]),
        (typed, None, {"model": 1}, {"labels"}, ["labels", "threshold"]),
        (typed, ["model", "labels"], {}, {"model", "labels"}, ["labels", "model"]),
        (typed, ["labels"], {"model": 1}, {"labels"}, ["labels"]),
        (reads, None, {}, {"model", "labels"}, ["labels", "model"]),
        (reads, None, {"labels": []}, {"model"}, ["model"]),
        (reads, ["scaler"], {}, {"scaler"}, ["scaler"]),
        (reads, [], {}, set(), []),
        (any_of_them, None, {}, set(), ALL),
        (none, None, {}, set(), []),
    ],
)
def test_which_artifacts_go_along(
    *, function: Any, artifacts: Any, given: Any, required: set[str], chosen: list[str], task: Any
) -> None:
    needs = needs_of(function, artifacts, given)
    assert needs.required == required
    assert needs.choose(describe_task(task)) == chosen


@pytest.mark.parametrize(
    ("function", "artifacts", "message"),
    [
        (typed, ["model"], "artifacts: Needs needs 'labels' too"),
        (typed, ["model", "labels", "scaler"], "artifacts: Needs declares no 'scaler'"),
        (reads, "model", "artifacts: expected a list of names, got 'model'"),
    ],
)
def test_names_that_do_not_go_with_the_function(
    function: Any, artifacts: Any, message: str
) -> None:
    with pytest.raises(OptionError) as caught:
        needs_of(function, artifacts, {})
    assert caught.value.message == message


def test_a_missing_artifact_is_named(task: Any) -> None:
    for names in (["model", "modle"], ["modle"]):
        with pytest.raises(TaskError, match="has no artifact 'modle'"):
            needs_of(reads, names, {}).choose(describe_task(task))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"limit": {1}}, "parameters.limit: set has no JSON form"),
        ({"limit": float("nan")}, "parameters.limit: nan has no JSON form"),
        ({"modle": 1}, "parameters: Needs declares no 'modle'"),
    ],
)
def test_values_that_cannot_be_given(values: dict[str, Any], message: str) -> None:
    with pytest.raises((InputError, OptionError), match=r".") as caught:
        checked_values(typed, values)
    assert isinstance(caught.value, MfimageError)
    assert message in caught.value.message


def test_what_a_package_says_of_its_parameters() -> None:
    ref = ArtifactRef(digest="sha256:" + "0" * 64, size=1, encoding="pickle-v4", type="list")
    assert checked_values(typed, {"limit": 1, "labels": ("a",)}) == {"limit": 1, "labels": ["a"]}
    needs = needs_of(typed, None, {"limit": 1})
    assert parameter_schema(typed, needs, {"labels": ref}, {"limit": 1}) == {
        "type": "object",
        "properties": {
            "model": {},
            "labels": {"x-python-type": "list"},
            "limit": {"default": 1},
            "threshold": {},
        },
        "required": ["labels", "model"],
    }
    needs = needs_of(reads, None, {})
    required = parameter_schema(reads, needs, {"labels": ref}, {})["required"]
    assert required == ["labels", "model"]


def test_what_may_be_read_is_not_required() -> None:
    ref = ArtifactRef(digest="sha256:" + "0" * 64, size=1, encoding="pickle-v4", type="list")
    anything = artifacts.Needs(names=None, required=frozenset())
    assert parameter_schema(reads, anything, {"labels": ref}, {})["required"] == []
