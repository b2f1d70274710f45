"""A function bound to every task of a foreach step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import mfimage.bind
from mfimage.bind import BindOptions, bind_foreach
from mfimage.capture.code.locate import load_decorated
from mfimage.capture.task.datastore import ForeachFrame, TaskStore
from mfimage.capture.task.foreach import foreach_tasks
from mfimage.errors import TaskError
from mfimage.package.store import open_package
from tests.conftest import Run

CODE = """
from metaflow import json_function, FunctionParameters

@json_function
def predict(data: dict, params: FunctionParameters) -> dict:
    return {"y": params.caught}
"""


@pytest.fixture
def each(odd_run: Run, metaflow_client: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """A foreach over 1 and 0, as if both tasks had succeeded."""
    monkeypatch.setattr(TaskStore, "succeeded", lambda _: True)
    return f"{odd_run.pathspec}/each"


@pytest.mark.slow
def test_code_and_environment_are_captured_once(
    each: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "predict.py").write_text(CODE)
    captured = []
    describe = mfimage.bind.describe_environment
    monkeypatch.setattr(
        mfimage.bind, "describe_environment", lambda each: captured.append(each) or describe(each)
    )
    function = load_decorated(f"{tmp_path}/predict.py:predict")
    options = BindOptions(root=tmp_path / "root")
    references = bind_foreach(function, each, options)
    packages = [open_package(reference) for reference in references]
    specs = [package.spec for package in packages]
    assert [spec.name for spec in specs] == ["predict/1", "predict/0"]
    assert references == [package.reference for package in packages]
    assert len({spec.task for spec in specs}) == len({spec.lineage.task for spec in specs}) == 2
    assert len({spec.artifacts["caught"].digest for spec in specs}) == 2
    assert len({spec.code.digest for spec in specs}) == len(captured) == 1
    # One of the two is an exception of Metaflow's: the environment is that of both.
    assert len({spec.environment.lock.digest for spec in specs}) == 1


def test_a_task_that_failed_or_is_in_no_foreach_is_named(
    odd_run: Run, metaflow_client: Any
) -> None:
    with pytest.raises(TaskError, match="does not run in a foreach"):
        foreach_tasks(f"{odd_run.pathspec}/start")
    with pytest.raises(TaskError, match=r"of the 2 .*, 1 cannot be bound: .*/\d failed") as caught:
        foreach_tasks(f"{odd_run.pathspec}/each")
    assert "every task" in (caught.value.hint or "")
    with pytest.raises(TaskError, match="is not a step"):
        foreach_tasks("OddFlow")


@pytest.mark.parametrize(
    ("values", "splits", "said"),
    [
        (["emea", "emea"], 2, "have the same value 'emea'"),
        (["em ea", "a/b"], 2, r"cannot: 'em ea' of .*each/\d+, 'a/b' of"),
        (["..", "-x"], 2, r"cannot: '\.\.' of .*'-x' of"),
        (["é", ""], 2, r"cannot: 'é' of .*, '' of"),
        (["a", "b"], 3, "has 2 of 3 tasks"),
        (["a", None], 2, "does not record its value"),
        (["a", "b" * 30], 2, "may be cut"),
    ],
)
def test_what_is_wrong_with_values_is_said_before_anything_is_bound(
    values: list[str], splits: int, said: str, each: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _record(monkeypatch, [[(splits, n, value)] for n, value in enumerate(values)])
    with pytest.raises(TaskError, match=said) as caught:
        foreach_tasks(each)
    assert caught.value.hint


def test_nested_foreaches_give_both_values(each: str, monkeypatch: pytest.MonkeyPatch) -> None:
    outer = [(2, 0, "emea"), (2, 1, "apac")]
    _record(monkeypatch, [[outer[1], (1, 0, "shoes")], [outer[0], (1, 0, "shoes")]])
    found = foreach_tasks(each)
    assert list(found) == ["emea.shoes", "apac.shoes"]


def _record(
    monkeypatch: pytest.MonkeyPatch, stacks: list[list[tuple[int, int, str | None]]]
) -> None:
    """Let the tasks have recorded this, in the order in which they are read."""
    left = iter(stacks)

    def stack(store: TaskStore) -> list[ForeachFrame]:
        return [ForeachFrame("each", "items", *frame) for frame in next(left)]

    monkeypatch.setattr(TaskStore, "foreach_stack", stack)
