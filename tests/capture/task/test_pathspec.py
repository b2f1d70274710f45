from __future__ import annotations

from typing import Any

import pytest

from mfimage.capture.task.pathspec import find_task
from mfimage.errors import TaskError
from tests.conftest import Run

pytestmark = pytest.mark.slow


def test_missing_parts_are_filled_in(iris_run: Run, metaflow_client: Any) -> None:
    end = find_task("IrisFlow")
    assert end.pathspec.startswith(f"{iris_run.pathspec}/end/")
    assert find_task(f"/{iris_run.pathspec}/").pathspec == end.pathspec
    train = find_task(f"{iris_run.pathspec}/train", wanted=["model"])
    assert find_task(train.pathspec).pathspec == train.pathspec
    assert find_task("IrisFlow", wanted=["only_at_end", "model"]).pathspec == end.pathspec


def test_looking_for_a_run_unpickles_nothing(iris_run: Run, metaflow_client: Any) -> None:
    iris_run.mark.unlink(missing_ok=True)
    find_task("IrisFlow", wanted=["evil"])
    assert not iris_run.mark.exists()


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("", "task '' is not a pathspec", "write Flow, Flow/run"),
        ("a//b", "task 'a//b' is not a pathspec", "write Flow"),
        ("a/b/c/d/e", "is not a pathspec", "write Flow"),
        ("NoFlow", "no flow 'NoFlow' in local@", "run the flow first"),
        ("NoFlow/1", "no run 'NoFlow/1' in local@", "run the flow first"),
        ("{iris}0", "no run '{iris}0' in local@", "run the flow first"),
        ("{iris}/nostep", "run {iris} has no step 'nostep'", "it has: end, start, train"),
        ("{iris}/train/99", "step {iris}/train has no task '99'", "it has: "),
        ("OddFlow", "flow 'OddFlow' has no successful run in the namespace 'user:alice'",
         "finish a run, or search all namespaces with --namespace ''"),
        ("{odd}", "run {odd} has no step 'end'", "it has: each, join, start"),
        ("{odd}/each", "step {odd}/each has 2 tasks", "name one of them, as {odd}/each/"),
    ],
)  # fmt: skip
def test_what_is_not_there_says_what_is(
    *, text: str, message: str, hint: str, iris_run: Run, odd_run: Run, metaflow_client: Any
) -> None:
    names = {"iris": iris_run.pathspec, "odd": odd_run.pathspec}
    with pytest.raises(TaskError) as caught:
        find_task(text.format(**names))
    assert message.format(**names) in caught.value.message
    assert hint.format(**names) in str(caught.value.hint)


def test_a_step_that_nobody_chose_and_that_lacks_artifacts(
    iris_run: Run, odd_run: Run, metaflow_client: Any
) -> None:
    with pytest.raises(TaskError, match="/start has no artifact 'kept'") as caught:
        _end_is_start(odd_run, metaflow_client, ["kept"])
    assert (
        caught.value.hint
        == f"these steps have all it needs: join; name one, as {odd_run.pathspec}/join"
    )
    with pytest.raises(TaskError, match="/end has no artifact 'nowhere'") as caught:
        find_task("IrisFlow", wanted=["model", "nowhere"])
    assert caught.value.hint == "no step of this run has all that the function needs"


def _end_is_start(run: Run, client: Any, wanted: list[str]) -> None:
    from mfimage.capture.task.pathspec import _check_artifacts

    _check_artifacts({step.id: step for step in client.Run(run.pathspec)}, "start", wanted)


def test_namespaces(iris_run: Run, metaflow_client: Any) -> None:
    metaflow_client.namespace("user:bob")
    for text in ("IrisFlow", iris_run.pathspec):
        with pytest.raises(TaskError, match="is not in the namespace 'user:bob'") as caught:
            find_task(text)
        assert "--namespace ''" in str(caught.value.hint)
    for namespace in ("", "user:alice"):
        assert find_task("IrisFlow", namespace=namespace).parent.id == "end"
        assert metaflow_client.get_namespace() == "user:bob", "it is as it was"


def test_nobody_in_particular(
    iris_run: Run, metaflow_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root is nobody to Metaflow: in containers, on build machines."""
    from metaflow import metaflow_config
    from metaflow.client import core

    monkeypatch.setattr(metaflow_config, "USER", None)
    for name in ("METAFLOW_USER", "SUDO_USER", "USERNAME", "USER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(core, "current_namespace", False)
    with pytest.raises(TaskError, match="does not know which user you are") as caught:
        find_task("IrisFlow")
    assert "METAFLOW_USER" in str(caught.value.hint)
    assert find_task("IrisFlow", namespace="").parent.id == "end"
