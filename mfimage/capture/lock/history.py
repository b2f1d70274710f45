"""The history of a repository, for a copy of a part of it.

Build backends take versions from it, and mark them when files were changed.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path


def give_history(copy: Path, top: Path, links: Sequence[Path] = ()) -> None:
    """Make a copy of a repository's top folder a work tree of it; the repository stays as it is.

    Files that are tracked, and were not copied, count as unchanged; ``links`` are ignored.
    """
    with suppress(OSError, subprocess.CalledProcessError):  # a backend that needs it will fail
        own, common = (
            Path(top, found)
            for found in _git(top, "rev-parse", "--git-dir", "--git-common-dir").split()
        )
        # As `git worktree add` does, but outside of the repository.
        private = copy.with_name(f"{copy.name}.git")
        private.mkdir()
        (private / "commondir").write_text(f"{common.resolve()}\n")
        for name in ("HEAD", "index"):
            if (own / name).is_file():
                (private / name).write_bytes((own / name).read_bytes())
        (private / "gitdir").write_text(f"{copy / '.git'}\n")
        with suppress(FileNotFoundError):
            (copy / ".git").unlink()  # a work tree's or a submodule's
        (copy / ".git").write_text(f"gitdir: {private}\n")
        names = [link.relative_to(copy).as_posix() for link in links]
        if names:
            lines = (re.sub(r"([\\*?\[ ])", r"\\\1", name) for name in (".gitignore", *names))
            with (copy / ".gitignore").open("a") as file:
                file.write("".join(f"\n/{line}" for line in lines))
        tracked = filter(None, _git(copy, "ls-files", "-z").split("\0"))
        absent = [
            name
            for name in tracked
            if (names and name == ".gitignore")
            or (not _is_there(copy, name) and (top / name).is_file())
        ]
        _git(copy, "update-index", "-z", "--skip-worktree", "--stdin", text="\0".join(absent))


def _is_there(copy: Path, name: str) -> bool:
    """Return whether a file was copied; what is above the copied folder is links."""
    path = copy / name
    parents = [each for each in path.parents if each.is_relative_to(copy)]
    return path.is_file() and not any(each.is_symlink() for each in (path, *parents))


def _git(folder: Path, *arguments: str, text: str = "") -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(
        command, input=text, capture_output=True, text=True, check=True
    ).stdout.strip("\n")
