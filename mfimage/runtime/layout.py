"""Every in-image path, and the variable that says where the function lies, named once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

# Read-only in an image.
FUNCTION = "/opt/function"
VENV = "/opt/venv"
RUNTIME = "/opt/mfimage"

# Inside FUNCTION.
FUNCTION_JSON = "function.json"
CODE = "code"
BLOBS = "blobs/sha256"

FUNCTION_VARIABLE = "MFIMAGE_FUNCTION"
# prometheus_client's own: where its processes put their counts.
MULTIPROCESS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

# What of mfimage runs beside a function, in an image and in an environment of its own, relative
# to the folder that holds the packages.
RUNTIME_FILES = (
    "mfimage/__init__.py",
    "mfimage/errors.py",
    "mfimage/load.py",
    "mfimage/py.typed",
    "mfimage/function/*.py",
    "mfimage/package/__init__.py",
    "mfimage/package/parse.py",
    "mfimage/package/spec.py",
    "mfimage/runtime/*.py",
    "metaflow_extensions/mfimage/toplevel/*.py",
)


def function_folder(environ: Mapping[str, str] | None = None) -> Path:
    """Return the folder of this image's function: ``MFIMAGE_FUNCTION``, else ``/opt/function``."""
    found = (os.environ if environ is None else environ).get(FUNCTION_VARIABLE)
    return Path(found or FUNCTION)
