"""Versions of distributions that decide what a layer is."""

from __future__ import annotations

import sys
from pathlib import Path


def installed_version(name: str) -> str | None:
    """Return the version of an installed distribution, None if it is not there.

    A folder's name has it as a rule; importing ``importlib.metadata`` takes longer than a small
    layer.
    """
    for entry in sys.path:
        for found in Path(entry or ".").glob(f"{name}-*.dist-info"):
            return found.name.removesuffix(".dist-info").partition("-")[2]
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None
