"""How a function runs on a Ray cluster: what may be asked for, checked."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mfimage.errors import OptionError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {f"{unit}i": 1024**power for power, unit in enumerate("KMGT", 1)}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?)?B?", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """How a function runs on a Ray cluster.

    Attributes
    ----------
    address : str or None
        ``auto``, ``host:port`` of a cluster's head. By default the cluster that this process has
        joined, the one that ``RAY_ADDRESS`` names, one on this machine, or a new one here.
    num_cpus, num_gpus : float
        What each actor takes of its node.
    memory : int, str or None
        The same in bytes, or as ``"2GiB"``. Ray counts it and enforces nothing.
    resources : mapping
        The same of a cluster's custom resources.
    min_actors : int
        How many actors there always are.
    max_actors : int or None
        How many there are when there is much to do; by default as many as fit.
    max_retries : int
        How often a record is tried again after an actor died that had it.
    placement : {"image"} or None
        ``image``: only on nodes that run the function's image; the function is loaded from there.
    patience : float
        Seconds that a cluster may take to get nodes that it does not have: one that scales itself.
    start_timeout : float
        Seconds until an actor must have loaded the function.
    progress : bool
        Whether ``map`` shows how far it is, where stderr is a terminal.
    """

    address: str | None = None
    num_cpus: float = 1
    num_gpus: float = 0
    memory: int | str | None = None
    resources: Mapping[str, float] = dataclasses.field(default_factory=dict)
    min_actors: int = 1
    max_actors: int | None = None
    max_retries: int = 2
    placement: str | None = None
    patience: float = 0
    start_timeout: float = 300
    progress: bool = True

    def __post_init__(self) -> None:
        self._check_numbers()
        if self.max_actors is not None and self.max_actors < self.min_actors:
            raise OptionError(
                f"max_actors: expected at least min_actors={self.min_actors}, got {self.max_actors}"
            )
        if self.placement not in (None, "image"):
            raise OptionError(f"placement: expected 'image' or None, got {self.placement!r}")
        if not isinstance(self.progress, bool):
            raise OptionError(f"progress: expected True or False, got {self.progress!r}")
        self.memory_bytes  # noqa: B018  (it is checked by reading it)

    def _check_numbers(self) -> None:
        least = {"num_cpus": 0, "num_gpus": 0, "min_actors": 1, "max_retries": 0, "patience": 0}
        for name, limit in least.items():
            value = getattr(self, name)
            if not _is_number(value) or value < limit:
                raise OptionError(f"{name}: expected a number, at least {limit}, got {value!r}")
        for name in ("min_actors", "max_actors", "max_retries"):
            value = getattr(self, name)
            if value is not None and type(value) is not int:
                raise OptionError(f"{name}: expected a whole number, got {value!r}")
        if not _is_number(self.start_timeout) or self.start_timeout <= 0:
            raise OptionError(f"start_timeout: expected seconds, got {self.start_timeout!r}")
        for name, value in self.resources.items():
            if not _is_number(value) or value <= 0:
                raise OptionError(f"resources: expected more than 0 of {name!r}, got {value!r}")

    @property
    def memory_bytes(self) -> int:
        """``memory`` as a number of bytes."""
        if self.memory is None:
            return 0
        found = _SIZE.fullmatch(str(self.memory).strip())
        if found is None or isinstance(self.memory, bool):
            raise OptionError(
                f"memory: expected bytes, got {self.memory!r}", hint="for example memory='2GiB'"
            )
        return int(float(found[1]) * _UNITS[found[2] or ""])

    def asked(self) -> dict[str, float]:
        """Return what one actor takes, by Ray's names."""
        asked = {"CPU": self.num_cpus, "GPU": self.num_gpus, "memory": self.memory_bytes}
        return {name: amount for name, amount in (asked | dict(self.resources)).items() if amount}


OPTION_NAMES = tuple(field.name for field in dataclasses.fields(RayOptions))


def ray_options(given: Mapping[str, Any]) -> RayOptions:
    """Return the options of keywords.

    Raises
    ------
    OptionError
        When there is no such option, or a value cannot be used.
    """
    refuse_unknown(given)
    return RayOptions(**given)


def refuse_unknown(given: Mapping[str, Any]) -> None:
    """Refuse keywords that no backend has; ``OptionError``."""
    for name in given:
        if name not in OPTION_NAMES:
            raise OptionError(
                f"{name}: there is no such option",
                hint=f"backend='ray' has {', '.join(OPTION_NAMES)}",
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
