"""Which imports of a project run for sure when its function does.

Only the standard library, as ``_reading.py``: the probe loads it in any interpreter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mfimage.capture.code._reading import FileImport, Project


def reached_imports(
    project: Project, start: Iterable[Path], functions: Sequence[str]
) -> list[FileImport]:
    """Return the imports that run on import, or when the functions are called.

    A definition counts as called when its bare name is mentioned by code that runs: too many are
    found rather than too few, yet not a helper that only a flow's steps or a script's main part
    call.

    Parameters
    ----------
    project : Project
        The files and what they import.
    start : iterable of Path
        Files that are imported.
    functions : sequence of str
        Names of definitions that are called.
    """
    files, names = set(start), set(functions)
    while True:
        found = [each for each in project.imports if each.file in files and _runs(each, names)]
        sizes = len(files), len(names)
        files.update(file for each in found for file in each.means)
        for file in files & project.files.keys():
            for within, mentioned in project.files[file].mentions.items():
                if not within or within in names:
                    names |= mentioned
        if sizes == (len(files), len(names)):
            return found


def _runs(statement: FileImport, names: set[str]) -> bool:
    return not statement.within or statement.within in names
