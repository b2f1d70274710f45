"""What a server serves, as data: the functions by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mfimage.package.spec import FunctionSpec


@dataclass(frozen=True, kw_only=True)
class Served:
    """The functions of a server, from which the table of routes is made."""

    # By the name that is in their paths: `predict`, or `predict/emea`.
    specs: Mapping[str, FunctionSpec]
    # The function of a request that names none.
    default: str | None
    # Whether the image is one of several functions, however many there are.
    several: bool

    @property
    def title(self) -> str:
        """What documentation calls them together."""
        return f"{len(self.specs)} functions" if self.several else next(iter(self.specs))

    @classmethod
    def alone(cls, spec: FunctionSpec) -> Served:
        """Return what the server of one function serves."""
        return cls(specs={spec.name: spec}, default=spec.name, several=False)
