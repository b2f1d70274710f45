"""Every in-image path, and the variable that says where the function lies, named once."""

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
# What was installed: the function's needs and the target's.
LOCK = "pylock.toml"
# What is in the image (CycloneDX).
SBOM = "sbom.cdx.json"
BLOBS = "blobs/sha256"

FUNCTION_VARIABLE = "MFIMAGE_FUNCTION"
# Which interface the image exposes.
TARGET_VARIABLE = "MFIMAGE_TARGET"
# prometheus_client's own: where its processes put their counts.
MULTIPROCESS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

# What of mfimage runs beside a function, in an image and in an environment of its own, relative
# to the folder that holds the packages.
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
    "metaflow_extensions/mfimage/toplevel/*.py",
)

# Of a function's digest, what stands in the name of its placement resource.
_PLACEMENT_DIGITS = 16


def placement_resource(digest: str) -> str:
    """Return the Ray resource of nodes that carry a function's image, as ``mfimage-<16 hex>``.

    Parameters
    ----------
    digest : str
        The function's, as ``sha256:<hex>`` or the hex digits alone.
    """
    return f"mfimage-{digest.removeprefix('sha256:')[:_PLACEMENT_DIGITS]}"


def function_folder(environ: Mapping[str, str] | None = None) -> Path:
    """Return the folder of this image's function: ``MFIMAGE_FUNCTION``, else ``/opt/function``."""
    found = (os.environ if environ is None else environ).get(FUNCTION_VARIABLE)
    return Path(found or FUNCTION)
