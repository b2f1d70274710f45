"""Which source of truth describes a function's environment."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mfimage.capture.code.imports import Asked, find_imports
from mfimage.capture.environment.conda import Resolution
from mfimage.capture.environment.describer import RUNTIME_REQUIREMENTS, Describer, Environment
from mfimage.capture.lock.indexes import OWN_CONFIGURATION, IndexOptions
from mfimage.capture.lock.platform import Target
from mfimage.capture.task.pickles import StoredBytes

__all__ = ["RUNTIME_REQUIREMENTS", "Environment", "describe_environment", "find_uv_lock"]


def describe_environment(
    *,
    declared: Path | None,
    project: Path,
    code_root: Path,
    files: Sequence[Path],
    module: str,
    functions: Sequence[str] = (),
    artifacts: Mapping[str, StoredBytes],
    needed: Mapping[str, str] | None = None,
    resolution: Resolution | None = None,
    python_executable: str = sys.executable,
    platform: str = "linux/amd64",
    index: IndexOptions = OWN_CONFIGURATION,
) -> Environment:
    """Describe the environment of a function, from the first source that there is.

    What the caller declares; what Metaflow resolved for the task; the project's ``uv.lock``; what
    code and artifacts really import, at the versions installed.

    Parameters
    ----------
    declared : Path or None
        A requirements file, ``pylock.toml`` or ``uv.lock``.
    project : Path
        The project's folder: where ``uv.lock`` is looked for, up to the top of its repository,
        and where uv looks for its configuration.
    code_root, files, module, functions, artifacts, python_executable
        As in ``find_imports``.
    needed : mapping of str to str, optional
        Modules that the function needs and does not import -> why.
    resolution : Resolution, optional
        What ``find_resolution`` found.
    platform : str
        What to lock for.
    index : IndexOptions
        Which package indexes to ask.

    Raises
    ------
    LockError
        When it cannot be described or solved, or lacks something that the function imports.
    CaptureError
        When the module cannot be imported, or an artifact cannot be read.
    """
    uv_lock = None if declared or resolution else find_uv_lock(project)
    imports = find_imports(
        code_root=code_root,
        files=files,
        module=module,
        functions=functions,
        artifacts=artifacts,
        python_executable=python_executable,
        run=not (declared or resolution or uv_lock),
    )
    needs = [Asked(module, why, (), optional=False) for module, why in (needed or {}).items()]
    imports = replace(imports, asked=(*imports.asked, *needs))
    python = resolution.python if resolution and not declared else imports.python
    describer = Describer(
        imports=imports,
        python=python,
        target=Target(python=python, platform=platform),
        project=project,
        code_root=code_root.resolve(),
        index=index,
    )
    if declared:
        return describer.declared(declared)
    if resolution:
        return describer.resolved(resolution)
    return describer.exported(uv_lock) if uv_lock else describer.imported()


def find_uv_lock(project: Path) -> Path | None:
    """Return the ``uv.lock`` of a project: in its folder, or above it in its repository."""
    folders = [project.resolve(), *project.resolve().parents]
    tops = [i for i, folder in enumerate(folders) if (folder / ".git").exists()]
    # A flow that was run with --environment=uv carries it in its code package.
    packaged = folders[0] / ".mf_meta"
    for folder in [packaged, *folders[: tops[0] + 1 if tops else 1]]:
        if (folder / "uv.lock").is_file() and (folder / "pyproject.toml").is_file():
            return folder / "uv.lock"
    return None
