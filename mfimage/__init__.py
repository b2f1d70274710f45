"""Package a Metaflow Function as an OCI image: a FastAPI server or a Ray worker."""

from __future__ import annotations

__version__ = "0.1.0"

# Metaflow puts the whole package into a flow's code package once it is imported, so that
# steps that run elsewhere can import it too.
METAFLOW_PACKAGE_POLICY = "include"

TYPE_CHECKING = False  # without importing typing: a step imports this module first
if TYPE_CHECKING:
    from mfimage.load import pipeline as pipeline
else:

    def __getattr__(name: str) -> object:
        if name != "pipeline":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return import_module("mfimage.load").pipeline
