"""What a server serves, as data: the functions by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from mfimage.package.spec import FunctionSpec
from mfimage.runtime.settings import Settings

_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class Served:
    """The functions of a server, from which the table of routes is made."""

    # By the name that is in their paths: `predict`, or `predict/emea`.
    specs: Mapping[str, FunctionSpec]
    # The function of a request that names none.
    default: str | None
    # Whether the image is one of several functions, however many there are.
    several: bool
    # The paths that Vertex AI has chosen.
    health_route: str | None = None
    predict_route: str | None = None

    @property
    def title(self) -> str:
        """What documentation calls them together."""
        return f"{len(self.specs)} functions" if self.several else next(iter(self.specs))

    @property
    def shown(self) -> str:
        """The names, for an error: the first twenty, and how many more."""
        names = list(self.specs)
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        return ", ".join(names[:_SHOWN]) + more

    def placed(self, settings: Settings) -> Served:
        """Return it with the paths that the platform has chosen."""
        return replace(
            self, health_route=settings.health_route, predict_route=settings.predict_route
        )

    @classmethod
    def alone(cls, spec: FunctionSpec) -> Served:
        """Return what the server of one function serves."""
        return cls(specs={spec.name: spec}, default=spec.name, several=False)
