"""Why each distribution of an environment is included."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mfimage.capture.code.imports import Imports, module_names
from mfimage.capture.lock.notes import Note
from mfimage.capture.lock.platform import Platform

LOADER = "needed by mfimage's loader"


def find_reasons(
    names: Iterable[str],
    imports: Imports,
    platform: Platform,
    *,
    named: Mapping[str, str],
    runtime: Iterable[str],
    notes: Mapping[str, Note],
    otherwise: str,
) -> dict[str, str]:
    """Return why distributions are included, as ``imported by predict.py:3``."""
    names = list(names)
    asked = _asked(imports, names)
    start = {**dict.fromkeys(runtime, LOADER), **asked, **named}
    both = {name: f"{named[name]}, {asked[name]}" for name in named.keys() & asked.keys()}
    installed = imports.installed.close(start, platform)
    required = {
        name: f"required by {note.requirers[0]}" for name, note in notes.items() if note.requirers
    }
    known = {**installed, **required, **start, **both}
    return {name: known.get(name, otherwise) for name in names}


def _asked(imports: Imports, names: Iterable[str]) -> dict[str, str]:
    """Return the reasons of distributions that are installed here, or named as a module."""
    found: dict[str, str] = {}
    for asked in imports.asked:
        owners = imports.installed.owners(asked.module, asked.origins)
        alike = module_names(asked.module) & set(names)
        for name in [owner.name for owner in owners] or alike:
            found.setdefault(name, asked.reason)
    return found
