"""What mfimage needs installed: in a flow's steps, it may have come without its dependencies."""

from __future__ import annotations

import importlib.util
import sys

from mfimage.errors import BackendError

# As in pyproject.toml. Metaflow's code package contains mfimage itself, but none of these.
_NEEDED = {
    "cloudpickle": ">=3",
    "orjson": ">=3.10",
    "packaging": ">=25",
    "pydantic": ">=2.10",
    "uv": ">=0.13",
    **({"tomli": ">=2"} if sys.version_info < (3, 11) else {}),
}


def require_needed(module: str | None = None) -> None:
    """Check that functions can be bound here."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    # pydantic_core is missing with pydantic.
    if missing and (module is None or module.partition(".")[0].removesuffix("_core") in missing):
        packages = ", ".join(f'"{name}": "{_NEEDED[name]}"' for name in missing)
        message = "functions cannot be bound or loaded here: not installed: " + ", ".join(missing)
        hint = f"install them; a step gets them by @pypi(packages={{{packages}}})"
        raise BackendError(message, hint=hint)
