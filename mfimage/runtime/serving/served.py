"""What a server serves, as data: the functions by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mfimage.errors import OptionError
from mfimage.package.spec import CallableSpec
from mfimage.runtime.loading import packages
from mfimage.runtime.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Served:
    """The functions of a server, from which the table of routes is made."""

    # By the name that is in their paths: `predict`, or `predict/emea`.
    specs: Mapping[str, CallableSpec]
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
    def unknown(self) -> str:
        """What a request for a path without a route gets to read."""
        if not self.several:
            return "no such path; /docs lists what there is"
        return f"no such path; the functions are {self.shown}"

    @property
    def shown(self) -> str:
        """The names, for an error."""
        return packages.shown(list(self.specs))

    def placed(self, settings: Settings) -> Served:
        """Return it with the paths that the platform has chosen."""
        return replace(
            self, health_route=settings.health_route, predict_route=settings.predict_route
        )

    @classmethod
    def alone(cls, spec: CallableSpec) -> Served:
        """Return what the server of one function serves."""
        return cls(specs={spec.name: spec}, default=spec.name, several=False)

    @classmethod
    def together(cls, specs: Iterable[CallableSpec], default: str | None = None) -> Served:
        """Return what the server of several functions serves."""
        by_name = {spec.name: spec for spec in specs}
        only = next(iter(by_name)) if len(by_name) == 1 else None
        return cls(specs=by_name, default=default or only, several=True)

    @classmethod
    def in_folder(cls, folder: Path, default: str | None = None) -> Served:
        """Return what the server of an image's folder serves."""
        specs = [found.spec for found in packages.find_all(folder).values()]
        several = packages.names(folder) is not None
        served = cls.together(specs, default) if several else cls.alone(specs[0])
        if default not in (None, *served.specs):
            raise OptionError(
                f"MFIMAGE_DEFAULT_FUNCTION: there is no function {default!r}",
                hint=f"one of: {packages.shown(list(served.specs))}",
            )
        return served
