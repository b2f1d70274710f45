"""Images that serve the function over HTTP."""

from __future__ import annotations

from dataclasses import dataclass

from mfimage.image.targets.target import RUNTIME_REQUIREMENTS, Target

# The extra `serve` in pyproject.toml lists the same.
SERVE_REQUIREMENTS = (
    "fastapi>=0.115",
    "fastapi-offline>=1.7",
    "uvicorn>=0.34,<0.55",
    "httptools>=0.6.3",
    "uvloop>=0.21; sys_platform != 'win32'",
    "prometheus-client>=0.21",
)


@dataclass(frozen=True, kw_only=True)
class FastapiTarget(Target):
    """An HTTP server for the function."""

    name = "fastapi"
    template = "fastapi.Dockerfile.j2"
    check = "mfimage.image.checks.server:check_server"
    ports = (8000,)

    @property
    def requirements(self) -> tuple[str, ...]:
        """See `Target`."""
        return RUNTIME_REQUIREMENTS + SERVE_REQUIREMENTS
