"""Loads a function captured by value, from the pickle of ``capture/code/by_value.py``."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

from mfimage.errors import PackageError


def load_value(path: Path, *, python: str, builtins: Any = None) -> Any:
    """Return the decorated function in a pickle; ``PackageError`` if this is another Python.

    ``python`` captured it, as ``3.11``: it contains bytecode. The stub gives ``builtins``, too.
    """
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if python != here:
        raise PackageError(
            f"{path.stem} was captured by value with Python {python}; this is Python {here}",
            hint=f"use Python {python}, or bind the function from a .py file",
        )
    found = pickle.loads(path.read_bytes())  # noqa: S301  (of the verified package)
    space = found.__wrapped__.__globals__
    if space.get("__name__") == "__main__" and "__file__" in space:
        space["__file__"] = str(path)
    return found
