"""The paths and variables of an image."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

# Read-only in an image.
FUNCTION = "/opt/function"
VENV = "/opt/venv"
RUNTIME = "/opt/mfimage"
PROGRAMS = "/opt/mfimage/bin"

# Inside FUNCTION.
FUNCTION_JSON = "function.json"
CODE = "code"
# Of several functions, instead of FUNCTION_JSON: their names, and a folder of each.
FUNCTIONS_JSON = "functions.json"
FUNCTIONS = "functions"
# The installed packages: the function's and the target's.
LOCK = "pylock.toml"
# CycloneDX.
SBOM = "sbom.cdx.json"
BLOBS = "blobs/sha256"

FUNCTION_VARIABLE = "MFIMAGE_FUNCTION"
# The image's interface.
TARGET_VARIABLE = "MFIMAGE_TARGET"
# Where Vertex AI has put the model that was uploaded with the image.
MODEL_VARIABLE = "AIP_STORAGE_URI"
# prometheus_client's own: folder of the processes' counts.
MULTIPROCESS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

# The files of mfimage that run beside a function, in an image or in an environment of its own;
# relative to the folder that holds the package.
RUNTIME_FILES = (
    "mfimage/__init__.py",
    "mfimage/errors.py",
    "mfimage/load.py",
    "mfimage/masking.py",
    "mfimage/sizes.py",
    "mfimage/py.typed",
    "mfimage/function/**/*.py",
    "mfimage/package/__init__.py",
    "mfimage/package/storage/__init__.py",
    "mfimage/package/storage/objects.py",
    "mfimage/package/spec.py",
    "mfimage/runtime/**/*.py",
    "mfimage/runtime/serving/page/*.css",
    "mfimage/runtime/serving/page/*.html",
    "mfimage/runtime/serving/page/*.js",
    "metaflow_extensions/mfimage/toplevel/*.py",
)


def code_folder(digest: str) -> str:
    """Return the folder of the code of one of several functions: ``code/<16 hex>``."""
    return f"{CODE}/{digest.removeprefix('sha256:')[:16]}"


def placement_resource(digest: str) -> str:
    """Return the Ray resource that marks nodes with a function's image: ``mfimage-<16 hex>``."""
    return f"mfimage-{digest.removeprefix('sha256:')[:16]}"


def function_folder(environ: Mapping[str, str] | None = None) -> Path:
    """Return the folder of this image's function: ``MFIMAGE_FUNCTION``, else ``/opt/function``."""
    found = (os.environ if environ is None else environ).get(FUNCTION_VARIABLE)
    return Path(found or FUNCTION)
