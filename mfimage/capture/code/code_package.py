"""A task's code package: what Metaflow uploaded for steps that run elsewhere."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from mfimage.capture.task.task import TaskInfo, describe_task
from mfimage.errors import PackageError, TaskError
from mfimage.package.archive import extracted

_FIELD = "code-package"
# Metaflow itself and its extensions, in today's code packages and in those before 2.16.
_NOT_THE_USERS = (".mf_code/", ".mf_install", "metaflow/", "metaflow_extensions/")
_META = ".mf_meta"


def read_code_package(task: TaskInfo) -> bytes | None:
    """Return a task's code package, verified; None when it has none."""
    about = task.metadata.get(_FIELD)
    if not about:
        return None
    return task.store.read_file(str(json.loads(about)["sha"]), "the code package")


def with_code_package(task: Any) -> TaskInfo:
    """Return a task of the same run that has a code package; all of them have the same one."""
    run = task.parent.parent
    for each in (task, *(step.task for step in run)):
        if each is not None and _FIELD in each.metadata_dict:
            return describe_task(each)
    raise TaskError(
        f"run {run.pathspec} has no code package: no step of it ran elsewhere",
        hint="bind where the function's file is; a run with "
        "METAFLOW_FEAT_ALWAYS_UPLOAD_CODE_PACKAGE=true has a code package",
    )


def unpacked_code(task: TaskInfo) -> AbstractContextManager[Path]:
    """Yield a private folder that holds the user's files of a task's code package."""
    data = read_code_package(task)
    if data is None:
        raise TaskError(f"task {task.pathspec} has no code package")
    where = f"the code package of {task.pathspec}"
    return extracted(data, where=where, without=_NOT_THE_USERS)


def packaged_commit(folder: Path) -> str | None:
    """Return the git commit of an unpacked code package's files, if Metaflow recorded it."""
    file = folder / _META / "INFO"
    if not file.is_file():
        return None
    try:
        found: Mapping[str, Any] = json.loads(file.read_bytes())
    except ValueError:
        raise PackageError(f"{file}: not JSON", hint="run the flow again") from None
    commit = found.get("commit_sha")
    return str(commit) if commit else None


def git_commit(folder: Path | None) -> str | None:
    """Return the commit that a folder's repository is at."""
    command = ["git", "-C", str(folder or "."), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
