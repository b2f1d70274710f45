from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mfimage.capture.task.artifacts import copy_artifacts
from mfimage.capture.task.task import describe_task, succeeded
from mfimage.errors import CaptureError, TaskError
from mfimage.package.store import PackageStore
from tests.conftest import Run

pytestmark = pytest.mark.slow


@pytest.fixture
def copied(iris_run: Run, tmp_path: Path, metaflow_client: Any) -> Iterator[Path]:
    """The datastore in another place, to be damaged; the task still says the old one."""
    shutil.copytree(iris_run.folder / ".metaflow", tmp_path / ".metaflow")
    for path in (tmp_path / ".metaflow").rglob("*ds-root*.json"):
        said = json.loads(path.read_text())
        path.write_text(json.dumps({**said, "value": str(tmp_path / ".metaflow")}))
    metaflow_client.metadata(f"local@{tmp_path}")
    yield tmp_path / ".metaflow"


def train(run: Run, client: Any) -> Any:
    return client.Step(f"{run.pathspec}/train").task


def test_what_binding_knows_of_a_task(task: Any, iris_run: Run) -> None:
    info = describe_task(task)
    assert info.pathspec == task.pathspec
    assert (info.flow, info.run, info.step) == ("IrisFlow", iris_run.run, "train")
    assert (info.store.kind, info.store.root) == ("local", str(iris_run.folder / ".metaflow"))
    assert set(info.artifacts) == {
        "evil", "feature_names", "labels", "large", "mark", "model", "name", "scaler", "threshold",
    }  # fmt: skip
    assert info.artifacts["scaler"].type == "__main__.Scaler"
    assert info.artifacts["model"].type == "sklearn.linear_model._logistic.LogisticRegression"
    assert info.artifacts["labels"].encoding.startswith("pickle-v")
    assert (info.metadata["user"], info.metadata["script-name"]) == ("alice", "train.py")
    assert not iris_run.mark.exists()


@pytest.mark.parametrize(
    ("step", "message"),
    [("join", "failed"), ("each", "failed")],  # a task that was caught failed, too
)
def test_a_failed_task_is_refused(
    step: str, message: str, odd_run: Run, metaflow_client: Any
) -> None:
    tasks = list(metaflow_client.Step(f"{odd_run.pathspec}/{step}"))
    refused = []
    for task in tasks:
        try:
            describe_task(task)
        except TaskError as error:
            refused.append(error.message)
    assert len(refused) == 1
    assert refused[0].endswith(message)
    assert [succeeded(task) for task in tasks].count(True) == len(tasks) - 1


def test_a_task_that_has_not_finished_is_refused(
    copied: Path, iris_run: Run, metaflow_client: Any
) -> None:
    folder = copied / "IrisFlow" / iris_run.run / "train"
    for done in folder.rglob("*DONE.lock"):
        done.unlink()
    with pytest.raises(TaskError, match="has not finished"):
        describe_task(train(iris_run, metaflow_client))
    for early in folder.rglob("*ds-root*.json"):
        early.unlink()
    with pytest.raises(TaskError, match="has not finished: its metadata does not say where"):
        describe_task(train(iris_run, metaflow_client))


def _blob(root: Path, key: str) -> Path:
    return root / "IrisFlow" / "data" / key[:2] / key


def test_even_what_metaflow_says_of_itself_is_not_run(
    copied: Path, iris_run: Run, metaflow_client: Any, tmp_path: Path
) -> None:
    """``Task.successful`` would unpickle; whoever can write artifacts can write that one."""
    mark = tmp_path / "mark"
    info = describe_task(train(iris_run, metaflow_client))
    blob = _blob(copied, info.store._task._objects["_success"])
    blob.write_bytes(gzip.compress(f"cbuiltins\nopen\n(V{mark}\nVw\ntR.".encode()))
    with pytest.raises(CaptureError, match=r"the pickle of _success names builtins\.open"):
        describe_task(train(iris_run, metaflow_client))
    assert not mark.exists()


def test_a_project_that_was_moved_is_found(
    iris_run: Run, tmp_path: Path, metaflow_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(iris_run.folder / ".metaflow", tmp_path / ".metaflow")
    for path in (tmp_path / ".metaflow").rglob("*ds-root*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "value": "/moved/away"}))
    metaflow_client.metadata(f"local@{tmp_path}")
    monkeypatch.chdir(tmp_path)
    info = describe_task(train(iris_run, metaflow_client))
    assert info.store.root == str(tmp_path / ".metaflow")
    assert "model" in info.artifacts


def test_artifacts_are_copied_as_stored_bytes(task: Any, iris_run: Run, tmp_path: Path) -> None:
    info = describe_task(task)
    store = PackageStore(tmp_path)
    refs = copy_artifacts(info, ["labels", "evil", "large", "labels"], store)
    assert list(refs) == ["evil", "labels", "large"]
    for name, ref in refs.items():
        blob = _blob(Path(info.store.root), info.artifacts[name].key)
        assert store.read_blob(ref) == blob.read_bytes()
        assert (ref.size, ref.encoding) == (blob.stat().st_size, "gzip+pickle-v4")
    assert refs["evil"].type == "__main__.Evil"
    assert not iris_run.mark.exists(), "nobody's pickle runs here"
    with pytest.raises(TaskError, match="has no artifact 'modle'") as caught:
        copy_artifacts(info, ["modle"], store)
    assert "it has: evil, feature_names, labels" in str(caught.value.hint)


def test_blobs_that_the_datastore_did_not_compress(
    copied: Path, iris_run: Run, metaflow_client: Any, tmp_path: Path
) -> None:
    info = describe_task(train(iris_run, metaflow_client))
    blob = _blob(copied, info.artifacts["labels"].key)
    plain = gzip.decompress(blob.read_bytes())
    blob.write_bytes(plain)
    Path(f"{blob}_meta").write_text(json.dumps({"cas_raw": True, "cas_version": 1}))
    ref = copy_artifacts(info, ["labels"], PackageStore(tmp_path / "store"))["labels"]
    assert (ref.encoding, ref.size) == ("pickle-v4", len(plain))


def test_a_blob_that_is_gone_is_told(
    copied: Path, iris_run: Run, metaflow_client: Any, tmp_path: Path
) -> None:
    info = describe_task(train(iris_run, metaflow_client))
    _blob(copied, info.artifacts["labels"].key).unlink()
    with pytest.raises(
        TaskError, match=r"artifact 'labels' of .* is gone from the local datastore"
    ):
        copy_artifacts(info, ["labels"], PackageStore(tmp_path / "store"))


def test_an_included_file_is_refused(task: Any, tmp_path: Path) -> None:
    info = describe_task(task)
    kind = "metaflow.includefile.IncludedFile"
    included = {"labels": type(info.artifacts["labels"])(key="k", encoding="e", type=kind, info={})}
    info.store.artifacts = included
    with pytest.raises(CaptureError, match=r"'labels' of .* is an IncludeFile") as caught:
        copy_artifacts(info, ["labels"], PackageStore(tmp_path))
    assert "self.labels_text = self.labels" in str(caught.value.hint)
