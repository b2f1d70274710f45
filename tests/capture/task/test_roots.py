from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import metaflow
import pytest

from mfimage.capture.task.roots import default_root
from mfimage.errors import ReferenceNotFound
from mfimage.load import function_from_json
from tests.support.packages import make_package


@pytest.mark.parametrize(
    ("kind", "datastore", "root"),
    [
        ("local", "/home/alice/.metaflow", "/home/alice/.mfimage"),
        ("local", "/.metaflow/", "/.mfimage"),
        ("s3", "s3://bucket/team/metaflow", "s3://bucket/team/mfimage"),
        ("s3", "s3://bucket/metaflow/", "s3://bucket/mfimage"),
        ("s3", "s3://bucket", "s3://bucket/mfimage"),
        ("azure", "container/metaflow", "azure://container/mfimage"),
        ("gs", "gs://bucket/metaflow", "gs://bucket/mfimage"),
    ],
)
def test_packages_are_kept_beside_the_data(
    kind: str, datastore: str, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert default_root(kind, datastore) == root
    monkeypatch.setenv("MFIMAGE_FUNCTIONS_ROOT", "/chosen")
    assert default_root(kind, datastore) == "/chosen"


def test_a_function_that_was_pickled_is_found_where_its_project_is_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the reference names is looked for beside the datastore that Metaflow uses."""
    (tmp_path / "old" / ".metaflow").mkdir(parents=True)
    function = function_from_json(make_package(tmp_path / "old" / ".mfimage"))
    pickled = pickle.dumps(function)
    shutil.move(tmp_path / "old", tmp_path / "new")
    with pytest.raises(ReferenceNotFound) as caught:
        pickle.loads(pickled)
    assert "set MFIMAGE_FUNCTIONS_ROOT" in str(caught.value.hint)
    metaflow.metadata(f"local@{tmp_path / 'new'}")
    try:
        found = pickle.loads(pickled)
    finally:
        metaflow.default_metadata()
    assert found.reference == function.reference.replace("/old/", "/new/")
    assert found({"x": 2}) == {"y": 6}
