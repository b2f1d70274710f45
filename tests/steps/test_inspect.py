"""What `mfimage inspect` takes for a task: a pathspec, not the name of an image."""

from __future__ import annotations

from pathlib import Path

import pytest

from mfimage.errors import TaskError
from mfimage.inspect import _PATHSPEC, inspect


@pytest.mark.parametrize("text", [
    "TrainFlow/12/train/3", "TrainFlow/12/train", "trainflow/12/train/3", "F/argo-x-abc/start/t-1"
])  # fmt: skip
def test_pathspecs(text: str) -> None:
    assert _PATHSPEC.fullmatch(text)


@pytest.mark.parametrize("text", [
    "team/train:1", "registry.example.com/team/steps/train", "127.0.0.1:5000/team/steps/train",
    "team/steps/train/x", "team/steps@sha256:" + "0a" * 32, "oci:Out", "Train",
    "sha256:" + "0a" * 32,
])  # fmt: skip
def test_names_of_images(text: str) -> None:
    assert not _PATHSPEC.fullmatch(text)


def test_a_task_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TaskError, match="NoSuchFlow/12"):
        inspect("NoSuchFlow/12/train/3")
