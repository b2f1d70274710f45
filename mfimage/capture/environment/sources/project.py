"""The project's ``uv.lock``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from mfimage.capture.environment.sources.base import Environment, Maker, Request
from mfimage.capture.lock import pylock
from mfimage.capture.lock.notes import parse_comments
from mfimage.capture.lock.toml import loads
from mfimage.capture.lock.uv import export_notes, export_pylock


def find(request: Request) -> Callable[[], Environment] | None:
    """Find the project's ``uv.lock``."""
    file = find_uv_lock(request.project)
    return partial(describe_uv_lock, request, file) if file else None


def find_uv_lock(project: Path) -> Path | None:
    """Return the ``uv.lock`` of a project: in its folder, or above it in its repository."""
    folders = [project.resolve(), *project.resolve().parents]
    tops = [i for i, folder in enumerate(folders) if (folder / ".git").exists()]
    # The code package of a flow that was run with --environment=uv has it here.
    packaged = folders[0] / ".mf_meta"
    for folder in [packaged, *folders[: tops[0] + 1 if tops else 1]]:
        if (folder / "uv.lock").is_file() and (folder / "pyproject.toml").is_file():
            return folder / "uv.lock"
    return None


def describe_uv_lock(request: Request, file: Path) -> Environment:
    """Export it, with the project's own distribution if the code imports that."""
    maker, folder = request.read(), file.parent
    member, package = _member(request.project.resolve(), folder)
    with_project = _imports_project(maker, member)
    text = export_pylock(folder, with_project=with_project, index=request.index, package=package)
    parsed = pylock.parse_pylock(text, where=str(file))
    lock = maker.settle(parsed, base=folder, where=file.name)
    maker.check(lock, file.name, remedy="the dependencies in pyproject.toml")
    notes = parse_comments(export_notes(folder, index=request.index, package=package))
    return maker.environment(lock, "uv.lock", notes=notes, otherwise="locked in uv.lock")


def _member(project: Path, root: Path) -> tuple[Path, str | None]:
    """Return the folder and the name of the workspace's member that a project's folder is in."""
    for folder in (project, *project.parents):
        if folder == root:
            break
        if root in folder.parents and (folder / "pyproject.toml").is_file():
            found = loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
            if name := found.get("project", {}).get("name"):
                return folder, str(name)
    return root, None


def _imports_project(maker: Maker, project: Path) -> bool:
    """Return whether the code imports the project's own distribution."""
    # What is in the code's folder is included as code, so that an edit stays small.
    code_root = maker.request.code.root.resolve()
    folders = [folder for folder in (project, project / "src") if folder != code_root]
    names = {asked.module.partition(".")[0] for asked in maker.imports.asked}
    return any(
        (folder / name / "__init__.py").is_file() or (folder / f"{name}.py").is_file()
        for folder in folders
        for name in names
    )
