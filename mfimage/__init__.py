"""Package a Metaflow Function as an OCI image: a FastAPI server or a Ray worker."""

from __future__ import annotations

__version__ = "0.1.0"

# Metaflow puts the whole package into a flow's code package once it is imported, so that
# steps that run elsewhere can import it too.
METAFLOW_PACKAGE_POLICY = "include"


def __getattr__(name: str) -> object:
    """Import `pipeline` when it is asked for: a step imports this module first."""
    if name != "pipeline":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return import_module("mfimage.load").pipeline
